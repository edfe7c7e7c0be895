from pathlib import Path

import pytest

from stream_rec.bench.pipeline import PipelineBenchOptions, show
from stream_rec.config import Settings
from stream_rec.errors import UserError


def test_a_log_that_is_too_short_is_refused_before_anything_starts(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text("user,item,event,time\nu,i,view,1\n")
    with pytest.raises(UserError, match="lower --count or --runs"):
        show(Settings(), log, "", PipelineBenchOptions(), as_json=False)
