import importlib
import subprocess
import sys

import msgspec
import pytest

import stream_rec
from stream_rec import Erased, Recommendation
from stream_rec.testing import RecommendationsTopic


def test_every_public_name_is_there() -> None:
    assert set(stream_rec.__all__) <= set(dir(stream_rec))
    for name in stream_rec.__all__:
        assert getattr(stream_rec, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = stream_rec.Nothing


def test_a_service_loads_no_torch_and_a_command_nothing_of_it() -> None:
    heavy = "sorted({'torch', 'transformers', 'faust', 'numpy', 'polars', 'aiokafka'} & set(sys.modules))"
    for program, loaded in (
        (f"import sys, stream_rec; print({heavy})", "[]"),
        (f"import sys; from stream_rec import Recommendations, Event; print({heavy})", "['aiokafka']"),
    ):
        run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert run.stdout.strip() == loaded


@pytest.mark.parametrize(
    ("old", "new"), [("client", "stream_rec.client"), ("connection", "stream_rec.kafka.connection")]
)
def test_the_former_name_of_a_module_still_works_and_says_the_new_one(old: str, new: str) -> None:
    sys.modules.pop(f"stream_rec.pipeline.{old}", None)
    with pytest.warns(DeprecationWarning, match=f"is now {new}"):
        former = importlib.import_module(f"stream_rec.pipeline.{old}")
    for name in former.__all__:
        assert getattr(former, name) is getattr(importlib.import_module(new), name)


def answer(user: str, seq: int) -> Recommendation:
    return Recommendation(user, seq, seq - 1, 0.0, (), {}, (), "test")


async def test_the_topic_in_memory_gives_what_the_one_in_kafka_would() -> None:
    topic = RecommendationsTopic()
    for published in (answer("u", 1), answer("v", 1), answer("u", 2)):
        topic.publish(published)
    topic.erase("v")
    async with topic.recommendations() as recommendations:
        assert [one async for one in recommendations] == [answer("u", 1), answer("v", 1), answer("u", 2), Erased("v")]
    async with topic.latest() as latest:
        await latest.caught_up()
        assert (len(latest), latest.get("u"), latest.get("v"), latest.get("w")) == (1, answer("u", 2), None, None)
    with pytest.raises(msgspec.ValidationError):
        topic.publish(msgspec.structs.replace(answer("u", 3), event_time=1e300))
