"""Laws of all heads of the registry: normalised, sampled as they say, uniform at first, the same in chunks."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from head_cases import (
    HEADS_TO_TEST,
    TREES,
    D,
    Draws,
    N,
    all_probabilities,
    compute_in_chunks,
    draw,
    head_of,
    hidden,
    new_head,
)
from scipy import stats

from masc.heads.base import Follow, ImageHead
from masc.heads.config import CONFIGS
from masc.heads.registry import HEADS

CASES = [(head, tree) for head in HEADS_TO_TEST for tree in TREES]
every_case = pytest.mark.parametrize(("kind", "tree"), CASES)


def test_every_kind_has_a_config_and_a_head_and_is_tested():
    assert list(HEADS) == list(CONFIGS)
    assert all(config(name="x").kind == kind for kind, config in CONFIGS.items())
    assert {kind for kind, _ in HEADS_TO_TEST.values()} == set(HEADS)


@every_case
def test_probabilities_over_all_tokens_sum_to_one(kind, tree):
    total = all_probabilities(head_of(kind, tree), hidden(6)).sum(-1)
    torch.testing.assert_close(total, torch.ones(6), atol=1e-5, rtol=0)


@every_case
def test_there_is_one_log_probability_a_decision(kind, tree):
    head = head_of(kind, tree)
    found = head.log_probs(hidden(6).view(2, 3, D), torch.arange(6).view(2, 3))
    assert found.shape == (2, 3, head.num_decisions) and found.dtype == torch.float32


@every_case
def test_samples_follow_the_log_probs(kind, tree):
    # Chi-square over N tokens of 20,000 draws at one hidden state; false-alarm rate 1e-4 a case, seed fixed.
    head, draws = head_of(kind, tree), 20_000
    h = hidden(1) * 0.5
    with torch.no_grad():
        uniforms = np.random.default_rng(7).random((draws, head.num_decisions))
        tokens = draw(head, h.expand(draws, -1), Draws(uniforms))
        expected = all_probabilities(head, h)[0].double().numpy() * draws
    observed = np.bincount(tokens.numpy(), minlength=head.num_tokens)
    rare = expected < 5
    pooled = [np.append(x[~rare], x[rare].sum()) for x in (observed, expected)]
    keep = pooled[1] > 0
    statistic = (np.square(pooled[0] - pooled[1])[keep] / pooled[1][keep]).sum()
    assert stats.chi2.sf(statistic, keep.sum() - 1) > 1e-4


@every_case
def test_the_path_of_a_token_leads_to_it(kind, tree):
    head = head_of(kind, tree)
    tokens = torch.arange(head.num_tokens)
    path = head.path(tokens)
    assert path.shape == (head.num_decisions, len(tokens))
    assert torch.equal(draw(head, hidden(len(tokens)), Follow(path)), tokens)


@every_case
def test_a_heads_own_log_probs_are_those_of_its_decisions(kind, tree):
    head = head_of(kind, tree)
    tokens = torch.arange(head.num_tokens)
    states = hidden(len(tokens))
    followed = Follow(head.path(tokens))
    draw(head, states, followed)
    expected = torch.stack(followed.kept, dim=-1)
    torch.testing.assert_close(head.log_probs(states[:, None], tokens[:, None])[:, 0], expected, atol=2e-5, rtol=1e-5)


class Equal(Follow):
    """A pick that finds all learned choices equally likely, or fails."""

    def __call__(self, logits):
        possible = logits > torch.finfo(torch.float32).min / 2
        mean = logits.where(possible, 0).sum(-1) / possible.sum(-1)
        assert ((logits - mean[:, None]).abs() < 1e-6).where(possible, True).all()
        return super().__call__(logits)

    def fixed(self, logits):
        return Follow.__call__(self, logits)


@every_case
def test_a_new_head_makes_uniform_choices(kind, tree):
    head = new_head(kind, tree)
    tokens = torch.arange(head.num_tokens)
    draw(head, hidden(len(tokens)), Equal(head.path(tokens)))


@every_case
def test_the_loss_reaches_the_parameters_of_the_head(kind, tree):
    head = head_of(kind, tree)
    tokens = torch.arange(head.num_tokens)
    head.log_probs(hidden(len(tokens))[None], tokens[None]).sum().backward()
    for name, parameter in head.named_parameters():
        assert not parameter.numel() or (parameter.grad is not None and parameter.grad.isfinite().all()), name
    assert {id(table) for table in head.tables()} <= {id(parameter) for parameter in head.parameters()}


@pytest.mark.parametrize("kind", HEADS_TO_TEST)
def test_chunks_change_neither_values_nor_gradients(kind, monkeypatch):
    head = head_of(kind, "average linkage")
    states, tokens = hidden(24).view(4, 6, D).requires_grad_(), torch.arange(24).view(4, 6)
    weights = torch.rand(4, 6, generator=torch.Generator().manual_seed(3))
    parameters = [states, *head.parameters()]

    def both(weight):
        values = head.log_probs(states, tokens)
        return values, torch.autograd.grad((values.sum(-1) * weight).mean(), parameters, allow_unused=True)

    whole = [both(weight) for weight in (1.0, weights)]
    compute_in_chunks(monkeypatch, 300)
    for (values, gradients), weight in zip(whole, (1.0, weights), strict=True):
        again, others = both(weight)
        torch.testing.assert_close(again, values, atol=1e-5, rtol=1e-5)
        for one, other in zip(gradients, others, strict=True):
            if one is not None or other is not None:
                torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", HEADS_TO_TEST)
def test_a_position_reads_no_other(kind):
    head = head_of(kind, "average linkage")
    if isinstance(head, ImageHead):
        pytest.skip("its second network reads the order of the positions")
    states, tokens, order = hidden(10), torch.arange(10), torch.randperm(10, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(head.log_probs(states, tokens)[order], head.log_probs(states[order], tokens[order]))


@pytest.mark.parametrize("chunk", [None, 300], ids=["whole", "in chunks"])
@pytest.mark.parametrize("kind", HEADS_TO_TEST)
def test_in_bf16_a_head_is_normalised_and_its_gradients_are_finite(kind, chunk, monkeypatch):
    head, weights = head_of(kind, "average linkage"), torch.rand(2, 1, generator=torch.Generator().manual_seed(3))
    if chunk is not None:
        compute_in_chunks(monkeypatch, chunk)
    tokens, states = torch.arange(N).repeat(2), (hidden(2) * 0.5).repeat_interleave(N, dim=0)
    with torch.autocast("cpu", torch.bfloat16):
        found = head.log_probs(states[:, None], tokens[:, None])
    assert found.dtype == torch.float32 and found.isfinite().all()
    log_p = found.sum(-1).view(2, N)
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(2), atol=2e-2, rtol=0)
    (log_p * weights).mean().backward()
    for name, parameter in head.named_parameters():
        assert not parameter.numel() or (parameter.grad is not None and parameter.grad.isfinite().all()), name


def test_options_of_one_head_are_refused_by_another():
    own = {kind: {field.name for field in fields(config)} for kind, config in CONFIGS.items()}
    assert "levels" not in own["masc"] and "members" not in own["masc-tree"]
    with pytest.raises(TypeError, match="levels"):
        replace(CONFIGS["masc"](name="x"), levels=[2])
