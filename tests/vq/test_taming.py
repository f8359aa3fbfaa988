"""VQGAN f16: numerically the official classes', read from Lightning files that mention Lightning's own classes."""

import pytest
import torch
from published import assert_as_official, assert_batch_free, golden_config, golden_state, load_written, num_parameters

from masc.runtime.errors import InputError
from vq.taming import TamingVQ

CONFIG = golden_config("taming", "vq.taming:TamingVQ")


@pytest.fixture
def model(tmp_path):
    return load_written({"state_dict": golden_state("taming"), "epoch": 3}, CONFIG, tmp_path)


def test_everything_is_as_in_the_official_classes(model):
    assert_as_official(model, "taming")
    assert_batch_free(model, "taming")


def test_the_codebook_is_the_table_itself(model):
    assert torch.equal(model.codebook, golden_state("taming")["quantize.embedding.weight"])
    assert model.num_tokens == 64 and model.downsample == 4


def test_sizes_of_the_published_models():
    # Sums over the parameters of taming.models.vqgan.VQModel at the published sizes, without its loss.
    assert num_parameters(TamingVQ) == 72_141_699
    assert num_parameters(TamingVQ, num_tokens=16384) == 76_073_859


def test_a_llamagen_file_is_refused_by_the_names_it_lacks(tmp_path):
    state = {"encoder.mid.0.norm1.weight": torch.zeros(32), "decoder.up.9.block.0.norm1.weight": torch.zeros(32)}
    with pytest.raises(InputError, match=r"encoder\.conv_in\.weight .* is missing"):
        load_written({"state_dict": state}, CONFIG, tmp_path)


def test_averaged_weights_that_are_not_there_are_named(tmp_path):
    config = golden_config("taming", "vq.taming:TamingVQ", use_ema=True)
    with pytest.raises(InputError, match=r"no averaged weights of .*use_ema=false"):
        load_written({"state_dict": golden_state("taming")}, config, tmp_path)
