"""Each loss against its formula on the whole distribution, and the laws that hold at its limits."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from head_cases import HEADS_TO_TEST, TREE, D, N, config_of, randomised
from stage import CONFIGS, SCHEMAS, named_config
from torch import nn

from masc.heads import losses as head_losses
from masc.heads.config import FlatConfig, MascConfig, MascTwoLevelConfig, TreeSharedConfig
from masc.heads.losses import segment_logsumexp
from masc.heads.registry import build_head
from masc.losses.base import Parts
from masc.losses.config import CONFIGS as LOSS_CONFIGS
from masc.losses.config import (
    ClusterConfig,
    ContextNoiseConfig,
    LabelSmoothingConfig,
    RearConfig,
    SoftCodesConfig,
    SoftEncoderConfig,
    SoftTreeConfig,
)
from masc.losses.neighbours import entropy
from masc.losses.registry import LOSSES, build_loss
from masc.losses.soft import cut_shares, tree_entropy
from masc.runtime.errors import InputError
from masc.tree import Partition

VECTORS = np.random.default_rng(3).standard_normal((N, 3)).astype(np.float32)
FLAT = FlatConfig(name="flat")
SHARED = TreeSharedConfig(name="shared", levels=[4, 12])
HEADS = [FLAT, SHARED, MascConfig(name="masc", num_clusters=12), MascTwoLevelConfig(name="two", num_clusters=12)]
of_one_softmax = pytest.mark.parametrize("head", [FLAT, SHARED], ids=lambda head: head.name)


def case(head=FLAT, loss=None, tree=TREE, blocks=()):
    """A head with random weights, a loss beside it, hidden states (2, 5, D) and tokens (2, 5)."""
    built = randomised(build_head(head, D, N, TREE if head.uses_tree else None), 0)
    generator = torch.Generator().manual_seed(4)
    hidden = torch.randn(2, 5, D, generator=generator).requires_grad_()
    tokens = torch.randint(N, (2, 5), generator=generator)
    return built, loss and build_loss(loss, Parts(built, D, VECTORS, tree, list(blocks))), hidden, tokens


def given(tokens, progress=0.0, **more):
    return {"progress": torch.tensor(progress), "context": tokens} | more


def of_all(head, hidden):
    """Log-probabilities of all tokens: (2, 5, N)."""
    every = torch.arange(N).expand(*hidden.shape[:-1], N)
    return torch.stack([head.log_probs(hidden, each).sum(-1) for each in every.unbind(-1)], dim=-1)


def test_every_loss_has_a_config_a_class_and_a_file():
    assert {*LOSSES, "ce"} == set(LOSS_CONFIGS) <= {name.removesuffix("_schema") for name in SCHEMAS["loss"]}
    files = [file.stem for file in (CONFIGS / "loss").glob("*.yaml")]
    assert {named_config("loss", name).kind for name in files} == set(LOSS_CONFIGS)
    assert all(named_config("loss", name).name == name for name in files)


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("kind", [kind for kind in HEADS_TO_TEST if kind not in ("ctf", "masc-refine")])
def test_the_mean_log_probability_of_tokens_is_that_of_each_by_its_share(kind, chunked, monkeypatch):
    kind, more = HEADS_TO_TEST[kind]
    config = config_of(kind, 12, False, **more)
    counts = np.arange(N) if config.uses_counts else None
    head = randomised(build_head(config, D, N, TREE if config.uses_tree else None, counts), 0).eval()
    monkeypatch.setattr(head_losses, "WHOLE", 0 if chunked else head_losses.WHOLE)
    hidden, tokens, shares = torch.randn(2, 4, D), torch.randint(N, (2, 4, 3)), torch.rand(2, 4, 3)
    hidden.requires_grad_()
    found = head.mean_log_prob(hidden, tokens, shares)
    each = torch.stack([head.log_probs(hidden, tokens[..., place]).sum(-1) for place in range(3)], dim=-1)
    assert torch.allclose(found, (each * shares).sum(-1), atol=1e-4)
    wanted = [hidden, *head.tables()]
    for mine, theirs in zip(
        *(torch.autograd.grad(value.sum(), wanted, allow_unused=True) for value in (found, (each * shares).sum(-1))),
        strict=True,
    ):
        assert (mine is None) == (theirs is None) and (mine is None or torch.allclose(mine, theirs, atol=1e-4))


def test_the_segment_log_sum_exp_is_that_of_each_segment_however_far_they_lie_apart():
    segment_of = torch.tensor([0, 1, 0, 2, 1, 1])
    logits = torch.tensor([[0.0, -500.0, 1.0, 300.0, -501.0, -500.5], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]])
    logits = logits.double().requires_grad_()
    found = segment_logsumexp(logits, segment_of, 3)
    dense = torch.stack([logits[:, segment_of == segment].logsumexp(1) for segment in range(3)], dim=1)
    assert torch.allclose(found, dense)
    of_found, of_dense = (
        torch.autograd.grad(each.square().sum(), logits, retain_graph=True)[0] for each in (found, dense)
    )
    assert torch.allclose(of_found, of_dense)


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.name)
def test_soft_codes_are_the_cross_entropy_to_their_targets(head, shuffled):
    config = SoftCodesConfig(name="t", neighbours=6, temperature=0.7, weight=0.4, shuffled=shuffled)
    head, loss, hidden, tokens = case(head, config)
    targets = torch.zeros(N, N).scatter(1, loss.ids, loss.targets)
    assert targets.sum(1).numpy() == pytest.approx(1) and not targets.diagonal().any()
    mixed = 0.4 * targets + 0.6 * torch.eye(N)
    expected = (mixed[tokens] * of_all(head, hidden)).sum(-1)
    assert torch.allclose(loss(head, hidden, tokens, given(tokens)).sum(-1), expected, atol=1e-5)


def test_shuffled_targets_have_the_entropies_of_the_right_ones_and_other_neighbours():
    near, shuffled = (case(loss=SoftCodesConfig(name="t", shuffled=each))[1] for each in (False, True))
    own, other = (np.sort(entropy(loss.targets.double().numpy())) for loss in (near, shuffled))
    assert np.allclose(own, other) and not torch.equal(near.ids, shuffled.ids)
    assert torch.equal(shuffled.ids, case(loss=SoftCodesConfig(name="t", shuffled=True))[1].ids)


@pytest.mark.parametrize(
    "config",
    [SoftCodesConfig(name="t"), SoftTreeConfig(name="t", levels=[4, 12]), LabelSmoothingConfig(name="t", until=1.0)],
)
def test_soft_targets_sharpen_to_the_true_token(config):
    head, loss, hidden, tokens = case(loss=config)
    likelihood = head.log_probs(hidden, tokens)
    ends = [loss(head, hidden, tokens, given(tokens, progress)).mean().item() for progress in (0.0, 0.5, 1.0)]
    assert ends[2] == pytest.approx(likelihood.mean().item(), abs=1e-6)
    assert ends[1] == pytest.approx((ends[0] + ends[2]) / 2, abs=1e-6) and ends[0] != pytest.approx(ends[2], abs=1e-3)


@of_one_softmax
@pytest.mark.parametrize("chunked", [False, True])
def test_label_smoothing_is_torchs(head, chunked, monkeypatch):
    monkeypatch.setattr(head_losses, "WHOLE", 0 if chunked else head_losses.WHOLE)
    head, loss, hidden, tokens = case(head, LabelSmoothingConfig(name="t", weight=0.3))
    logits = F.linear(hidden, head.rows())
    expected = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), label_smoothing=0.3)
    found = -loss(head, hidden, tokens, given(tokens, 0.9)).sum() / tokens.numel()
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    wanted = [hidden, *head.parameters()]
    for mine, theirs in zip(*(torch.autograd.grad(each, wanted) for each in (found, expected)), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)


@of_one_softmax
def test_soft_tree_is_the_cross_entropy_to_uniform_targets_within_clusters(head):
    head, loss, hidden, tokens = case(head, SoftTreeConfig(name="t", levels=[4, 12], weight=0.5, entropy=2.0))
    targets = torch.zeros(N, N)
    for k, share in zip((4, 12), loss.shares, strict=True):
        cut = TREE.cut(k)
        same = torch.from_numpy(cut.cluster_of[:, None] == cut.cluster_of)
        targets += share * same / same.sum(1, keepdim=True)
    assert entropy(targets.double().numpy()).mean() == pytest.approx(2.0, abs=1e-5) == loss.target_entropy
    expected = ((0.5 * targets + 0.5 * torch.eye(N))[tokens] * of_all(head, hidden)).sum(-1)
    assert torch.allclose(loss(head, hidden, tokens, given(tokens)).sum(-1), expected, atol=1e-5)


def test_the_entropy_of_tree_targets_that_no_shares_give_is_refused():
    cuts = [TREE.cut(4), TREE.cut(12)]
    assert tree_entropy([TREE.cut(N)], np.ones(1)) == 0
    assert tree_entropy([TREE.cut(1)], np.ones(1)) == pytest.approx(np.log(N))
    with pytest.raises(InputError, match=r"must lie between .* for cuts at \[4, 12\] clusters, found 9"):
        cut_shares(cuts, 9)


@of_one_softmax
@pytest.mark.parametrize("chunked", [False, True])
def test_the_cluster_term_is_the_log_of_summed_probabilities(head, chunked, monkeypatch):
    monkeypatch.setattr(head_losses, "WHOLE", 0 if chunked else head_losses.WHOLE)
    head, loss, hidden, tokens = case(head, ClusterConfig(name="t", num_clusters=7, weight=0.3))
    of_each, cluster_of = of_all(head, hidden), torch.from_numpy(TREE.cut(7).cluster_of)
    summed = torch.stack([of_each[..., cluster_of == cluster].logsumexp(-1) for cluster in range(7)], dim=-1)
    expected = summed.gather(-1, cluster_of[tokens][..., None])[..., 0]
    found = loss(head, hidden, tokens, given(tokens))
    assert torch.allclose(found[..., 0], head.log_probs(hidden, tokens)[..., 0], atol=1e-6)
    assert torch.allclose(found[..., 1], 0.3 * expected, atol=1e-5)
    mine, theirs = (
        torch.autograd.grad(each.sum(), hidden, retain_graph=True)[0] for each in (found[..., 1], 0.3 * expected)
    )
    assert torch.allclose(mine, theirs, atol=1e-5)


def test_clusters_of_one_token_double_the_loss_and_one_cluster_adds_nothing():
    for k, factor in ((N, 2), (1, 1)):
        head, loss, hidden, tokens = case(loss=ClusterConfig(name="t", num_clusters=k))
        found = loss(head, hidden, tokens, given(tokens)).sum(-1)
        assert torch.allclose(found, factor * head.log_probs(hidden, tokens)[..., 0], atol=1e-6)


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.name)
def test_encoder_targets_are_the_softmax_of_minus_distances(head):
    head, loss, hidden, tokens = case(head, SoftEncoderConfig(name="t", neighbours=4, temperature=0.5, weight=1.0))
    near = torch.stack([tokens, *((tokens + shift) % N for shift in (1, 2, 3))], dim=-1)
    distances = torch.rand(2, 5, 4)
    found = loss(head, hidden, tokens, given(tokens, near=near, near_distances=distances)).sum(-1)
    targets = torch.exp(-distances / 0.5) / torch.exp(-distances / 0.5).sum(-1, keepdim=True)
    expected = (targets * of_all(head, hidden).gather(-1, near)).sum(-1)
    assert torch.allclose(found, expected, atol=1e-5)
    certain = torch.tensor([0.0, 1e4, 1e4, 1e4]).expand(2, 5, 4)
    found = loss(head, hidden, tokens, given(tokens, near=near, near_distances=certain)).sum(-1)
    assert torch.allclose(found, head.log_probs(hidden, tokens).sum(-1), atol=1e-5)


def rear(blocks, **settings):
    return partial(case, loss=RearConfig(name="t", width=8, **settings), blocks=blocks)


def test_rear_adds_cosines_to_vectors_of_the_token_before_and_of_the_next():
    blocks = [nn.Linear(D, D) for _ in range(4)]
    head, loss, hidden, tokens = rear(blocks, weight=0.6)()
    loss.initialise(torch.Generator().manual_seed(0))
    states = torch.randn(2, 2 + 4, D)  # two slots of a condition, four of tokens
    early, late = blocks[0](states), blocks[3](states)
    context = tokens.clone()
    context[0, 1] = (context[0, 1] + 1) % N
    found = loss(head, hidden, tokens, given(context))[..., 0]
    vectors = torch.from_numpy(VECTORS)
    for image in range(2):
        for place in range(5):
            slot = 1 + place
            expected = head.log_probs(hidden, tokens)[image, place].sum()
            expected += 0.6 * F.cosine_similarity(loss.decode(late[image, slot]), vectors[tokens[image, place]], dim=0)
            if place and (image, place - 1) != (0, 1):
                own = vectors[tokens[image, place - 1]]
                expected += 0.6 * F.cosine_similarity(loss.encode(early[image, slot]), own, dim=0)
            assert found[image, place].item() == pytest.approx(expected.item(), abs=1e-5)
    found.sum().backward()
    assert all(blocks[index].weight.grad.abs().sum() > 0 for index in (0, 3)) and not loss.states


def test_rear_of_a_model_without_that_many_blocks_is_refused():
    with pytest.raises(InputError, match=r"after blocks 0 and 5, and the model has 4 blocks"):
        rear([nn.Linear(D, D) for _ in range(4)], decode_block=5)()
    with pytest.raises(InputError, match="the model has 0 blocks"):
        rear([])()


@pytest.mark.parametrize(
    "config", [ClusterConfig(name="cluster"), SoftTreeConfig(name="soft-tree"), LabelSmoothingConfig(name="smooth")]
)
def test_a_loss_over_all_logits_refuses_other_heads(config):
    with pytest.raises(InputError, match=r"which heads of one softmax have \(flat, tree-shared\), found the head Masc"):
        case(HEADS[2], config)


@pytest.mark.parametrize("kind", ["ctf", "masc-refine"])
@pytest.mark.parametrize("config", [SoftCodesConfig(name="soft-codes"), SoftEncoderConfig(name="soft-encoder")])
def test_soft_targets_refuse_heads_that_judge_a_token_beside_the_whole_image(kind, config):
    with pytest.raises(InputError, match=r"judges a token beside the clusters of the whole image"):
        case(config_of(kind, 12, False), config)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SoftCodesConfig(name="t", entropy=1.0), "give loss.entropy or loss.temperature"),
        (lambda: SoftCodesConfig(name="t", weight=1.5), "at most 1, found 1.5"),
        (lambda: SoftCodesConfig(name="t", neighbours=0), "neighbours must be positive"),
        (lambda: SoftCodesConfig(name="t", until=0.0), "loss.until is a share of training"),
        (lambda: SoftTreeConfig(name="t", levels=[8, 4]), "loss.levels must rise"),
        (lambda: ClusterConfig(name="t", weight=float("nan")), "loss.weight must be 0 or more"),
        (lambda: ContextNoiseConfig(name="t", within="word"), "loss.within must be any or cluster"),
        (lambda: ContextNoiseConfig(name="t", noise_rate=2), "noise_rate must lie in"),
        (lambda: SoftEncoderConfig(name="t", temperature=0), "must be positive"),
        (lambda: RearConfig(name="t", decode_block=-1), "0 or more"),
        (lambda: ContextNoiseConfig(name="t", within="any", num_clusters=7), "loss.num_clusters is not read"),
    ],
)
def test_a_bad_value_of_a_loss_is_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_a_fixed_partition_serves_one_cut():
    partition = Partition(np.arange(N) % 7)
    head, loss, hidden, tokens = case(loss=ClusterConfig(name="t", num_clusters=7), tree=partition)
    assert loss(head, hidden, tokens, given(tokens)).shape == (2, 5, 2)
    with pytest.raises(InputError, match="cannot be cut into 8"):
        case(loss=ClusterConfig(name="t", num_clusters=8), tree=partition)
