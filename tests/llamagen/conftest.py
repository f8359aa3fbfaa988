"""A config to train on a tiny data set of codes."""

import pytest
from stage import load_config
from tiny_artifacts import make_artifacts

from llamagen.run import TrainConfig


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory):
    return make_artifacts(tmp_path_factory.mktemp("artifacts"))


@pytest.fixture
def overrides(artifacts, tmp_path):
    """Overrides of a small run; the caller adds its own."""
    return [
        "model=llamagen-tiny",
        "data=twemoji",
        "model.dim=32",
        "model.num_layers=2",
        "model.num_heads=4",
        "model.multiple_of=16",
        "steps=12",
        "batch_size=8",
        "evaluate_every=6",
        "log_every=2",
        "checkpoint_every=4",
        "precision=fp32",
        "tracking.mode=disabled",
        f"artifacts={artifacts}",
        f"run_dir={tmp_path / 'run'}",
    ]


@pytest.fixture
def small_run(overrides):
    """Makes the config of a small run from further overrides."""
    return lambda *more: load_config("train", TrainConfig, [*overrides, *more])
