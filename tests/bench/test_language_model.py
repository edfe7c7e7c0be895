import json
from pathlib import Path

import pytest

from stream_rec.bench.engine import EngineBenchOptions
from stream_rec.bench.language_model import Language, show
from tests.language import tiny_language_model

PLAN = EngineBenchOptions(capacity=8, events=60, sample=8, batch=16, runs=1, kv_cache_gb=0.1)


def test_both_readings_answer_exactly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    items, log = tmp_path / "items.csv", tmp_path / "log.csv"
    items.write_text("item,title\n" + "".join(f"i{n},thing {n}\n" for n in range(5)))
    log.write_text("user,item,time\n" + "".join(f"u{n % 4},i{n * n % 7},{1_000 + n}\n" for n in range(120)))
    language = Language(str(tiny_language_model(tmp_path / "tiny")), None, items)
    show(log, "", language, PLAN, as_json=True)
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (figures["base"], figures["layers"], figures["events"]) == ("tiny", 2, 60)
    for reading in ("items", "words"):
        found = figures[reading]
        assert found["max_abs_diff"] <= 1e-4
        assert found["top20_changed"] == 0
        assert found["stream_events_per_s"] > 0
        assert found["full_events_per_s"] > 0
        assert found["tokens_per_event"]["stream"] < found["tokens_per_event"]["full"]
    assert figures["items"]["tokens_per_event"]["full"] <= PLAN.capacity
    assert figures["words"]["bytes_per_user"] == 16 * figures["items"]["bytes_per_user"]
