"""The likelihood of the head, under a context that may be noisy."""

from typing import Self

from torch import Tensor

from masc.heads.base import Head
from masc.losses.base import Given, Loss, Parts
from masc.losses.config import LossConfig


class LikelihoodLoss(Loss):
    """The log-probabilities of the head's decisions."""

    @classmethod
    def build(cls, config: LossConfig, parts: Parts) -> Self:
        return cls()

    def forward(self, head: Head, hidden: Tensor, tokens: Tensor, given: Given) -> Tensor:
        return head.log_probs(hidden, tokens)
