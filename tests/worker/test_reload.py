from pathlib import Path

import msgspec
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from stream_rec.config import Settings
from stream_rec.messages import Window, WindowEvent
from stream_rec.metrics import WorkerMetrics
from stream_rec.models import model_store
from stream_rec.serving.load import load_engine
from stream_rec.worker.model_runner import ModelRunner
from stream_rec.worker.prewarm import PrewarmQueue
from stream_rec.worker.reload import file_stamps
from tests.tiny import STRIDE, tiny_model


def window(user: str, arrived: float) -> Window:
    return Window(user, 1, 0, 0, arrived, (WindowEvent("i1", "view", arrived),))


def test_a_folder_looks_new_when_a_file_is_written_or_the_link_points_elsewhere(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    link = tmp_path / "model"
    link.symlink_to("old")
    looks = [file_stamps(link)]
    (tmp_path / "old" / "config.json").write_text("{ }")
    looks.append(file_stamps(link))
    link.unlink()
    link.symlink_to("new")
    looks.append(file_stamps(link))
    assert looks[0] != looks[1] != looks[2]
    assert file_stamps(link) == looks[2]


def test_a_training_that_keeps_its_checkpoints_there_is_no_new_model(tmp_path: Path) -> None:
    before = file_stamps(tmp_path)
    (tmp_path / "checkpoint-fit.safetensors").write_bytes(b"x")
    assert file_stamps(tmp_path) == before


def test_a_folder_that_is_not_there_has_no_files(tmp_path: Path) -> None:
    assert file_stamps(tmp_path / "nowhere") == {}


def test_the_users_active_last_are_kept_and_come_first() -> None:
    recent = PrewarmQueue(most=3)
    for at in range(20):
        recent.add(window(f"u{at}", float(-at)))  # partitions are read one beside the other: no order in time
    assert len(recent) <= 6
    assert [one.user_id for one in recent.take(2)] == ["u0", "u1"]
    assert [one.user_id for one in recent.take(1)] == ["u2"]


def test_of_a_user_the_newest_window_is_kept_until_the_user_is_forgotten() -> None:
    recent = PrewarmQueue(most=3)
    for arrived in (1.0, 2.0):
        recent.add(window("u", arrived))
    assert len(recent) == 1
    assert recent.take(5) == [window("u", 2.0)]
    recent.add(window("u", 3.0))
    recent.forget("u")
    assert not recent.take(5)


@pytest.mark.parametrize("has_time", [True, False])
async def test_a_model_of_a_log_without_times_has_no_age_in_the_metrics(tmp_path: Path, has_time: bool) -> None:
    model = tiny_model()
    config = msgspec.structs.replace(model.config, has_time=has_time, trained_until=7.0)
    model_store.save(model._replace(config=config), tmp_path / "model")
    registry = CollectorRegistry()
    settings = Settings(model=tmp_path / "model", cache_dir=tmp_path, stride=STRIDE)

    def age() -> float | None:
        return registry.get_sample_value("stream_rec_model_trained_until_timestamp_seconds")

    metrics = WorkerMetrics(registry)
    assert age() is None
    host = await ModelRunner.open(settings, metrics, load_engine)
    host.update_metrics()
    assert age() == (7.0 if has_time else None)
    assert b"NaN" not in generate_latest(registry)
    await host.close()
