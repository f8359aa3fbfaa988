"""Laws of whole models, with each head of configs/head: cached decoding, folding, export, guidance."""

from dataclasses import fields, replace
from functools import cache

import numpy as np
import pytest
import torch
from head_cases import TREE, N, all_probabilities, randomised
from scipy import stats
from stage import CONFIGS, named_config

from llamagen.backbones.base import DataShape
from llamagen.backbones.config import ModelConfig
from llamagen.backbones.official import official_state
from llamagen.model import build_model, count_parameters
from llamagen.sampling.filters import SamplingConfig, guide, probabilities
from llamagen.sampling.generate import SamplingPick, generate, image_uniforms
from masc.heads.base import Follow, ImageHead
from masc.heads.registry import build_head
from masc.runtime.errors import InputError
from masc.tree import Partition

HEADS = sorted(file.stem for file in (CONFIGS / "head").glob("*.yaml"))
SHAPE = DataShape(num_tokens=N, num_classes=3, num_positions=4)
BACKBONE = ModelConfig(name="t", dim=32, num_layers=2, num_heads=4, num_kv_heads=2, multiple_of=16)
EXPORTED = ["flat", "masc", "masc-frequency", "tree-shared"]
config_of = cache(named_config)
every_head = pytest.mark.parametrize("name", HEADS)


def model_of(name):
    """A model with the head of a config and random weights; the networks of heads are narrow."""
    config = config_of("head", name)
    narrow = {"width": 16, "num_heads": 2, "num_layers": 2}
    config = replace(config, **{key: narrow[key] for key in narrow if key in {field.name for field in fields(config)}})
    counts = np.random.default_rng(0).integers(0, 9, N)
    model = build_model(BACKBONE, config, SHAPE, TREE, seed=0, counts=counts).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.mul_(8.0 if parameter.ndim > 1 else 1.0)
        for parameter in model.tables():
            parameter.normal_(std=0.2, generator=generator)
    return model


def images(count=6):
    """Tokens (B, T) and labels (B,)."""
    tokens = torch.randint(N, (count, 4), generator=torch.Generator().manual_seed(2))
    return tokens, torch.arange(count) % 3


@every_head
@torch.no_grad()
def test_cached_decoding_gives_the_likelihood_of_the_whole_forward(name):
    model, (tokens, labels) = model_of(name), images()
    whole, expected = model.backbone.hidden(tokens, labels), model(tokens, labels)
    path, decoding = model.head.path(tokens), model.backbone.decode(labels)
    for position in range(4):
        hidden = decoding.predict()
        torch.testing.assert_close(hidden[:, 0], whole[:, position], atol=1e-5, rtol=1e-4)
        follow = Follow(path[..., position])
        model.head.sample(hidden[:, 0], follow)
        found = torch.stack(follow.kept, dim=-1)  # the first decision only, if the head has two stages
        torch.testing.assert_close(found, expected[:, position, : found.shape[-1]], atol=1e-4, rtol=1e-4)
        decoding.place(tokens[:, position : position + 1])


@every_head
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@torch.no_grad()
def test_generated_tokens_are_the_draws_of_the_whole_forward(name, guidance):
    model, config = model_of(name), SamplingConfig(guidance=guidance)
    head, labels = model.head, torch.arange(12) % 3
    uniforms = image_uniforms(3, np.arange(12), 4, head.num_decisions)
    tokens = generate(model, labels, uniforms, config)
    assert len(torch.unique(tokens, dim=0)) > 6
    both = torch.cat([labels, model.backbone.null(labels)]) if config.is_guided else labels
    context = torch.cat([tokens, tokens]) if config.is_guided else tokens
    hidden = model.backbone.hidden(context, both)
    drawn = torch.stack(
        [
            head.sample(hidden[:, position], SamplingPick(config, uniforms[:, position], guidance))
            for position in range(4)
        ],
        dim=1,
    )
    if isinstance(head, ImageHead):
        assert torch.equal(head.cluster_of[drawn], head.cluster_of[context])
        drawn = head.finish(hidden, drawn, SamplingPick(config, uniforms.flatten(0, 1), guidance, decision=1))
    assert torch.equal(drawn, context)


