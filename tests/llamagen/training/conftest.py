"""Runs that others start from, trained once."""

import pytest
from stage import load_config

from llamagen.train import train
from llamagen.training.config import TrainConfig


@pytest.fixture(scope="session")
def trained(artifacts, tmp_path_factory):
    """The config of a small run, a trained flat run, and a masc run that started from it."""
    place = tmp_path_factory.mktemp("trained")
    settings = [
        *("model=llamagen-tiny", "data=twemoji", "model.dim=32", "model.num_layers=2", "model.num_heads=4"),
        *("model.multiple_of=16", "steps=40", "batch_size=8", "evaluate_every=20", "log_every=20"),
        *("checkpoint_every=40", "precision=fp32", "tracking.mode=disabled", "diagnostics=false"),
        *(f"artifacts={artifacts}", "optim.learning_rate=0.01"),
    ]

    def run(name, *more):
        return train(load_config("train", TrainConfig, [*settings, *more, f"run_dir={place / name}"]))

    flat = run("flat", "head=flat")
    return {"flat": flat, "masc": run("masc", "head=masc", f"init={flat}", "steps=20")}


@pytest.fixture
def warm(small_run, trained, tmp_path):
    """Makes the config of a small run that starts from one of `trained`."""

    def config(head, source, *more):
        return small_run(
            f"head={head}", f"init={trained[source]}", "diagnostics=false", f"run_dir={tmp_path / head}", *more
        )

    return config
