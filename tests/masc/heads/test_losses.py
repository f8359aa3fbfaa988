"""Losses in chunks against dense ones: values, gradients, a second backward pass, bf16."""

import pytest
import torch
from host_reads import NoHostReads

from masc.heads import losses
from masc.heads.losses import Among, AmongChildren, Children, linear_log_prob, log_softmax_at, path_log_probs

M, D, V = 50, 8, 30
COUNTS = torch.tensor([1, 4, 9, 2, 14])  # children of five parents, one of them an only child


@pytest.fixture
def in_chunks(monkeypatch):
    monkeypatch.setattr(losses, "WHOLE", 0)
    monkeypatch.setattr(losses, "CHUNK", 200)


@pytest.fixture
def given():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(M, D, generator=generator).requires_grad_()
    weight = torch.randn(V, D, generator=generator).requires_grad_()
    parent = torch.randint(len(COUNTS), (M,), generator=generator)
    place = (torch.rand(M, generator=generator) * COUNTS[parent]).long()
    return hidden, weight, parent, place


def table():
    """Rows in another order than that of the parents."""
    return Children(COUNTS.cumsum(0) - COUNTS, COUNTS, torch.randperm(V, generator=torch.Generator().manual_seed(1)))


def dense(hidden, weight, parent, place):
    """log p(child | parent) by one product with all rows and a mask."""
    children = table()
    owner = torch.empty(V, dtype=torch.long)
    owner[children.rows] = torch.repeat_interleave(COUNTS)
    logits = (hidden @ weight.T).masked_fill(owner != parent[:, None], -torch.inf)
    return log_softmax_at(logits, children.rows[children.first[parent] + place])


@pytest.mark.usefixtures("in_chunks")
@pytest.mark.parametrize("weighted", [False, True], ids=["one gradient", "a gradient a position"])
def test_a_choice_among_children_is_the_masked_softmax(given, weighted):
    hidden, weight, parent, place = given
    ours = path_log_probs(hidden, [(weight, AmongChildren(table(), parent, place))])[:, 0]
    theirs = dense(*given)
    torch.testing.assert_close(ours, theirs)
    scale = torch.rand(M, generator=torch.Generator().manual_seed(2)) if weighted else 1.0
    wanted = torch.autograd.grad((theirs * scale).mean(), (hidden, weight))
    torch.testing.assert_close(torch.autograd.grad((ours * scale).mean(), (hidden, weight)), wanted)


@pytest.mark.usefixtures("in_chunks")
def test_a_second_backward_pass_gives_the_same_gradients(given):
    hidden, weight, *_ = given
    chosen = torch.arange(M) % V
    loss = -linear_log_prob(hidden, weight, chosen).mean()
    expected = torch.autograd.grad(-log_softmax_at(hidden @ weight.T, chosen).mean(), (hidden, weight))
    for _ in range(2):
        torch.testing.assert_close(torch.autograd.grad(loss, (hidden, weight), retain_graph=True), expected)


@pytest.mark.usefixtures("in_chunks")
def test_the_host_does_not_read_the_gradient_of_a_sum(given):
    hidden, weight, *_ = given
    chosen = (torch.arange(M) % V).view(5, 10)
    expected = torch.autograd.grad(-log_softmax_at(hidden @ weight.T, chosen.flatten()).mean(), (hidden, weight))
    with NoHostReads():
        loss = -linear_log_prob(hidden.view(5, 10, D), weight, chosen)[..., None].sum() / M
        found = torch.autograd.grad(loss, (hidden, weight))
        with pytest.raises(AssertionError, match="the host reads"):
            torch.autograd.grad(linear_log_prob(hidden, weight, chosen.flatten()).mean(), (hidden, weight))
    torch.testing.assert_close(found, expected)


@pytest.mark.usefixtures("in_chunks")
def test_nothing_is_kept_for_a_gradient_where_none_is_wanted(given):
    hidden, weight, parent, place = given
    with torch.no_grad():
        values = path_log_probs(hidden, [(weight, Among(parent)), (weight, AmongChildren(table(), parent, place))])
    assert values.shape == (M, 2) and not values.requires_grad


@pytest.mark.usefixtures("in_chunks")
def test_in_bf16_the_loss_and_its_gradients_stay_float32_and_near(given):
    # bf16 keeps 8 bits: logits of about 3 round by 0.01, and so do the log-probabilities.
    hidden, weight, parent, place = given
    with torch.autocast("cpu", torch.bfloat16):
        values = path_log_probs(hidden, [(weight, Among(parent)), (weight, AmongChildren(table(), parent, place))])
    assert values.dtype == torch.float32
    exact = torch.stack([log_softmax_at(hidden @ weight.T, parent), dense(*given)], dim=-1)
    torch.testing.assert_close(values, exact, atol=0.08, rtol=0)
    found = torch.autograd.grad(values.mean(), (hidden, weight))
    assert all(gradient.dtype == torch.float32 for gradient in found)
    for one, other in zip(found, torch.autograd.grad(exact.mean(), (hidden, weight)), strict=True):
        assert (one - other).norm() / other.norm() < 0.02


def test_positions_whose_parents_have_one_child_are_certain(given):
    hidden, weight, *_ = given
    nothing = torch.zeros(M, dtype=torch.long)
    values = path_log_probs(hidden, [(weight, AmongChildren(table(), nothing, nothing))])
    assert torch.equal(values, torch.zeros(M, 1))
    gradients = torch.autograd.grad(values.sum(), (hidden, weight))
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients)


@pytest.mark.usefixtures("in_chunks")
def test_no_group_is_larger_than_a_chunk(given):
    _, _, parent, _ = given
    seen = []
    for group in table().groups(parent.new_full((M,), 4), D):  # one parent of 14 children has all positions
        sizes = group.is_there.shape[1], group.is_child.shape[1]
        assert sizes[0] * (sizes[1] + D) <= 200
        seen.append(group.where)
    assert len(seen) > 1 and torch.equal(torch.cat(seen).sort().values, torch.arange(M))


def test_logits_of_children_refuse_to_be_trained_through(given):
    hidden, weight, parent, _ = given
    with pytest.raises(RuntimeError, match="has no gradient; override log_probs"):
        table().logits(hidden, weight, parent)
