"""LlamaGen's tokenizer against its official class: names, tokens, images, losses, gradients, usage."""

import json

import numpy as np
import pytest
import torch
from golden import GOLDEN, load_golden, load_state
from published import load_written, num_parameters

from masc.runtime.errors import InputError
from vq.interface import TokenizerConfig
from vq.llamagen import LlamaGenVQ
from vq.quantize import best_match

SIZES = {"num_tokens": 64, "code_dim": 8, "channels": 32, "channel_multipliers": [1, 2], "z_channels": 16}


def config_of(**options):
    return TokenizerConfig(name="vq_a", target="vq.llamagen:LlamaGenVQ", options=SIZES | options, weights="given")


@pytest.fixture(scope="module")
def golden():
    return {name: torch.from_numpy(value) for name, value in load_golden("vq_a")[1].items()}


@pytest.fixture
def model(tmp_path):
    return load_written({"model": load_state("vq_a")}, config_of(), tmp_path)


def test_the_state_dict_is_the_official_one():
    expected = json.loads((GOLDEN / "arch" / "state_keys_VQ-16.json").read_text())
    with torch.device("meta"):
        found = {name: list(value.shape) for name, value in LlamaGenVQ().state_dict().items()}
    assert found == expected


def test_sizes_of_the_released_tokenizers():
    assert num_parameters(LlamaGenVQ) == 71_883_403  # golden/arch/param_counts.json
    assert num_parameters(LlamaGenVQ, channel_multipliers=[1, 2, 2, 4]) == 70_109_835
    with torch.device("meta"):
        assert LlamaGenVQ().downsample == 16 and LlamaGenVQ(channel_multipliers=[1, 2, 2, 4]).downsample == 8


def test_tokens_and_images_are_the_official_ones(model, golden):
    tokens = model.encode(golden["x"])
    assert tokens.shape == (3, 64) and torch.equal(tokens.flatten(), golden["indices"])
    torch.testing.assert_close(model.latents(golden["x"]), golden["z_before_quant"], atol=1e-5, rtol=0)
    torch.testing.assert_close(model.quantize.lookup(tokens, 8), golden["quant"], atol=1e-5, rtol=0)
    torch.testing.assert_close(model.decode(tokens), golden["recon"], atol=2e-4, rtol=0)
    torch.testing.assert_close(model.decode(golden["codes"]), golden["codes_decoded"], atol=2e-4, rtol=0)
    torch.testing.assert_close(model.forward(golden["x"])[0], golden["recon_forward"], atol=2e-4, rtol=0)


@pytest.mark.gpu
def test_a_gpu_gives_the_same_tokens(model, golden):
    with torch.backends.cudnn.flags(allow_tf32=False):
        model.cuda()
        tokens = model.encode(golden["x"].cuda())
        decoded = model.decode(tokens)
    assert torch.equal(tokens.flatten().cpu(), golden["indices"])
    torch.testing.assert_close(decoded.cpu(), golden["recon"], atol=2e-4, rtol=0)


def test_the_codebook_is_the_normalised_table(model, golden):
    torch.testing.assert_close(model.codebook, golden["codebook_entry"], atol=1e-6, rtol=0)
    raw = load_state("vq_a")["quantize.embedding.weight"]
    assert (model.codebook - raw).abs().max() > 0.1
    assert model.num_tokens == 64 and model.downsample == 2


def test_without_normalisation(golden, tmp_path):
    state = load_state("vq_a")
    del state["quantize.codebook_used"]
    model = load_written(state, config_of(l2_norm=False, track_usage=False), tmp_path)  # bare, as FSDP files are
    tokens = model.encode(golden["x"])
    assert torch.equal(tokens.flatten(), golden["nol2_indices"])
    assert torch.equal(model.codebook, state["quantize.embedding.weight"])
    torch.testing.assert_close(model.quantize.lookup(tokens, 8), golden["nol2_quant"], atol=1e-5, rtol=0)
    torch.testing.assert_close(model.decode(tokens), golden["nol2_recon"], atol=2e-4, rtol=0)
    losses = torch.stack(model.quantize.losses(model.latents(golden["x"])))
    torch.testing.assert_close(losses.double(), golden["nol2_losses"], atol=2e-5, rtol=0)


