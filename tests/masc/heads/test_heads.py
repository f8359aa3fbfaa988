"""Laws of heads: normalised, sampled as they say, and equal to flat where they must be."""

import numpy as np
import pytest
import torch
from scipy import stats

from llamagen.sampling.filters import SamplingConfig
from llamagen.sampling.generate import SamplingPick
from masc.heads.build import build_head
from masc.heads.config import HeadConfig
from masc.heads.flat import FlatHead
from masc.heads.masc import PathHead
from masc.linkage import average_linkage
from masc.tree import Partition, Tree

N, D = 40, 16
TREE = Tree(average_linkage(np.random.default_rng(0).standard_normal((N, 3))).merges)
IDENTITY = Partition(np.arange(N))


def randomised(head, seed=0):
    with torch.no_grad():
        head.output.weight.normal_(generator=torch.Generator().manual_seed(seed))
    return head


def heads():
    cut = TREE.cut(12)
    return {
        "flat": randomised(FlatHead(D, N)),
        "masc": randomised(PathHead(D, [cut], uniform_member=True)),
        "two-level": randomised(PathHead(D, [cut, IDENTITY], uniform_member=False)),
        "three-level": randomised(PathHead(D, [TREE.cut(4), cut, IDENTITY], uniform_member=False)),
        "two cuts, uniform": randomised(PathHead(D, [TREE.cut(4), cut], uniform_member=True)),
    }


def hidden(batch, seed=1):
    return torch.randn(batch, D, generator=torch.Generator().manual_seed(seed))


def all_probabilities(head, h):
    """(B, D) -> (B, N), through the public method only."""
    tokens = torch.arange(N).expand(len(h), N)
    return head.log_probs(h[:, None].expand(-1, N, -1), tokens).sum(-1).exp()


@pytest.mark.parametrize("name", heads())
def test_probabilities_over_all_tokens_sum_to_one(name):
    total = all_probabilities(heads()[name], hidden(6)).sum(-1)
    torch.testing.assert_close(total, torch.ones(6), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", heads())
def test_there_is_one_log_probability_a_decision(name):
    head = heads()[name]
    assert head.log_probs(hidden(6), torch.arange(6)).shape == (6, head.num_decisions)
    assert head.log_probs(hidden(6).view(2, 3, D), torch.arange(6).view(2, 3)).shape[:2] == (2, 3)


@pytest.mark.parametrize("name", heads())
def test_samples_follow_the_log_probs(name):
    # Chi-square over N tokens of 20,000 draws at one hidden state; false-alarm rate 1e-4 a head, seed fixed.
    head, draws = heads()[name], 20_000
    h = hidden(1) * 0.5
    uniforms = torch.from_numpy(np.random.default_rng(7).random((draws, head.num_decisions)))
    tokens = head.sample(h.expand(draws, -1), SamplingPick(SamplingConfig(), uniforms, 1.0))
    expected = all_probabilities(head, h)[0].detach().double().numpy() * draws
    observed = np.bincount(tokens.numpy(), minlength=N)
    rare = expected < 5
    pooled = [np.append(x[~rare], x[rare].sum()) for x in (observed, expected)]
    keep = pooled[1] > 0
    statistic = (np.square(pooled[0] - pooled[1])[keep] / pooled[1][keep]).sum()
    assert stats.chi2.sf(statistic, keep.sum() - 1) > 1e-4


def test_masc_with_k_equal_to_n_is_flat_exactly():
    flat, masc = randomised(FlatHead(D, N)), randomised(PathHead(D, [IDENTITY], uniform_member=True))
    tokens = torch.arange(6)
    assert torch.equal(flat.log_probs(hidden(6), tokens).sum(-1), masc.log_probs(hidden(6), tokens).sum(-1))


def test_masc_with_one_cluster_costs_ln_n():
    head = randomised(PathHead(D, [TREE.cut(1)], uniform_member=True))
    nats = -head.log_probs(hidden(6), torch.arange(6)).sum(-1)
    torch.testing.assert_close(nats, torch.full((6,), float(np.log(N))))


def test_a_new_head_makes_uniform_choices():
    cut, tokens = TREE.cut(12), torch.arange(N)
    h = hidden(N)
    torch.testing.assert_close(-FlatHead(D, N).log_probs(h, tokens).sum(-1), torch.full((N,), float(np.log(N))))
    sizes = torch.from_numpy(cut.sizes[cut.cluster_of]).float()
    for head in (PathHead(D, [cut], uniform_member=True), PathHead(D, [cut, IDENTITY], uniform_member=False)):
        torch.testing.assert_close(-head.log_probs(h, tokens).sum(-1), np.log(12) + sizes.log())


def test_masc_loss_has_the_gradient_of_cluster_cross_entropy():
    # MASC, Eq. 5: cross-entropy over the K clusters.
    cut = TREE.cut(12)
    head = randomised(PathHead(D, [cut], uniform_member=True))
    tokens = torch.arange(6)
    (ours,) = torch.autograd.grad(-head.log_probs(hidden(6), tokens).sum(), head.output.weight)
    clusters = torch.from_numpy(cut.cluster_of)[tokens]
    loss = torch.nn.functional.cross_entropy(head.output(hidden(6)), clusters, reduction="sum")
    (theirs,) = torch.autograd.grad(loss, head.output.weight)
    torch.testing.assert_close(ours, theirs)


def test_fine_level_guidance_equals_cluster_level_guidance_for_uniform_members():
    # log p differs by a constant within a cluster, so guiding tokens or clusters is the same.
    head, scale = heads()["masc"], 3.0
    conditional, unconditional = all_probabilities(head, hidden(2)).log()
    fine = (unconditional + (conditional - unconditional) * scale).softmax(-1)
    logits = head.output(hidden(2))
    guided = (logits[1] + (logits[0] - logits[1]) * scale).softmax(-1)
    cluster_of, counts = head.node_of[0], head.counts
    by_cluster = torch.zeros(12).index_add(0, cluster_of, fine)
    # Fine guidance keeps 1 / |C| to the power scale - (scale - 1) = 1, so cluster marginals agree.
    torch.testing.assert_close(by_cluster, guided, atol=1e-5, rtol=1e-4)
    assert int(counts.sum()) == N


def test_guided_halves_choose_alike_and_stay_in_the_cluster():
    head, cut = heads()["two-level"], TREE.cut(12)
    uniforms = torch.from_numpy(np.random.default_rng(0).random((50, 2)))
    chosen = []

    class Spy(SamplingPick):
        def __call__(self, logits):
            chosen.append(super().__call__(logits))
            return chosen[-1]

    both = torch.cat([hidden(50), hidden(50, seed=2)])
    tokens = head.sample(both, Spy(SamplingConfig(guidance=4.0), uniforms, 4.0))
    assert torch.equal(tokens[:50], tokens[50:])
    assert np.array_equal(cut.cluster_of[tokens], chosen[0]) and torch.equal(tokens, chosen[1])


def test_build_head_refuses_a_partition_that_does_not_fit():
    config = HeadConfig(name="masc", kind="masc")
    assert isinstance(build_head(config, D, N, TREE.cut(5)), PathHead)
    with pytest.raises(ValueError, match="partition of 41 tokens, found one of 40"):
        build_head(config, D, 41, TREE.cut(5))
    with pytest.raises(ValueError, match="not nested"):
        PathHead(D, [Partition(np.arange(N) % 7), TREE.cut(12), IDENTITY], uniform_member=False)
    with pytest.raises(ValueError, match="one cluster a token"):
        PathHead(D, [TREE.cut(12)], uniform_member=False)
