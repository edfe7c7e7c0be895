import os
from pathlib import Path

from hypothesis import settings

from stream_rec.cores import share_cores

share_cores()  # before any test imports torch
if not Path("/dev/nvidia0").exists():
    os.environ["TRITON_INTERPRET"] = "1"  # a kernel runs on the CPU; read when triton is imported

settings.register_profile("any machine", deadline=None)  # how long an example takes says nothing where others work
settings.load_profile("any machine")
