"""Heads of every kind on trees of every kind, with tiny sizes."""

from dataclasses import fields

import numpy as np
import torch

from masc.heads import losses
from masc.heads.base import ImageHead
from masc.heads.config import CONFIGS
from masc.heads.registry import build_head
from masc.linkage import average_linkage
from masc.tree import Partition, Tree

N, D = 40, 16
TREE = Tree(average_linkage(np.random.default_rng(0).standard_normal((N, 3))).merges)


def chain(num_tokens):
    """Each token joins the same cluster, one after another: every cut is one giant cluster and singletons."""
    return Tree(average_linkage(np.cumsum(np.arange(num_tokens, dtype=float))[:, None] ** 2).merges)


def balanced(num_tokens):
    """Pairs, pairs of pairs, and so on."""
    digits = (np.arange(num_tokens)[:, None] >> np.arange(6)) & 1
    return Tree(average_linkage(digits * 4.0 ** np.arange(6)).merges)


def dead_apart(num_tokens):
    """A tree whose last five tokens are dead: they are one cluster of every cut."""
    vectors = np.random.default_rng(2).standard_normal((num_tokens - 5, 3))
    return Tree(average_linkage(vectors).merges).with_dead(np.arange(num_tokens) < num_tokens - 5)


TREES = {  # and the finest number of clusters
    "average linkage": (TREE, 12),
    "balanced": (balanced(32), 8),
    "one giant cluster": (chain(37), 9),
    "mostly singletons": (TREE, N - 2),
    "dead apart": (dead_apart(36), 10),
    "a prime number of tokens": (Tree(average_linkage(np.random.default_rng(1).standard_normal((41, 2))).merges), 13),
    "a partition": (Partition(np.arange(N) % 7), 7),
}
HEADS_TO_TEST = {
    **{kind: (kind, {}) for kind in CONFIGS},
    "masc, frequent members": ("masc", {"members": "frequency"}),
    "masc-tree, balanced": ("masc-tree", {"balanced": True, "levels": []}),
    "bits in a chain": ("bits", {"chain": True}),
}


def config_of(kind, num_clusters, fixed, **more):
    """A config of the kind with K clusters, or with a coarser cut too; a fixed partition has no other cut."""
    given = {"num_clusters": num_clusters, "levels": [num_clusters] if fixed else [4, num_clusters]}
    given |= {"width": 8, "num_heads": 2, "num_layers": 2}
    keys = {field.name for field in fields(CONFIGS[kind])}
    return CONFIGS[kind](name="t", **{key: value for key, value in given.items() if key in keys} | more)


def randomised(head, seed=0):
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(seed))
    return head.eval()


def new_head(which, name):
    """The head `which` of HEADS_TO_TEST on a tree of TREES, as training starts with it."""
    kind, more = HEADS_TO_TEST[which]
    tree, num_clusters = TREES[name]
    fixed = isinstance(tree, Partition)
    config = config_of(kind, num_clusters, fixed, **more)
    if fixed and more.get("balanced"):
        tree = Partition(np.arange(tree.num_tokens) // 2)  # it needs N // 2 clusters
    counts = np.random.default_rng(5).integers(0, 9, tree.num_tokens)
    head = build_head(config, D, tree.num_tokens, tree, counts)
    head.initialise(torch.Generator().manual_seed(2))
    return head.eval()


def head_of(which, name):
    return randomised(new_head(which, name))


def hidden(batch, seed=1):
    return torch.randn(batch, D, generator=torch.Generator().manual_seed(seed))


def all_probabilities(head, h):
    """(B, D) -> (B, N), through the public method only. Each state is an image of one position."""
    tokens = torch.arange(head.num_tokens).repeat(len(h))
    states = h.repeat_interleave(head.num_tokens, dim=0)
    return head.log_probs(states[:, None], tokens[:, None]).sum(-1).exp().view(len(h), -1)


@torch.no_grad()
def draw(head, h, pick):
    """Tokens (M,) of hidden states (M, D); each state is an image of one position."""
    tokens = head.sample(h, pick)
    return head.finish(h[:, None], tokens[:, None], pick)[:, 0] if isinstance(head, ImageHead) else tokens


def compute_in_chunks(monkeypatch, numbers):
    """Losses compute nothing whole, and chunks of about as many numbers."""
    monkeypatch.setattr(losses, "WHOLE", 0)
    monkeypatch.setattr("masc.heads.masc.WHOLE", 0)
    monkeypatch.setattr(losses, "CHUNK", numbers)


class Draws:
    """A pick without guidance: the inverse of the cumulative distribution at numbers (B, L) in [0, 1)."""

    def __init__(self, uniforms):
        self.uniforms = iter(torch.from_numpy(uniforms).T)

    def __call__(self, logits):
        cdf = logits.double().softmax(-1).cumsum(-1)
        return torch.searchsorted(cdf, next(self.uniforms)[:, None] * cdf[:, -1:], right=True)[:, 0]

    def uniform(self, sizes):
        return (next(self.uniforms) * sizes).long()

    def fixed(self, logits):
        return self(logits)