@pytest.mark.parametrize(("ratio", "name"), [(0.0, "losses_entropy_ratio_0"), (0.1, "losses_entropy_ratio_0p1")])
def test_losses_are_the_official_ones(model, golden, ratio, name):
    losses = model.quantize.losses(model.latents(golden["x"]), entropy_ratio=ratio)
    torch.testing.assert_close(torch.stack(losses).double(), golden[name], atol=2e-5, rtol=0)


def test_gradients_and_usage_in_training(model, golden):
    model.train().requires_grad_(True)
    reconstruction, quantized = model(golden["x"])
    loss = (reconstruction - golden["x"]).square().mean() + quantized.loss
    loss.backward()
    assert loss.item() == pytest.approx(golden["grad_loss"].item(), abs=2e-5)
    for parameter, name in (
        (model.quant_conv.weight, "grad_quant_conv_weight"),
        (model.quantize.embedding.weight, "grad_codebook"),
        (model.encoder.conv_in.weight, "grad_encoder_conv_in"),
    ):
        torch.testing.assert_close(parameter.grad, golden[name], atol=2e-5, rtol=1e-3)
    assert len(model.quantize.codebook_used.unique()) == 41  # 40 tokens and the zeros the window begins with
    assert torch.equal(model.quantize.codebook_used[-388:], golden["codebook_used_tail_1"])
    model(golden["x"])
    assert torch.equal(model.quantize.codebook_used[-388:], golden["codebook_used_tail_2"])
    model.eval()(golden["x"])
    assert torch.equal(model.quantize.codebook_used[-388:], golden["codebook_used_tail_2"])


def test_averaged_weights_are_read_when_asked_for(golden, tmp_path):
    state = load_state("vq_a")
    training = {"model": {name: value + 1 for name, value in state.items()}, "ema": state, "steps": 3}
    averaged = load_written(training, config_of(use_ema=True), tmp_path)
    assert torch.equal(averaged.encode(golden["x"]).flatten(), golden["indices"])
    latest = load_written(training, config_of(), tmp_path)
    assert torch.equal(latest.encoder.conv_in.weight, state["encoder.conv_in.weight"] + 1)
    with pytest.raises(InputError, match="use_ema=false"):
        load_written({"model": state}, config_of(use_ema=True), tmp_path)


def test_a_file_of_other_sizes_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"quantize.embedding.weight is \(64, 8\) there, \(32, 8\) here"):
        load_written({"model": load_state("vq_a")}, config_of(num_tokens=32), tmp_path)


def test_images_and_tokens_of_no_square_grid_are_refused(model):
    with pytest.raises(InputError, match="17 x 17 pixels"):
        model.encode(torch.zeros(1, 3, 17, 17))
    with pytest.raises(InputError, match="16 x 32 pixels"):
        model.encode(torch.zeros(1, 3, 16, 32))
    with pytest.raises(InputError, match="10 tokens"):
        model.decode(torch.zeros(1, 10, dtype=torch.int64))


def test_slicing_the_scores_changes_no_token(monkeypatch):
    rng = np.random.default_rng(0)
    latents, codebook = (torch.from_numpy(rng.normal(size=(n, 8)).astype(np.float32)) for n in (1000, 300))
    offset = codebook.square().sum(-1) / -2
    nearest = torch.cdist(latents.double(), codebook.double()).argmin(-1)
    whole = best_match(latents, codebook, offset)
    assert torch.equal(whole, nearest)
    monkeypatch.setattr("vq.quantize.MAX_SCORES", 7 * 300)
    assert torch.equal(best_match(latents, codebook, offset), nearest)
    assert torch.equal(best_match(latents, codebook), (latents @ codebook.T).argmax(-1))
