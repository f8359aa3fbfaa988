"""Small launches: processes that run a few lines of code."""

import sys

from launch import Launch
from start import ROOT

IMPORTS = f"import sys; sys.path[:0] = {[str(ROOT / 'scripts'), str(ROOT)]!r}\n"  # the processes import our scripts
# A training of seconds.
TINY = ["model.dim=32", "model.num_layers=1", "model.num_heads=4", "model.multiple_of=16", "batch_size=8"]
TINY += ["tracking.mode=disabled"]
WAITS = "import time, worker; worker.join_launcher(); time.sleep(60)"


def processes(code: str, gpus: int = 2, **place) -> Launch:
    """A launch of processes that run this code."""
    fields = {"nodes": 1, "node": 0, "host": "127.0.0.1", "port": 1234, "on_cpu": True} | place
    return Launch(gpus=gpus, command=(sys.executable, "-c", IMPORTS + code), **fields)
