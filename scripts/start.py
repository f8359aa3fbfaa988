"""The first import of every script: no package elsewhere takes the place of one of ours or of an installed one, and no
variable of the environment changes a result."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def order_path(entries: list[str], foreign: str) -> list[str]:
    """The entries of sys.path with our packages behind the first, which holds the script, and with the folders of
    `foreign`, which is PYTHONPATH, at the end: they add modules and replace none."""
    first, *rest = entries
    added = {Path(entry).resolve() for entry in foreign.split(os.pathsep)} if foreign else set()
    added = {place for place in added if not place.is_relative_to(ROOT)}
    last = [entry for entry in rest if Path(entry).resolve() in added]
    ours = [str(ROOT / folder) for folder in (".", "tokenizers", "eval")]
    return [first, *ours, *(entry for entry in rest if entry not in last), *last]


sys.path[:] = order_path(sys.path, os.environ.get("PYTHONPATH", ""))

from masc.runtime.environment import pin_environment  # noqa: E402

pin_environment(at_start=True)  # before torch is imported, which reads some variables then
