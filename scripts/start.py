"""The first import of every script: our packages are found before others of the same name, and no variable of the
environment changes a result."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / folder) for folder in (".", "tokenizers", "eval")]  # before the folders of PYTHONPATH

from masc.runtime.environment import pin_environment  # noqa: E402

pin_environment(at_start=True)  # before torch is imported, which reads some variables then
