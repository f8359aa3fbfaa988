"""Open-MAGVIT2: numerically the official classes', whose codebook is the corners of a cube."""

import numpy as np
import pytest
import torch
from golden import load_golden
from published import (
    assert_as_official,
    assert_batch_free,
    averaged,
    golden_config,
    golden_state,
    load_written,
    num_parameters,
)

from masc.runtime.errors import InputError
from vq.magvit2 import OpenMAGVIT2, SignQuantizer

CONFIG = golden_config("magvit2", "vq.magvit2:OpenMAGVIT2")


@pytest.fixture
def model(tmp_path):
    return load_written({"state_dict": averaged(golden_state("magvit2"))}, CONFIG, tmp_path)


def test_everything_is_as_in_the_official_classes(model):
    assert_as_official(model, "magvit2")
    assert_batch_free(model, "magvit2")


def test_the_codebook_is_the_official_one(model):
    np.testing.assert_array_equal(model.codebook.numpy(), load_golden("magvit2")[1]["codebook"])


def test_every_token_of_the_published_size_survives_lookup():
    quantizer = SignQuantizer(18)
    codebook = quantizer.codebook
    assert codebook.shape == (262_144, 18) and codebook.dtype == torch.float32
    tokens = torch.arange(262_144).view(1, -1)
    looked_up = quantizer.lookup(tokens, 512)
    assert torch.equal(looked_up.flatten(2)[0].T, codebook)
    assert torch.equal(quantizer.tokens(looked_up), tokens)
    assert torch.equal(quantizer.tokens(0.01 * looked_up), tokens)


def test_zero_counts_as_negative():
    assert SignQuantizer(3).tokens(torch.tensor([0.0, 1.0, -1.0]).view(1, 3, 1, 1)).item() == 2


def test_sizes_of_the_published_model():
    # Sum over the parameters of src.Open_MAGVIT2.models.lfqgan.VQModel at its sizes, without loss and average.
    assert num_parameters(OpenMAGVIT2) == 115_127_829
    with pytest.raises(InputError, match="power of two"):
        OpenMAGVIT2(num_tokens=1000)
