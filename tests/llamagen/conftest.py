"""A config to train on a tiny data set of codes."""

import pytest
import torch
from golden import load_golden, load_state
from golden_adapter import build_gpt
from safetensors.torch import save_file
from stage import load_config
from tiny_artifacts import make_artifacts

from llamagen.release import ReleaseConfig
from llamagen.train import train
from llamagen.training.config import TrainConfig
from llamagen.training.loop import Loop
from vq.interface import TokenizerConfig

DECODER = {"resolution": 16, "downsample": 4, "num_tokens": 256, "width": 16, "num_blocks": 1}


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


@pytest.fixture(scope="session")
def tiny_release(tmp_path_factory):
    """c2i_a's weights as a released file, with a tokenizer of its vocabulary and grid."""
    folder = tmp_path_factory.mktemp("release")
    torch.save({"model": load_state("c2i_a")}, folder / "c2i.pt")
    decoder = TokenizerConfig(
        name="vq", target="vq.autoencoder:ConvVQ", options=DECODER, weights=str(folder / "vq.safetensors")
    )
    torch.manual_seed(0)
    save_file(decoder.build().state_dict(), decoder.weights)
    return ReleaseConfig(
        name="c2i_tiny",
        weights=str(folder / "c2i.pt"),
        model=build_gpt(load_golden("c2i_a")[0]["config"]).backbone.config,
        tokenizer=decoder,
        grid=4,
        resolution=12,
        num_tokens=256,
        num_classes=10,
    )


@pytest.fixture
def dies(monkeypatch):
    """Trains a config until a step that fails."""

    def train_until(config, death, error=ZeroDivisionError):
        step = Loop.step

        def fails(self, index):
            if index == death:
                raise error
            return step(self, index)

        with monkeypatch.context() as patch, pytest.raises(error):
            patch.setattr(Loop, "step", fails)
            train(config)

    return train_until