@torch.no_grad()
def test_a_folded_tree_shared_model_is_the_flat_model_of_the_same_distribution():
    model, flat, (tokens, labels) = model_of("tree-shared"), model_of("flat"), images()
    shared = [parameter for key, parameter in model.named_parameters() if key.endswith("shared")]
    assert len(shared) == 2 and all(parameter.abs().min() > 0 for parameter in shared)
    uniforms = image_uniforms(3, np.arange(6), 4, 1)

    def results():
        hidden = model.backbone.hidden(tokens, labels)
        logits = []
        model.head.sample(hidden.flatten(0, 1), lambda found: logits.append(found) or found.argmax(-1))
        return hidden, *logits, model(tokens, labels), generate(model, labels, uniforms, SamplingConfig())

    before = results()
    model.fold()
    for one, other in zip(before, results(), strict=True):
        torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-4)
    assert {key: value.shape for key, value in model.state_dict().items()} == {
        key: value.shape for key, value in flat.state_dict().items()
    }
    assert type(model.head) is type(flat.head) and count_parameters(model) == count_parameters(flat)
    assert {id(table) for table in model.tables()} <= {id(parameter) for parameter in model.parameters()}


def test_folding_leaves_other_models_as_they_are():
    model = model_of("masc")
    head, before = model.head, {key: value.clone() for key, value in model.state_dict().items()}
    model.fold()
    after = model.state_dict()
    assert model.head is head and list(before) == list(after)
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("name", EXPORTED)
def test_a_head_of_one_matrix_is_exported_in_llamagens_layout(name):
    model, flat = model_of(name), model_of("flat")
    model.fold()
    state, like = official_state(model), official_state(flat)
    rows = N // 2 if name.startswith("masc") else N
    assert state.keys() == like.keys()
    assert {len(state[key]) for key in ("tok_embeddings.weight", "output.weight")} == {rows}
    assert torch.equal(state["output.weight"], model.head.output.weight)
    assert torch.equal(state["tok_embeddings.weight"], model.backbone.tok_embeddings.weight)


@pytest.mark.parametrize("name", [name for name in HEADS if name not in EXPORTED] + ["tree-shared"])
def test_export_refuses_any_other_head_by_name(name):
    model = model_of(name)
    with pytest.raises(
        InputError, match=f"this model has a {type(model.head).__name__}; export a run of the head flat"
    ):
        official_state(model)


def test_export_looks_at_the_head_and_not_at_its_number_of_rows():
    # The context holds clusters, so embedding and output have K rows each; the rest would be lost.
    for name in ("subtoken", "masc-refine", "ctf"):
        config = replace(config_of("head", name), context="cluster", width=32, num_heads=2)
        model = build_model(BACKBONE, config, SHAPE, TREE, seed=0)
        assert model.head.output.weight.shape == model.backbone.tok_embeddings.weight.shape
        with pytest.raises(InputError, match=f"has a {type(model.head).__name__}"):
            official_state(model)


@pytest.mark.parametrize("name", ["masc", "masc-frequency"])
@torch.no_grad()
def test_relabelling_commutes_with_permuting_positions(name):
    # cluster_of[tokens][order] == cluster_of[tokens[order]], and so for embedding and head.
    model, (tokens, _), order = model_of(name), images(), torch.tensor([2, 0, 3, 1])
    embedding, head = model.backbone.tok_embeddings, model.head
    assert torch.equal(embedding.cluster_of[tokens][:, order], embedding.cluster_of[tokens[:, order]])
    assert torch.equal(embedding(tokens)[:, order], embedding(tokens[:, order]))
    states = torch.randn(*tokens.shape, 32, generator=torch.Generator().manual_seed(3))
    found = head.log_probs(states[:, order], tokens[:, order])
    torch.testing.assert_close(found, head.log_probs(states, tokens)[:, order])


