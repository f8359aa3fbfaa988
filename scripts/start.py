"""The first import of every script: no package elsewhere takes the place of one of ours or of an installed one, and no
variable of the environment changes a result."""

import logging
import os
import sys
from fnmatch import fnmatchcase
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# A launcher sets these together with LOCAL_RANK. Alone they come from a cluster or from MPI, whose processes would wait
# for each other, or each take a share of the work of one.
PROCESSES = ("RANK", "WORLD_SIZE", "PMI_RANK", "PMI_SIZE", "OMPI_COMM_WORLD_*", "MV2_COMM_WORLD_*")
ALONE = {"RANK": ("", "0"), "WORLD_SIZE": ("", "1")}  # the values that speak of one process; MPI's are no request


def order_path(entries: list[str], foreign: str) -> list[str]:
    """The entries of sys.path with our packages behind the first, which holds the script, and with the folders of
    `foreign`, which is PYTHONPATH, at the end: they add modules and replace none."""
    first, *rest = entries
    added = {Path(entry).resolve() for entry in foreign.split(os.pathsep)} if foreign else set()
    added = {place for place in added if not place.is_relative_to(ROOT)}
    last = [entry for entry in rest if Path(entry).resolve() in added]
    ours = [str(ROOT / folder) for folder in (".", "tokenizers", "eval")]
    return [first, *ours, *(entry for entry in rest if entry not in last), *last]


def leave_processes() -> None:
    """Remove from the environment a place among processes that no launcher gave; warn if it speaks of several."""
    if "LOCAL_RANK" in os.environ:
        return
    names = [name for name in os.environ if any(fnmatchcase(name, pattern) for pattern in PROCESSES)]
    values = {name: os.environ.pop(name) for name in names}
    asked = [name for name, alone in ALONE.items() if values.get(name, "") not in alone]
    if asked:
        logging.getLogger(__name__).warning(
            "ignoring %s of the environment: a process works alone unless GPUS=, NODES=, MACHINE_RANK= start several",
            ", ".join(asked),
        )


sys.path[:] = order_path(sys.path, os.environ.get("PYTHONPATH", ""))

from masc.runtime.environment import pin_environment  # noqa: E402

leave_processes()
pin_environment()  # before torch is imported, which reads some variables then
