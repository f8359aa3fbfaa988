"""Against the released LlamaGen: logits, losses, cached decoding, guided tokens, RoPE, filters, optimizer steps."""

import json

import numpy as np
import pytest
import torch
from golden import GOLDEN, load_golden, load_state
from golden_adapter import build_gpt, load_gpt_state

from llamagen.backbones.layers import apply_rope, rope_table
from llamagen.model import ARModel
from llamagen.sampling.filters import SamplingConfig, filter_logits, probabilities
from llamagen.sampling.generate import SamplingPick, generate
from llamagen.training.optim import OptimConfig, build_optimizers

CPU = torch.device("cpu")
TINY = ["c2i_a", "c2i_gqa"]


def official_model(name: str) -> tuple[ARModel, dict, dict]:
    """Our model with the official weights of one golden folder, its meta.json and arrays."""
    meta, arrays = load_golden(name)
    built = build_gpt(meta["config"])
    load_gpt_state(built, load_state(name))
    return built, meta, {key: torch.from_numpy(value) for key, value in arrays.items()}


def logits_of(model: ARModel, arrays: dict) -> torch.Tensor:
    return model.head.output(model.backbone(arrays["tokens"], arrays["cond"]))


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("training", [True, False])
def test_logits_and_loss_are_the_released_ones_in_both_modes(name, training):
    model, _, arrays = official_model(name)
    model.train(training)
    with torch.no_grad():
        logits = logits_of(model, arrays)
        loss = -model(arrays["tokens"], arrays["cond"]).sum(-1).mean()
    torch.testing.assert_close(logits, arrays["train_logits"], atol=2e-4, rtol=0)
    torch.testing.assert_close(logits, arrays["eval_logits"], atol=2e-4, rtol=0)
    torch.testing.assert_close(loss, arrays["train_loss"], atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", TINY)
def test_class_embeddings_are_the_released_ones(name):
    model, meta, arrays = official_model(name)
    embed = model.backbone.cls_embedding
    torch.testing.assert_close(embed(arrays["cond"]), arrays["cls_embed"], atol=1e-5, rtol=0)
    null = torch.full_like(arrays["cond"], meta["config"]["num_classes"])
    dropped = torch.where(arrays["force_drop_ids"] == 1, null, arrays["cond"])
    torch.testing.assert_close(embed(dropped), arrays["cls_embed_forced"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", TINY)
@torch.no_grad()
def test_cached_steps_give_the_logits_of_the_whole_sequence(name):
    model, _, arrays = official_model(name)
    model.eval()
    tokens, backbone = arrays["tokens"], model.backbone
    caches = backbone.empty_caches(len(tokens))
    hidden = [backbone.start(arrays["cond"], caches)]
    for position in range(1, tokens.shape[1]):
        hidden.append(backbone.step(tokens[:, position - 1], position, caches))
    logits = model.head.output(torch.stack(hidden, dim=1))
    torch.testing.assert_close(logits, logits_of(model, arrays), atol=2e-5, rtol=0)
    if "decode_logits" in arrays:  # the released cache cannot do grouped key-value heads
        torch.testing.assert_close(logits, arrays["decode_logits"], atol=2e-4, rtol=0)


def test_guided_greedy_tokens_are_the_released_ones():
    model, meta, arrays = official_model("c2i_a")
    model.eval()
    assert meta["generate"]
    for key, case in meta["generate"].items():
        config = SamplingConfig(guidance=case["cfg_scale"], guidance_interval=case["cfg_interval"], top_k=1)
        uniforms = torch.zeros(len(arrays["gen_cond"]), case["steps"], 1, dtype=torch.float64)
        tokens = generate(model, arrays["gen_cond"], uniforms, config)
        assert torch.equal(tokens, arrays[f"gen_{key}"].long()), key


def test_bf16_logits_are_near_the_released_ones():
    model, _, arrays = official_model("c2i_a")
    with torch.no_grad():
        logits = logits_of(model.to(torch.bfloat16).eval(), arrays)
    torch.testing.assert_close(logits.float(), arrays["bf16_eval_logits"], atol=0.1, rtol=0)


def test_rope_tables_and_rotation_are_the_released_ones():
    meta, arrays = load_golden("rope")
    for entry in meta["tables"]:
        table = rope_table(entry["grid"], entry["head_dim"], entry["base"], entry["cls_token_num"], CPU).numpy()
        assert list(table.shape) == entry["full_shape"]
        assert not table[: entry["cls_token_num"]].any()
        if entry["stored"] == "all":
            np.testing.assert_allclose(table, arrays[entry["key"]], atol=2e-6)
        else:
            rows = table[entry["cls_token_num"] :][:: max(1, entry["grid"] // 4 - 1)]
            np.testing.assert_allclose(rows, arrays[entry["key"] + "_image_rows"], atol=2e-6)
    first = meta["tables"][0]
    table = rope_table(first["grid"], first["head_dim"], first["base"], first["cls_token_num"], CPU)
    rotated = apply_rope(torch.from_numpy(arrays["apply_in"]), table)
    np.testing.assert_allclose(rotated, arrays["apply_out"], atol=5e-6)


def test_filters_and_probabilities_are_the_released_ones():
    meta, arrays = load_golden("filter")
    logits = {"": torch.from_numpy(arrays["logits"]), "_ties": torch.from_numpy(arrays["logits_ties"])}
    for case in meta["filter"]:
        for kind, values in logits.items():
            if f"filtered{kind}_{case['i']}" in arrays:
                found = filter_logits(values, case["top_k"], case["top_p"], case["min_tokens_to_keep"])
                assert np.array_equal(found, arrays[f"filtered{kind}_{case['i']}"]), case
    for case in meta["sample"]:
        found = probabilities(logits[""], case["temperature"], case["top_k"], case["top_p"])
        np.testing.assert_allclose(found, arrays[f"probs_{case['i']}"], atol=2e-6)
        pick = SamplingPick(SamplingConfig(top_k=1), torch.zeros(5, 1, dtype=torch.float64), 1.0)
        assert np.array_equal(pick(logits[""]), arrays[f"argmax_{case['i']}"][:, 0])


def test_optimizer_groups_and_steps_are_the_released_ones():
    folder = GOLDEN / "train"
    meta = json.loads((folder / "train_c2i_a.json").read_text())
    arrays = dict(np.load(folder / "train_c2i_a.npz"))
    hyper = meta["hyper"]
    model, _, _ = official_model("c2i_a")
    model.train()
    config = OptimConfig(
        learning_rate=hyper["lr"],
        weight_decay=hyper["weight_decay"],
        betas=(hyper["beta1"], hyper["beta2"]),
        max_grad_norm=hyper["max_grad_norm"],
    )
    (optimizer,) = build_optimizers(model, config, fused=True)
    names = {id(p): name.removeprefix("backbone.").removeprefix("head.") for name, p in model.named_parameters()}
    groups = [
        (group["weight_decay"], sorted(names[id(p)] for p in group["params"])) for group in optimizer.param_groups
    ]
    assert sorted(groups) == sorted((g["weight_decay"], sorted(g["names"])) for g in meta["optimizer_groups"])

    start = {names[id(p)]: p.detach().clone() for p in model.parameters()}
    for step, loss_expected in enumerate(arrays["losses"]):
        tokens, labels = torch.from_numpy(arrays["tokens"][step]), torch.from_numpy(arrays["labels"][step])
        loss = -model(tokens, labels).sum(-1).mean()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        assert abs(loss.item() - loss_expected) < 2e-4
        assert abs(norm.item() - arrays["total_grad_norms"][step]) < 2e-3
    moved = {names[id(p)]: (p.detach() - start[names[id(p)]]).norm().item() for p in model.parameters()}
    for name, expected in zip(meta["param_names"], arrays["param_delta_l2"], strict=True):
        assert abs(moved[name] - expected) / expected < 5e-3, name
