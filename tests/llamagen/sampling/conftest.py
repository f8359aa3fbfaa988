"""Draws small sample sets."""

import pytest

from llamagen.sampling.draw import sample
from llamagen.sampling.filters import SamplingConfig
from llamagen.sampling.plan import SampleConfig


@pytest.fixture
def release(tiny_release):
    return tiny_release


@pytest.fixture
def draw(release, tmp_path, monkeypatch):
    """Draws a sample set below tmp_path."""
    monkeypatch.chdir(tmp_path)
    guided = {"sampling": SamplingConfig(guidance=2.0), "num_images": 21}
    return lambda **changes: sample(SampleConfig(release=release, **(guided | changes)))
