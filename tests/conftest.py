"""What all tests share: the repository, and where scripts and helpers are imported from."""

import os
import sys
from pathlib import Path

import pytest

# Two threads on two busy cores wait for each other: small tensors are several times as fast on one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests")]


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A working directory of the test's own: what lies in the repository's artifacts/ and runs/ is not found."""
    monkeypatch.chdir(tmp_path)
