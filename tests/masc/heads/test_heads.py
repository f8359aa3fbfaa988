"""Laws of all heads of the registry: normalised, sampled as they say, and equal to flat where they must be."""

import itertools
from dataclasses import fields

import numpy as np
import pytest
import torch
from scipy import stats

from masc.heads.config import CONFIGS, FlatConfig, MascConfig, MascTreeConfig, MascTwoLevelConfig
from masc.heads.flat import FlatHead
from masc.heads.masc import MascHead, MascTwoLevelHead
from masc.heads.registry import HEADS, build_head
from masc.heads.tree import MascTreeHead
from masc.linkage import average_linkage
from masc.runtime.errors import InputError
from masc.tree import Partition, Tree

N, D = 40, 16
TREE = Tree(average_linkage(np.random.default_rng(0).standard_normal((N, 3))).merges)
IDENTITY = Partition(np.arange(N))


def chain(num_tokens):
    """Each token joins the same cluster, one after another: every cut is one giant cluster and singletons."""
    return Tree(average_linkage(np.cumsum(np.arange(num_tokens, dtype=float))[:, None] ** 2).merges)


def balanced(num_tokens):
    """Pairs, pairs of pairs, and so on."""
    digits = (np.arange(num_tokens)[:, None] >> np.arange(6)) & 1
    return Tree(average_linkage(digits * 4.0 ** np.arange(6)).merges)


TREES = {
    "average linkage": (TREE, 12),
    "balanced": (balanced(32), 8),
    "one giant cluster": (chain(37), 9),
    "mostly singletons": (TREE, N - 2),
    "a prime number of tokens": (Tree(average_linkage(np.random.default_rng(1).standard_normal((41, 2))).merges), 13),
    "a partition": (Partition(np.arange(N) % 7), 7),
}


def config_of(kind, num_clusters, fixed):
    """A config of the kind with K clusters, or with a coarser cut too; a fixed partition has no other cut."""
    given = {"num_clusters": num_clusters, "levels": [num_clusters] if fixed else [4, num_clusters]}
    keys = {field.name for field in fields(CONFIGS[kind])}
    return CONFIGS[kind](name="t", **{key: value for key, value in given.items() if key in keys})


CASES = [(kind, name) for kind in HEADS for name in TREES]


def randomised(head, seed=0):
    with torch.no_grad():
        for table in head.tables():
            table.normal_(generator=torch.Generator().manual_seed(seed))
    return head


def head_of(kind, name):
    tree, num_clusters = TREES[name]
    config = config_of(kind, num_clusters, isinstance(tree, Partition))
    return randomised(build_head(config, D, tree.num_tokens, tree))


def hidden(batch, seed=1):
    return torch.randn(batch, D, generator=torch.Generator().manual_seed(seed))


def all_probabilities(head, h):
    """(B, D) -> (B, N), through the public method only."""
    tokens = torch.arange(head.num_tokens).expand(len(h), -1)
    return head.log_probs(h[:, None].expand(-1, head.num_tokens, -1), tokens).sum(-1).exp()


class Draws:
    """A pick without guidance: the inverse of the cumulative distribution at numbers (B, L) in [0, 1)."""

    def __init__(self, uniforms):
        self.uniforms = iter(torch.from_numpy(uniforms).T)

    def __call__(self, logits):
        cdf = logits.double().softmax(-1).cumsum(-1)
        return torch.searchsorted(cdf, next(self.uniforms)[:, None] * cdf[:, -1:], right=True)[:, 0]

    def uniform(self, sizes):
        return (next(self.uniforms) * sizes).long()


def test_every_kind_has_a_config_and_a_head():
    assert list(HEADS) == list(CONFIGS)
    assert all(config(name="x").kind == kind for kind, config in CONFIGS.items())


@pytest.mark.parametrize(("kind", "tree"), CASES)
def test_probabilities_over_all_tokens_sum_to_one(kind, tree):
    total = all_probabilities(head_of(kind, tree), hidden(6)).sum(-1)
    torch.testing.assert_close(total, torch.ones(6), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("kind", "tree"), CASES)
def test_there_is_one_log_probability_a_decision(kind, tree):
    head = head_of(kind, tree)
    assert head.log_probs(hidden(6), torch.arange(6)).shape == (6, head.num_decisions)
    assert head.log_probs(hidden(6).view(2, 3, D), torch.arange(6).view(2, 3)).shape[:2] == (2, 3)


@pytest.mark.parametrize(("kind", "tree"), CASES)
def test_samples_follow_the_log_probs(kind, tree):
    # Chi-square over N tokens of 20,000 draws at one hidden state; false-alarm rate 1e-4 a case, seed fixed.
    head, draws = head_of(kind, tree), 20_000
    h = hidden(1) * 0.5
    with torch.no_grad():
        uniforms = np.random.default_rng(7).random((draws, head.num_decisions))
        tokens = head.sample(h.expand(draws, -1), Draws(uniforms))
        expected = all_probabilities(head, h)[0].double().numpy() * draws
    observed = np.bincount(tokens.numpy(), minlength=head.num_tokens)
    rare = expected < 5
    pooled = [np.append(x[~rare], x[rare].sum()) for x in (observed, expected)]
    keep = pooled[1] > 0
    statistic = (np.square(pooled[0] - pooled[1])[keep] / pooled[1][keep]).sum()
    assert stats.chi2.sf(statistic, keep.sum() - 1) > 1e-4


