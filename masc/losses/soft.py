"""Targets that are spread over tokens like the true one, and sharpened to the true one while training.

Shapes: B images, T positions, D width, N tokens, m near codes, K clusters."""

from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor

from masc.heads.base import Head
from masc.heads.flat import FlatHead
from masc.losses.base import Given, Loss, Parts, falling, require_flat, require_positions
from masc.losses.config import LabelSmoothingConfig, SoftCodesConfig, SoftEncoderConfig, SoftTreeConfig
from masc.losses.neighbours import entropy, nearest_codes, targets_of, temperature_of
from masc.runtime.errors import InputError
from masc.runtime.streams import Purpose, random_stream
from masc.tree import Partition


def mixed(head: Head, hidden: Tensor, tokens: Tensor, others: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    """(1 - w) log p(x) + w sum_s q(s) log p(s): (B, T, D), true tokens (B, T), others (B, T, m) and their targets q
    (B, T, m) -> (B, T, 1)."""
    chosen = torch.cat([tokens[..., None], others], dim=-1)
    shares = torch.cat([(1 - weight).expand(*tokens.shape, 1), weight * targets], dim=-1)
    return head.mean_log_prob(hidden, chosen, shares)[..., None]


class SoftCodesLoss(Loss):
    """(1 - w) log p(x) + w sum_s q(s | x) log p(s), q = softmax over the m nearest other codes of -|v_x - v_s|^2 / tau.

    A control permutes the codes first: each token then has the targets of another one. Heads of one stage; the m + 1
    log-probabilities of a position cost the flat head no further matrix product."""

    def __init__(self, config: SoftCodesConfig, ids: np.ndarray, targets: np.ndarray):
        """`ids` (N, m) are the codes of the targets (N, m)."""
        super().__init__()
        self.weight, self.until = config.weight, config.until
        self.register_buffer("ids", torch.from_numpy(ids), persistent=False)
        self.register_buffer("targets", torch.from_numpy(targets).float(), persistent=False)
        self.target_entropy = float(entropy(targets).mean())

    @classmethod
    def build(cls, config: SoftCodesConfig, parts: Parts) -> Self:
        require_positions(config.name, parts.head)
        vectors = parts.vectors
        if config.shuffled:
            vectors = vectors[random_stream(0, Purpose.SHUFFLED_CODES).permutation(len(vectors))]
        ids, squared = nearest_codes(vectors, config.neighbours)
        temperature = config.temperature
        if temperature is None:
            temperature = temperature_of(squared, config.entropy)
        return cls(config, ids, targets_of(squared, temperature))

    def forward(self, head: Head, hidden: Tensor, tokens: Tensor, given: Given) -> Tensor:
        weight = falling(self.weight, self.until, given["progress"])
        return mixed(head, hidden, tokens, self.ids[tokens], self.targets[tokens], weight)


class SoftEncoderLoss(Loss):
    """(1 - w) log p(x) + w sum_s q(s | z) log p(s), q = softmax over the m nearest codes of -|z - v_s|^2 / tau.

    z is the encoder's output before quantisation, so x is among the codes (RQ-Transformer, `get_soft_codes`, over all
    codes; SNCE over the nearest)."""

    def __init__(self, config: SoftEncoderConfig):
        super().__init__()
        self.weight, self.until, self.temperature = config.weight, config.until, config.temperature

    @classmethod
    def build(cls, config: SoftEncoderConfig, parts: Parts) -> Self:
        require_positions(config.name, parts.head)
        return cls(config)

    def forward(self, head: Head, hidden: Tensor, tokens: Tensor, given: Given) -> Tensor:
        targets = (-given["near_distances"] / self.temperature).softmax(-1)
        weight = falling(self.weight, self.until, given["progress"])
        return mixed(head, hidden, tokens, given["near"], targets, weight)


class SoftTreeLoss(Loss):
    """(1 - w) log p(x) + w sum_l a_l E_s log p(s), s uniform in the true token's cluster at cut l.

    With rows W and the mean m_x of the rows under the targets, that is log p(x) + w h (m_x - W_x): one product a
    position, and no target over N tokens. One cluster of all tokens gives label smoothing. For heads of one softmax."""

    def __init__(self, config: SoftTreeConfig | LabelSmoothingConfig, cuts: Sequence[Partition], shares: np.ndarray):
        """`shares` (L,) of the cuts in the targets; their sum is 1."""
        super().__init__()
        self.weight, self.until = config.weight, config.until
        self.register_buffer("cluster_of", torch.from_numpy(np.stack([cut.cluster_of for cut in cuts])), False)
        self.register_buffer("shares", torch.from_numpy(shares).float(), persistent=False)
        self.sizes = [cut.num_clusters for cut in cuts]
        self.target_entropy = tree_entropy(cuts, shares)

    @classmethod
    def build(cls, config: SoftTreeConfig | LabelSmoothingConfig, parts: Parts) -> Self:
        require_flat(config.name, parts.head)
        if isinstance(config, LabelSmoothingConfig):
            return cls(config, [Partition(np.zeros(parts.num_tokens, np.int64))], np.ones(1))
        cuts = [parts.tree.cut(k) for k in config.cuts(parts.num_tokens)]
        shares = np.full(len(cuts), 1 / len(cuts)) if config.entropy is None else cut_shares(cuts, config.entropy)
        return cls(config, cuts, shares)

    def mean_rows(self, rows: Tensor) -> Tensor:
        """The mean of the rows under each token's targets: (N, D) -> (N, D)."""
        total = torch.zeros_like(rows)
        for cluster_of, share, size in zip(self.cluster_of, self.shares, self.sizes, strict=True):
            sums = rows.new_zeros(size, rows.shape[1]).index_add(0, cluster_of, rows)
            counts = cluster_of.bincount(minlength=size)
            total = total + share * (sums / counts[:, None])[cluster_of]
        return total

    def forward(self, head: FlatHead, hidden: Tensor, tokens: Tensor, given: Given) -> Tensor:
        rows = head.rows()
        shift = (hidden.float() * (self.mean_rows(rows) - rows)[tokens]).sum(-1, keepdim=True)
        return head.log_probs(hidden, tokens) + falling(self.weight, self.until, given["progress"]) * shift


def tree_entropy(cuts: Sequence[Partition], shares: np.ndarray) -> float:
    """The entropy of the targets of nested cuts, coarsest first, in nats, mean over tokens."""
    sizes = np.stack([cut.sizes[cut.cluster_of] for cut in cuts])  # (L, N)
    density = np.cumsum(shares[:, None] / sizes, axis=0)  # of a token that shares the first l cuts, but not the next
    counts = sizes - np.concatenate([sizes[1:], np.zeros_like(sizes[:1])])
    return float(-(counts * density * np.log(np.where(density > 0, density, 1))).sum(0).mean())


def cut_shares(cuts: Sequence[Partition], wanted: float) -> np.ndarray:
    """The shares of nested cuts whose targets have the wanted entropy: each is a fixed multiple of the one before.

    Raises InputError for an entropy that no such shares give."""

    def shares(log_ratio: float) -> np.ndarray:
        weights = np.arange(len(cuts)) * log_ratio
        return np.exp(weights - np.logaddexp.reduce(weights))

    coarse, fine = (tree_entropy(cuts, shares(log_ratio)) for log_ratio in (-30.0, 30.0))
    if not fine < wanted < coarse:
        raise InputError(
            f"loss.entropy must lie between {fine:.3f} and {coarse:.3f} nats for cuts at "
            f"{[cut.num_clusters for cut in cuts]} clusters, found {wanted}; change it, or loss.levels"
        )
    return shares(brentq(lambda log_ratio: tree_entropy(cuts, shares(log_ratio)) - wanted, -30.0, 30.0))
