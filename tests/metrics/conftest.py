"""Seeded Inception weights, made once."""

import pytest
from inception_weights import save_seeded

from masc.artifacts import hash_file
from metrics.inception import load_inception


@pytest.fixture(scope="session")
def seeded_weights(tmp_path_factory):
    return save_seeded(tmp_path_factory.mktemp("torch") / "hub" / "checkpoints")


@pytest.fixture(scope="session")
def inception(seeded_weights):
    return load_inception(seeded_weights, hash_file(seeded_weights))