@pytest.mark.parametrize(("kind", "tree"), CASES)
def test_a_new_head_makes_uniform_choices(kind, tree):
    # Every decision of a new head is uniform among its choices, so that no child is more likely than a sibling.
    made, num_clusters = TREES[tree]
    config = config_of(kind, num_clusters, isinstance(made, Partition))
    head = build_head(config, D, made.num_tokens, made)
    probabilities = all_probabilities(head, hidden(2))
    cuts = [made.cut(k) for k in config.cuts(made.num_tokens)] or [Partition(np.zeros(made.num_tokens, np.int64))]
    inside = 1 / (cuts[0].num_clusters * cuts[-1].sizes[cuts[-1].cluster_of])
    for coarse, fine in itertools.pairwise(cuts):  # clusters of the finer cut in each of the coarser one
        inside /= np.bincount(coarse.cluster_of[fine.members[fine.offsets[:-1]]])[coarse.cluster_of]
    expected = torch.from_numpy(inside)
    torch.testing.assert_close(probabilities, expected.float().expand(2, -1))


@pytest.mark.parametrize(("kind", "tree"), CASES)
def test_the_loss_reaches_the_tables_of_the_head(kind, tree):
    head = head_of(kind, tree)
    head.log_probs(hidden(6), torch.arange(6)).sum().backward()
    learned = [table for table in head.tables() if len(table)]
    assert learned and all(table.grad is not None and table.grad.isfinite().all() for table in learned)
    assert {id(table) for table in head.tables()} <= {id(parameter) for parameter in head.parameters()}


def test_masc_with_k_equal_to_n_is_flat_exactly():
    flat, masc = randomised(FlatHead(D, N)), randomised(MascHead(D, IDENTITY))
    tokens = torch.arange(6)
    assert torch.equal(flat.log_probs(hidden(6), tokens).sum(-1), masc.log_probs(hidden(6), tokens).sum(-1))


def test_masc_with_one_cluster_costs_ln_n():
    head = randomised(MascHead(D, TREE.cut(1)))
    nats = -head.log_probs(hidden(6), torch.arange(6)).sum(-1)
    torch.testing.assert_close(nats, torch.full((6,), float(np.log(N))))


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


def test_a_tree_of_one_cut_is_the_two_level_head():
    # The same rows in another order: the tree numbers its nodes along one order of the tokens.
    cut = TREE.cut(12)
    two_level, tree = randomised(MascTwoLevelHead(D, cut)), MascTreeHead(D, [cut])
    tokens, h = torch.arange(N), hidden(N)
    with torch.no_grad():
        clusters, members = two_level.output.weight.split([12, N])
        tree.output.weight[tree.node_of[0]] = clusters[two_level.cluster_of]
        tree.output.weight[tree.node_of[1]] = members
    torch.testing.assert_close(tree.log_probs(h, tokens), two_level.log_probs(h, tokens), atol=1e-5, rtol=1e-5)
    uniforms = np.random.default_rng(3).random((N, 2))
    drawn = [head.sample(h, Draws(uniforms)) for head in (two_level, tree)]
    clusters = [two_level.cluster_of[tokens] for tokens in drawn]
    assert torch.equal(*clusters)  # members may stand in another order within their cluster


def test_the_rows_of_a_trees_children_are_runs():
    head = head_of("masc-tree", "average linkage")
    parents = torch.repeat_interleave(torch.arange(len(head.num_children)), head.num_children)
    starts = head.first_child[head.num_children > 0]
    assert torch.equal(starts, starts.sort().values) and len(parents) == len(head.num_children) - head.first_rows[1]
    for level in range(1, head.num_decisions):
        above, here = head.node_of[level - 1], head.node_of[level]
        assert ((head.first_child[above] <= here) & (here < head.first_child[above] + head.num_children[above])).all()


def test_a_level_of_a_tree_reads_the_children_that_are_met_and_no_other_row():
    head = head_of("masc-tree", "average linkage")
    tokens = torch.tensor([0, 5])
    head.log_probs(hidden(2), tokens).sum().backward()
    read = head.output.weight.grad.abs().sum(1) > 0
    met = torch.zeros(len(read), dtype=torch.bool)
    met[: head.first_rows[1]] = True
    for level in range(head.num_decisions - 1):
        for node in head.node_of[level, tokens]:
            children = slice(head.first_child[node], head.first_child[node] + head.num_children[node])
            met[children] = head.num_children[node] > 1  # a single child is certain: its gradient is zero
    assert torch.equal(read, met)


def test_fine_level_guidance_equals_cluster_level_guidance_for_uniform_members():
    # log p differs by a constant within a cluster, so guiding tokens or clusters is the same.
    head, scale = randomised(MascHead(D, TREE.cut(12))), 3.0
    conditional, unconditional = all_probabilities(head, hidden(2)).log()
    fine = (unconditional + (conditional - unconditional) * scale).softmax(-1)
    logits = head.output(hidden(2))
    guided = (logits[1] + (logits[0] - logits[1]) * scale).softmax(-1)
    by_cluster = torch.zeros(12).index_add(0, head.cluster_of, fine)
    # Fine guidance keeps 1 / |C| to the power scale - (scale - 1) = 1, so cluster marginals agree.
    torch.testing.assert_close(by_cluster, guided, atol=1e-5, rtol=1e-4)
    assert int(head.counts.sum()) == N


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
