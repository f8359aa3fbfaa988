"""What single heads promise: flat, masc, two levels and trees against one another and against cross-entropy."""

import numpy as np
import pytest
import torch
from head_cases import TREE, D, Draws, N, compute_in_chunks, head_of, hidden, randomised
from scipy import stats

from masc.heads.config import AdaptiveConfig, BitsConfig, FlatConfig, MascConfig, MascTreeConfig, MascTwoLevelConfig
from masc.heads.flat import FlatHead
from masc.heads.masc import MascHead, MascTwoLevelHead
from masc.heads.registry import build_head
from masc.heads.shared import TreeSharedHead
from masc.heads.tree import MascTreeHead
from masc.runtime.errors import InputError
from masc.tree import Partition

IDENTITY = Partition(np.arange(N))


def likelihood(head, bf16):
    """Log-probabilities of 2 N tokens, and gradients of hidden states and rows."""
    states, tokens = hidden(2 * N).requires_grad_(), torch.arange(2 * N) % N
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        log_p = head.log_probs(states, tokens).sum(-1)
    return log_p, *torch.autograd.grad(log_p.mean(), (states, head.output.weight))


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize("chunk", [None, 300], ids=["whole", "in chunks"])
@pytest.mark.parametrize("counts", [None, np.arange(N)], ids=["uniform", "frequency"])
def test_masc_with_k_equal_to_n_is_flat_exactly(counts, chunk, bf16, monkeypatch):
    flat, masc = randomised(FlatHead(D, N)), randomised(MascHead(D, IDENTITY, counts))
    if chunk is not None:
        compute_in_chunks(monkeypatch, chunk)
    for ours, theirs in zip(likelihood(masc, bf16), likelihood(flat, bf16), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize("chunk", [None, 300], ids=["whole", "in chunks"])
def test_tree_shared_is_the_flat_head_of_its_rows_exactly(chunk, bf16, monkeypatch):
    shared = randomised(TreeSharedHead(D, [TREE.cut(4), IDENTITY]))
    if chunk is not None:
        compute_in_chunks(monkeypatch, chunk)
    for ours, theirs in zip(likelihood(shared, bf16), likelihood(shared.folded(), bf16), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("chunk", [None, 300], ids=["whole", "in chunks"])
@pytest.mark.parametrize("kind", [MascTwoLevelHead, MascTreeHead])
def test_learned_members_with_k_equal_to_n_are_flat_up_to_rounding(kind, chunk, monkeypatch):
    # Not bit for bit: a product with the rows of both levels may add in another order, and a tree computes its
    # log-sum-exp by another function.
    head, flat = randomised(kind(D, IDENTITY if kind is MascTwoLevelHead else [IDENTITY])), FlatHead(D, N)
    with torch.no_grad():
        flat.output.weight.copy_(head.output.weight[:N])
    if chunk is not None:
        compute_in_chunks(monkeypatch, chunk)
    values, states, rows = likelihood(head, False)
    for ours, theirs in zip((values, states, rows[:N]), likelihood(flat, False), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert not rows[N:].any()  # an only member is certain


def test_masc_with_one_cluster_costs_ln_n():
    head = randomised(MascHead(D, TREE.cut(1)))
    nats = -head.log_probs(hidden(6), torch.arange(6)).sum(-1)
    torch.testing.assert_close(nats, torch.full((6,), float(np.log(N))))


def test_masc_with_one_cluster_and_frequent_members_costs_the_entropy_of_single_tokens():
    # One is added to each count.
    counts = np.arange(N) ** 2
    share = (counts + 1) / (counts + 1).sum()
    head = randomised(MascHead(D, TREE.cut(1), counts))
    nats = -head.log_probs(hidden(N), torch.arange(N)).sum(-1).detach().numpy()
    np.testing.assert_allclose(nats, -np.log(share), rtol=1e-5)
    assert share @ nats == pytest.approx(stats.entropy(share), rel=1e-5)


def test_masc_loss_has_the_gradient_of_cluster_cross_entropy():
    # MASC, Eq. 5: cross-entropy over the K clusters.
    cut = TREE.cut(12)
    head = randomised(MascHead(D, cut))
    tokens = torch.arange(6)
    (ours,) = torch.autograd.grad(-head.log_probs(hidden(6), tokens).sum(), head.output.weight)
    clusters = torch.from_numpy(cut.cluster_of)[tokens]
    loss = torch.nn.functional.cross_entropy(head.output(hidden(6)), clusters, reduction="sum")
    (theirs,) = torch.autograd.grad(loss, head.output.weight)
    torch.testing.assert_close(ours, theirs)


@torch.no_grad()
def test_a_tree_of_one_cut_is_the_two_level_head():
    # The same rows in another order: the tree numbers its nodes along one order of the tokens.
    cut = TREE.cut(12)
    two_level, tree = randomised(MascTwoLevelHead(D, cut)), MascTreeHead(D, [cut])
    tokens, h = torch.arange(N), hidden(N)
    with torch.no_grad():
        clusters, members = two_level.output.weight.split([12, N])
        tree.output.weight[tree.node_of[0]] = clusters[two_level.cluster_of]
        tree.output.weight[12 + tree.node_of[1]] = members
    torch.testing.assert_close(tree.log_probs(h, tokens), two_level.log_probs(h, tokens), atol=1e-5, rtol=1e-5)
    uniforms = np.random.default_rng(3).random((N, 2))
    drawn = [head.sample(h, Draws(uniforms)) for head in (two_level, tree)]
    clusters = [two_level.cluster_of[tokens] for tokens in drawn]
    assert torch.equal(*clusters)  # members may stand in another order within their cluster


def test_a_level_of_a_tree_reads_the_children_that_are_met_and_no_other_row():
    head = head_of("masc-tree", "average linkage")
    tokens = torch.tensor([0, 5])
    head.log_probs(hidden(2), tokens).sum().backward()
    read = (head.output.weight.grad.abs().sum(1) > 0).split(head.sizes)
    assert read[0].all()
    for level, table in enumerate(head.below, start=1):
        met = torch.zeros(head.sizes[level], dtype=torch.bool)
        for parent in head.node_of[level - 1, tokens]:
            children = slice(table.first[parent], table.first[parent] + table.counts[parent])
            met[children] = table.counts[parent] > 1  # a single child is certain: its gradient is zero
        assert torch.equal(read[level], met)


def test_cuts_come_from_the_config_and_the_context_shows_clusters_only_if_asked():
    assert FlatConfig(name="f").cuts(N) == [] and not FlatConfig(name="f").uses_tree
    assert MascConfig(name="m").cuts(16384) == [8192]
    assert MascTwoLevelConfig(name="m", num_clusters=5).cuts(N) == [5]
    assert MascTreeConfig(name="t").cuts(1024) == [32, 512]
    assert MascConfig(name="m", context="cluster").shows_clusters and not MascConfig(name="m").shows_clusters
    with pytest.raises(ValueError, match="token or cluster"):
        MascConfig(name="m", context="pixel")
    with pytest.raises(ValueError, match="rise from the coarsest"):
        MascTreeConfig(name="t", levels=[8, 4])


def test_build_head_refuses_a_tree_that_does_not_fit():
    config = MascConfig(name="masc", num_clusters=5)
    assert isinstance(build_head(config, D, N, TREE), MascHead)
    with pytest.raises(ValueError, match="tree of 41 tokens, found one of 40"):
        build_head(config, D, 41, TREE)
    with pytest.raises(ValueError, match="tree of 40 tokens, found none"):
        build_head(config, D, N, None)
    with pytest.raises(InputError, match="partition in 7 clusters cannot be cut into 5"):
        build_head(config, D, N, Partition(np.arange(N) % 7))
    with pytest.raises(ValueError, match="level 1 is not nested in level 0"):
        MascTreeHead(D, [Partition(np.arange(N) % 7), TREE.cut(12)])


def test_the_number_of_clusters_of_bits_does_not_matter_on_a_tree():
    one, other = (build_head(BitsConfig(name="b", num_clusters=k), D, N, TREE) for k in (5, 12))
    assert torch.equal(one.code, other.code)


@pytest.mark.parametrize(
    ("more", "said"), [({"cutoffs": [4, N]}, "below the 40 tokens"), ({"div_value": 20.0}, "20 and 2")]
)
def test_an_adaptive_head_refuses_tails_without_tokens_or_width(more, said):
    config = AdaptiveConfig(name="a", **more)
    with pytest.raises(InputError, match=said):
        build_head(config, D, N, None, np.ones(N, np.int64))


@torch.no_grad()
def test_frequent_members_keep_their_shares_in_bf16():
    counts = np.random.default_rng(0).integers(0, 5000, N)
    heads = [MascHead(D, TREE.cut(3), counts).to(kind) for kind in (torch.float32, torch.bfloat16)]
    tokens = torch.arange(N)
    shares = [head.log_probs(hidden(N).to(head.output.weight.dtype), tokens)[:, 1] for head in heads]
    assert torch.equal(*shares)
    within = np.bincount(TREE.cut(3).cluster_of, counts + 1)[TREE.cut(3).cluster_of]
    np.testing.assert_allclose(shares[0].exp(), (counts + 1) / within, rtol=1e-6)


def test_a_tree_is_no_deeper_than_its_tokens_can_be_halved():
    assert MascTreeConfig(name="t", depth=5).cuts(32) == [2, 4, 8, 16]
    with pytest.raises(InputError, match=r"head\.depth must be at most 4, log2 of the 31 tokens; found 5"):
        MascTreeConfig(name="t", depth=5).cuts(31)
