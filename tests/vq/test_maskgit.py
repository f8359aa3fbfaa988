"""MaskGIT-VQ of RAR: numerically the official classes', from a bare state dict, with images in [-1, 1]."""

import pytest
import torch
from golden import load_state
from published import assert_as_official, assert_batch_free, golden_config, load_written, num_parameters

from vq.maskgit import MaskGITBlock, MaskGITVQ

CONFIG = golden_config("maskgit", "vq.maskgit:MaskGITVQ")


@pytest.fixture
def model(tmp_path):
    return load_written(load_state("maskgit"), CONFIG, tmp_path)


def test_everything_is_as_in_the_official_classes_up_to_the_range_of_pixels(model):
    assert_as_official(model, "maskgit", scale=2.0, shift=-1.0)
    assert_batch_free(model, "maskgit")


def test_the_codebook_is_the_table_itself(model):
    assert torch.equal(model.codebook, load_state("maskgit")["quantize.embedding.weight"])
    assert model.num_tokens == 64 and model.downsample == 4


def test_a_block_that_changes_width_forgets_its_input():
    torch.manual_seed(0)
    widening, level = MaskGITBlock(32, 64), MaskGITBlock(32, 32)
    x = torch.randn(1, 32, 4, 4)
    with torch.no_grad():
        # Normalisation removes the scale of the input, so only a shortcut can tell x from 2 x.
        torch.testing.assert_close(widening(x), widening(2 * x), atol=1e-4, rtol=0)
        torch.testing.assert_close(level(2 * x) - level(x), x, atol=1e-4, rtol=0)


def test_sizes_of_the_published_model():
    # Sum over the parameters of modeling.titok.PretrainedTokenizer at its sizes.
    assert num_parameters(MaskGITVQ) == 54_515_587
