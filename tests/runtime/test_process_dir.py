import subprocess
import sys
from pathlib import Path

import pytest

from stream_rec.errors import UserError
from stream_rec.runtime.process import process_dir

OWNER = """
import os, signal, sys
from pathlib import Path
from stream_rec.runtime.process import process_dir
with process_dir(Path(sys.argv[1])) as folder:
    print(folder, flush=True)
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_is_cleaned_up_after_and_a_living_one_is_not(tmp_path: Path) -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", OWNER, tmp_path], stdin=pipe, stdout=pipe, text=True) as owner:
        theirs = Path(owner.stdout.readline().strip())
        with process_dir(tmp_path) as mine:
            assert mine != theirs
            assert theirs.is_dir()
        assert not mine.exists()
        owner.stdin.close()
        owner.wait()
    assert theirs.is_dir()
    with process_dir(tmp_path) as mine:
        assert not theirs.exists()
        assert mine.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot keep state in .*file"), process_dir(tmp_path / "file"):
        pass