@pytest.mark.parametrize("name", ["masc", "masc-frequency"])
@torch.no_grad()
def test_other_numbers_for_the_same_tokens_change_nothing(name):
    config, cut, counts = config_of("head", name), TREE.cut(N // 2), np.random.default_rng(0).integers(0, 9, N)
    model, (tokens, labels) = model_of(name), images()
    old = np.random.default_rng(1).permutation(N)  # of each new number
    renumbered = Partition(cut.cluster_of[old])  # it numbers its clusters anew
    other = build_model(BACKBONE, config, SHAPE, renumbered, seed=0, counts=counts[old]).eval()
    row = np.empty(N // 2, np.int64)
    row[renumbered.cluster_of] = cut.cluster_of[old]
    state = model.state_dict()
    for key in ("backbone.tok_embeddings.weight", "head.output.weight"):
        state[key] = state[key][row]
    other.load_state_dict(state)
    new = torch.from_numpy(np.argsort(old))[tokens]
    assert not torch.equal(new, tokens)
    assert torch.equal(model.backbone.tok_embeddings(tokens), other.backbone.tok_embeddings(new))
    torch.testing.assert_close(other(new, labels), model(tokens, labels), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["masc", "masc-frequency"])
@torch.no_grad()
def test_guidance_on_clusters_is_guidance_on_tokens_if_members_are_not_learned(name):
    # Both share p(token | cluster), of which guidance keeps the power s - (s - 1) = 1. Draws at an even grid of
    # uniforms: the shares are exact up to 1e-3.
    config, scale, draws = replace(config_of("head", name), num_clusters=8), 3.0, 20_000
    head = randomised(build_head(config, 32, N, TREE, np.arange(N)))
    states = torch.randn(2, 32, generator=torch.Generator().manual_seed(4)) * 0.1
    log_p = all_probabilities(head, states).log()

    def shares(**settings):
        """Of each token, by the head's draws."""
        grid = np.arange(draws)
        uniforms = torch.from_numpy(np.stack([(grid + 0.5) / draws, grid * (np.sqrt(5) - 1) / 2 % 1], axis=1))
        pick = SamplingPick(SamplingConfig(guidance=scale, **settings), uniforms, scale)
        tokens = head.sample(states.repeat_interleave(draws, dim=0), pick)
        assert torch.equal(*tokens.chunk(2))
        return tokens[:draws].bincount(minlength=N) / draws

    def on_tokens(temperature=1.0, top_k=0, top_p=1.0):
        return probabilities(guide(log_p, scale), temperature, top_k, top_p)[0]

    torch.testing.assert_close(shares(), on_tokens(), atol=1e-3, rtol=0)
    for settings in ({"temperature": 0.5}, {"top_k": 4}, {"top_p": 0.5}):
        assert (shares(**settings) - on_tokens(**settings)).abs().sum() > 0.05
    if name == "masc":  # a temperature T of the tokens weighs a cluster by |C|^(1 - 1 / T)
        weighed = shares(temperature=0.5) * head.members.counts[head.cluster_of] ** (1 - 1 / 0.5)
        torch.testing.assert_close(weighed / weighed.sum(), on_tokens(temperature=0.5), atol=1e-3, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("decisions", [0, 1, 9])
def test_guided_decisions_leaves_the_later_decisions_to_the_condition(decisions):
    # Chi-square of 20,000 draws against the guided clusters and the guided or unguided members; false-alarm rate 1e-4.
    head, draws, scale = model_of("masc-two-level").head, 20_000, 2.0
    states = torch.randn(2, 32, generator=torch.Generator().manual_seed(4)) * 0.5
    config = SamplingConfig(guidance=scale, guided_decisions=decisions)
    uniforms = torch.from_numpy(np.random.default_rng(0).random((draws, 2)))
    tokens = head.sample(states.repeat_interleave(draws, dim=0), SamplingPick(config, uniforms, scale))[:draws]

    every = torch.arange(N)
    cluster, member = head.log_probs(states[:, None].expand(2, N, 32), every.expand(2, N)).unbind(-1)
    within = torch.nn.functional.one_hot(head.cluster_of).double()

    def guided(logits, groups):
        unscaled = guide(logits, scale)[0].double().exp()
        return unscaled / (groups @ (groups.T @ unscaled))

    first = within.argmax(0)  # a token of each cluster
    clusters = guided(cluster[:, first], torch.ones(within.shape[1], 1, dtype=torch.double))[head.cluster_of]
    members = member[0].double().exp() if decisions == 1 else guided(member, within)
    expected = (clusters * members * draws).numpy()
    assert abs(expected.sum() / draws - 1) < 1e-5
    observed = np.bincount(tokens.numpy(), minlength=N)
    rare = expected < 5
    pooled = [np.append(x[~rare], x[rare].sum()) for x in (observed, expected)]
    statistic = (np.square(pooled[0] - pooled[1]) / np.maximum(pooled[1], 1e-9)).sum()
    assert stats.chi2.sf(statistic, len(pooled[0]) - 1) > 1e-4

    # Guidance on the tokens is a third distribution, because the clusters' normalisers differ.
    on_tokens = guide(all_probabilities(head, states).log(), scale).softmax(-1)[0].numpy()
    assert np.abs(expected / draws - on_tokens).sum() > 0.05
