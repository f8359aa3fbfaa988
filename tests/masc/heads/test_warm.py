"""Heads that start from a flat model: exact where they can be, near elsewhere."""

import numpy as np
import pytest
import torch
from head_cases import TREES, D, all_probabilities, config_of, hidden, new_head

from masc.heads.registry import build_head
from masc.heads.warm import FlatStart, node_log_sum_exp

M = 600


def steady(batch, seed=1):
    """Hidden states with a part that is the same everywhere, as those of a trained model have."""
    return hidden(batch, seed) + 2 * (torch.arange(D) < 4)


def flat_start(num_tokens):
    rows = torch.randn(num_tokens, D, generator=torch.Generator().manual_seed(3)) / 2
    states = steady(M)
    return FlatStart(rows, lambda: (states, states)), rows


def nats(head, rows, h):
    """Mean nats of tokens that follow the flat model, under it and under the head."""
    wanted = (h @ rows.T).softmax(-1)
    return [-(wanted * p.log()).sum(-1).mean().item() for p in (wanted, all_probabilities(head, h))]


@pytest.mark.parametrize("kind", ["flat", "tree-shared", "masc", "masc-two-level", "masc-tree"])
def test_with_a_cluster_for_each_token_a_head_starts_as_the_flat_model(kind):
    flat, rows = flat_start(32)
    tree = TREES["balanced"][0]
    config = config_of(kind, 32, True)
    head = build_head(config, D, 32, tree)
    made = head.start_from(flat)
    assert "copied" in made["output.weight"]
    h = hidden(50, seed=7)
    torch.testing.assert_close(all_probabilities(head, h), (h @ rows.T).softmax(-1))
    if kind == "masc":
        assert torch.equal(head.output.weight, rows)


@pytest.mark.parametrize("tree", TREES)
def test_a_member_is_as_likely_within_its_cluster_as_in_the_flat_model(tree):
    head = new_head("masc-two-level", tree)
    flat, rows = flat_start(head.num_tokens)
    head.start_from(flat)
    h, tokens = hidden(head.num_tokens, seed=7), torch.arange(head.num_tokens)
    logits, own = h @ rows.T, head.cluster_of
    within = logits.gather(1, tokens[:, None]) - node_log_sum_exp(logits, own, head.num_clusters).gather(
        1, own[:, None]
    )
    torch.testing.assert_close(head.log_probs(h, tokens)[:, 1], within[:, 0])


@pytest.mark.parametrize("which", ["masc", "masc-two-level", "masc-tree", "masc-tree, balanced"])
@pytest.mark.parametrize("tree", TREES)
def test_a_head_starts_nearer_to_the_flat_model_than_a_new_head(which, tree):
    head = new_head(which, tree)
    flat, rows = flat_start(head.num_tokens)
    h = steady(100, seed=7)
    least, cold = nats(head, rows, h)
    assert head.start_from(flat)
    warm = nats(head, rows, h)[1]
    share = 0.75 if which == "masc" else 0.15  # its members are uniform
    assert least - 1e-4 < warm < least + share * (cold - least)


@pytest.mark.parametrize("which", ["adaptive", "bits", "bits in a chain", "subtoken"])
def test_other_heads_stay_new_and_say_so(which):
    head = new_head(which, "average linkage")
    before = {name: value.clone() for name, value in head.state_dict().items()}
    assert head.start_from(flat_start(head.num_tokens)[0]) == {}
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())


def test_the_fit_is_the_ridge_regression_in_chunks_or_whole(monkeypatch):
    flat, rows = flat_start(40)
    node_of = torch.arange(40) % 7
    whole = flat.node_rows(node_of, 7)
    wanted = torch.stack([(steady(M) @ rows.T)[:, node_of == node].logsumexp(-1) for node in range(7)], dim=-1)
    squares = steady(M).double().T @ steady(M).double()
    squares += 0.01 * squares.diagonal().mean() * torch.eye(D)
    torch.testing.assert_close(whole, torch.linalg.solve(squares, steady(M).double().T @ wanted.double()).T.float())
    monkeypatch.setattr("masc.heads.warm.CHUNK", 4 * 40 * 64)
    torch.testing.assert_close(flat.node_rows(node_of, 7), whole)


def test_logits_far_apart_stay_finite():
    found = node_log_sum_exp(torch.tensor([[0.0, -500.0, -501.0]]), torch.tensor([0, 1, 1]), 2)
    torch.testing.assert_close(found, torch.tensor([[0.0, -500 + np.log1p(np.exp(-1))]], dtype=torch.float32))
