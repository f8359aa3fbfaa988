"""Text conditioning against the released LlamaGen: logits, losses, masks, cached and guided decoding."""

import pytest
import torch
from golden import load_golden, load_state
from golden_adapter import build_gpt, decode_steps, embed_cond, forward, generate, load_gpt_state

from llamagen.backbones.embeddings import visible_keys

TEXT = ["t2i_a", "t2i_120"]


def text_model(name):
    meta, arrays = load_golden(name)
    model = build_gpt(meta["config"])
    load_gpt_state(model, load_state(name))
    return model, meta, {key: torch.from_numpy(value) for key, value in arrays.items()}


@pytest.mark.parametrize("name", TEXT)
@pytest.mark.parametrize("training", [True, False])
@torch.no_grad()
def test_logits_and_losses_are_the_released_ones_in_both_modes(name, training):
    model, _, z = text_model(name)
    inputs = (model, z["tokens"][:, :-1], z["caption"], training)
    logits, loss = forward(*inputs, targets=z["tokens"], mask=z["mask"], valid=z["valid"])
    torch.testing.assert_close(logits, z["train_logits"], atol=2e-4, rtol=0)
    torch.testing.assert_close(loss, z["train_loss_valid"], atol=2e-5, rtol=0)
    torch.testing.assert_close(forward(*inputs)[0], z["train_logits_no_mask"], atol=2e-4, rtol=0)


@pytest.mark.parametrize("name", TEXT)
@torch.no_grad()
def test_null_captions_are_the_released_ones(name):
    model, _, z = text_model(name)
    torch.testing.assert_close(embed_cond(model, z["caption"]), z["cap_embed"], atol=1e-5, rtol=0)
    dropped = embed_cond(model, z["caption"], z["force_drop_ids"])
    torch.testing.assert_close(dropped, z["cap_embed_forced"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", TEXT)
def test_visible_keys_are_the_released_mask(name):
    _, _, z = text_model(name)
    num_tokens = z["tokens"].shape[1]
    real = z["valid"] == 1  # a dummy sample of the released loader sees everything up to itself
    found = visible_keys(z["emb_mask"], num_tokens)[:, :, :-1, :-1]
    assert torch.equal(found[real], z["mask"][real])


@pytest.mark.parametrize("name", TEXT)
@torch.no_grad()
def test_cached_steps_are_the_released_ones_and_those_of_the_whole_sequence(name):
    model, meta, z = text_model(name)
    rows = [row for row, length in enumerate(meta["lens"]) if length is not None]
    inputs = z["tokens"][rows, :-1], z["caption"][rows]
    cached = decode_steps(model, *inputs, z["emb_mask"][rows])
    torch.testing.assert_close(cached, z["decode_logits"], atol=2e-4, rtol=0)
    mask = visible_keys(z["emb_mask"][rows], z["tokens"].shape[1] - 1)
    whole, _ = forward(model, *inputs, False, mask=mask)
    torch.testing.assert_close(cached, whole, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", TEXT)
def test_guided_greedy_tokens_are_the_released_ones(name):
    model, meta, z = text_model(name)
    assert meta["generate"]
    for key, case in meta["generate"].items():
        mask = z["gen_emb_mask"] if case["emb_masks"] else None
        tokens = generate(model, z["gen_caption"], case["steps"], case["cfg_scale"], case["cfg_interval"], mask)
        assert torch.equal(tokens, z[f"gen_{key}"].long()), key


@torch.no_grad()
def test_padded_slots_change_nothing():
    # What stands in a slot that the mask hides must not reach an image position.
    model, meta, z = text_model("t2i_a")
    rows = [row for row, length in enumerate(meta["lens"]) if length is not None]
    mask = visible_keys(z["emb_mask"][rows], z["tokens"].shape[1] - 1)
    padded = ~z["emb_mask"][rows].bool()
    assert padded.any()
    noise = torch.randn(z["caption"][rows].shape, generator=torch.Generator().manual_seed(0))
    changed = torch.where(padded[..., None], noise, z["caption"][rows])
    a, b = (model.backbone(z["tokens"][rows], caption, mask) for caption in (z["caption"][rows], changed))
    torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
