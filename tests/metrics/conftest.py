"""Fixtures of several tests of metrics, made once a session: seeded Inception weights, the shipped tokenizer."""

import pytest
from inception_weights import save_seeded

from masc.runtime.files import hash_file
from metrics.inception import load_inception
from vq.interface import TokenizerConfig, tokenizer_path
from vq.pretrained import load_tokenizer


@pytest.fixture(scope="session")
def seeded_weights(tmp_path_factory):
    return save_seeded(tmp_path_factory.mktemp("torch") / "hub" / "checkpoints")


@pytest.fixture(scope="session")
def inception(seeded_weights):
    return load_inception(seeded_weights, hash_file(seeded_weights))


@pytest.fixture(scope="session")
def emoji32(tmp_path_factory):
    config = TokenizerConfig(name="emoji32", target="vq.autoencoder:ConvVQ")
    return load_tokenizer(tokenizer_path(config, tmp_path_factory.mktemp("artifacts")), config)
