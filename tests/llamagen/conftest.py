"""A tiny data set of codes with its codebook and trees, and a config to train on it."""

import numpy as np
import pytest
from stage import load_config

from llamagen.run import TrainConfig
from masc.artifacts import Codebook
from masc.build import TreeConfig, make_tree
from masc.codes import save_codes
from masc.layout import Layout

NUM_TOKENS, GRID, NUM_IMAGES = 24, 3, 40


def make_artifacts(root):
    """codebook.npz, codes and trees below `root`, as the stages write them; tokens that follow the label."""
    rng = np.random.default_rng(0)
    layout = Layout(root, "emoji32")
    codebook = Codebook.save(layout.codebook, rng.standard_normal((NUM_TOKENS, 4)).astype(np.float32), {}, {})
    for split, count in (("train", NUM_IMAGES), ("val", 10)):
        labels = np.arange(count) % 9
        tokens = (labels[:, None, None] * 2 + rng.integers(0, 6, (count, 2, GRID * GRID))) % NUM_TOKENS
        names = [f"class {index}" for index in range(9)]
        save_codes(
            layout.codes("twemoji", split),
            tokens,
            labels,
            np.arange(count),
            names,
            [],
            NUM_TOKENS,
            codebook.meta.sha256,
            {},
        )
    for name, method in (("masc", "average"), ("random", "random"), ("kmeans", "kmeans")):
        tree = TreeConfig(name=name, method=method, needs_k=method == "kmeans")
        make_tree(tree, codebook, NUM_TOKENS // 2, layout.tree(tree, NUM_TOKENS // 2))
    return root


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
