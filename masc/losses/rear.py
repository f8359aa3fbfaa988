"""reAR: hidden states are also regressed onto the codebook vectors of their own and of the next token.

Shapes: B images, T positions, S slots of a sequence, D width, N tokens, d channels of a code."""

from functools import partial
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masc.heads.base import Head
from masc.losses.base import Given, Loss, Parts
from masc.losses.config import RearConfig
from masc.runtime.errors import InputError


class RearLoss(Loss):
    """log p(x_t) + w (cos(P_e a_t, v of the token before t, where it is not replaced) + cos(P_d b_t, v of x_t)).

    a_t and b_t are the states at the slot that predicts x_t, after an early and a late block; the early one thus sees
    the token before t at its own slot, and has no term at the first position. P_e and P_d are MLPs of three layers with
    SiLU (reAR, arXiv 2510.04450; QY-H00/reAR, modeling/modules/losses.py). Any head, and backbones with blocks over
    [condition, tokens]. P_e and P_d are trained with the model, and nothing reads them later."""

    def __init__(self, config: RearConfig, dim: int, vectors: np.ndarray):
        super().__init__()
        self.weight = config.weight
        self.register_buffer("vectors", torch.from_numpy(vectors.astype(np.float32)), persistent=False)
        self.encode, self.decode = (_mlp(dim, config.width, vectors.shape[1]) for _ in range(2))
        self.states: dict[str, Tensor] = {}  # of the forward pass that is under way

    @classmethod
    def build(cls, config: RearConfig, parts: Parts) -> Self:
        depth = len(parts.blocks)
        late = 3 * depth // 4 if config.decode_block is None else config.decode_block
        if not max(config.encode_block, late) < depth:
            raise InputError(
                f"the loss {config.name} reads the states after blocks {config.encode_block} and {late}, and the model "
                f"has {depth} blocks, counted from 0; set loss.encode_block and loss.decode_block"
            )
        loss = cls(config, parts.dim, parts.vectors)
        for name, index in (("early", config.encode_block), ("late", late)):
            parts.blocks[index].register_forward_hook(partial(loss.keep, name))
        return loss

    def keep(self, name: str, _block: nn.Module, _given: Any, states: Tensor) -> None:
        """Keep the output (B, S, D) of a block in a training step."""
        if self.training and torch.is_grad_enabled():
            self.states[name] = states

    def initialise(self, generator: torch.Generator) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                nn.init.zeros_(module.bias)

    def forward(self, head: Head, hidden: Tensor, tokens: Tensor, given: Given) -> Tensor:
        """(B, T, D), (B, T) -> (B, T, 1): likelihood and regressions together."""
        positions, context = tokens.shape[1], given["context"]
        early, late = (self.states.pop(name)[:, -positions:] for name in ("early", "late"))
        before = F.cosine_similarity(self.encode(early[:, 1:]).float(), self.vectors[tokens[:, :-1]], dim=-1)
        is_kept = context[:, :-1] == tokens[:, :-1]
        after = F.cosine_similarity(self.decode(late).float(), self.vectors[tokens], dim=-1)
        regressed = after + F.pad(before * is_kept, (1, 0))
        return (head.log_probs(hidden, tokens).sum(-1) + self.weight * regressed)[..., None]


def _mlp(dim: int, width: int, channels: int) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Linear(dim, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, channels))
    )
