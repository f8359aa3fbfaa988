"""What all tests share: one thread a process, the sparse engine compiled once, the repository."""

import logging
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

# Two threads on two busy cores wait for each other: small tensors are several times as fast on one.
for variable in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

ROOT = Path(__file__).resolve().parents[1]


LARGE = 500  # tests: a smaller selection may reach the sparse engine before it is compiled, and compiles it itself
# Once with each of the two searches, to the root: all that numba compiles.
COMPILE = """
from linkage_oracle import blobs
from masc.sparse import sparse_linkage
for search in ("kdtree", "lists"):
    sparse_linkage(blobs(200), search=search, finish_at=60)
"""


def pytest_collection_finish(session):
    """Compile the sparse engine on another core while the first tests of a large selection run. Its own tests come
    later, and find the compiled code."""
    needs_it = any("sparse" in item.path.parts for item in session.items)
    is_first = os.environ.get("PYTEST_XDIST_WORKER", "gw0") == "gw0"
    if needs_it and is_first and len(session.items) > LARGE and not session.config.option.collectonly:
        environment = os.environ | {"PYTHONPATH": str(ROOT / "tests")}
        nowhere = subprocess.DEVNULL
        process = subprocess.Popen(
            [sys.executable, "-c", COMPILE], cwd=ROOT, env=environment, stdout=nowhere, stderr=nowhere
        )
        session.config.add_cleanup(process.wait)
        session.config.add_cleanup(process.terminate)  # called first


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A working directory of the test's own: what lies in the repository's artifacts/ and runs/ is not found."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def cut_power(tmp_path, monkeypatch):
    """Takes from the files of a folder what was not flushed to the disk since it was written."""
    fsync, log = os.fsync, tmp_path / "flushed"
    log.touch()

    def recorded(descriptor):
        fsync(descriptor)
        status = os.fstat(descriptor)
        with log.open("a") as file:  # outlives the process
            file.write(f"{status.st_ino} {status.st_mtime_ns} {status.st_size}\n")

    def cut(folder):
        held = {int(inode): (int(time), int(size)) for inode, time, size in map(str.split, log.open())}
        for file in filter(Path.is_file, folder.rglob("*")):
            time, size = held.get(file.stat().st_ino, (0, 0))
            if time != file.stat().st_mtime_ns:
                os.truncate(file, min(size, file.stat().st_size))

    monkeypatch.setattr(os, "fsync", recorded)
    return cut


MEMORY = 2 * 2**30  # bytes more than the tests use: a size that a file claims must not be allocated


@pytest.fixture(scope="module")
def little_memory():
    """A limit on the memory of this process, so that a claim that is believed is a MemoryError; and no warnings."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("needs Linux: the memory in use is read from /proc")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(statm.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
