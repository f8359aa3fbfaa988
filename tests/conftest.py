"""What all tests share: the repository, and where scripts and helpers are imported from."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests")]


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT
