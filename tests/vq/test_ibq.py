"""IBQ: numerically the official classes', from the averaged weights, at the size of its largest codebook too."""

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

from vq.ibq import IBQ, InnerProductQuantizer

CONFIG = golden_config("ibq", "vq.ibq:IBQ")


@pytest.fixture
def model(tmp_path):
    return load_written({"state_dict": averaged(golden_state("ibq"))}, CONFIG, tmp_path)


def test_everything_is_as_in_the_official_classes(model):
    assert_as_official(model, "ibq")
    assert_batch_free(model, "ibq")


def test_the_largest_inner_product_wins_not_the_nearest_vector(model):
    meta, arrays = load_golden("ibq")
    latents = torch.from_numpy(arrays["latents"]).permute(0, 2, 3, 1).reshape(-1, meta["code_dim"])
    nearest = torch.cdist(latents, model.codebook).argmin(-1)
    differing = (nearest != torch.from_numpy(arrays["tokens"]).ravel()).sum().item()
    assert differing == meta["differ_from_nearest"] > 0


def test_the_average_has_the_names_that_the_official_class_gives_it():
    given = load_golden("ibq")[0]["average_names"]
    stored = averaged({name: torch.zeros(1) for name in given})
    assert {f"model_ema.{name}" for name in given.values()} < set(stored)


def test_the_latest_weights_are_read_when_asked_for(tmp_path):
    state = golden_state("ibq")
    config = golden_config("ibq", "vq.ibq:IBQ", use_ema=False)
    latest = load_written({"state_dict": averaged(state)}, config, tmp_path)
    assert torch.equal(latest.encoder.conv_in.weight, state["encoder.conv_in.weight"] + 1)


def test_sizes_of_the_published_model():
    # Sum over the parameters of src.IBQ.models.ibqgan.IBQ at the published sizes, without loss and average.
    assert num_parameters(IBQ) == 173_896_579
    assert num_parameters(IBQ, num_tokens=16384) == 173_896_579 - (262_144 - 16_384) * 256


def test_the_largest_codebook_is_searched_without_a_second_copy_of_it():
    quantizer = InnerProductQuantizer(262_144, 8, commitment=0.25, l2_norm=False)
    assert quantizer.codebook.data_ptr() == quantizer.embedding.weight.data_ptr()
    z = torch.randn(1, 8, 10, 10, generator=torch.Generator().manual_seed(0))
    tokens = quantizer.tokens(z)  # 100 latents, 64 at a time
    expected = (z.flatten(2)[0].T.double() @ quantizer.codebook.double().T).argmax(-1)
    # Two of 262,144 products may be equal to float32's precision; a wrong slice would disturb dozens.
    assert (tokens[0] == expected).sum() >= 98
