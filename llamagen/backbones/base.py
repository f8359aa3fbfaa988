"""The contract of a backbone: all that the training loop, the sampler, the optimizer and the evaluation use of one.

None of them assumes raster order, one token a step or a key-value cache. A backbone gives hidden states aligned with
the tokens, and decides which positions are drawn next. LlamaGen's transformer (`gpt.py`) is the first one.

Shapes: B images, P slots of the condition, T positions of tokens, S positions of one step, D width."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llamagen.backbones.config import BackboneConfig
from llamagen.backbones.embeddings import TokenEmbedding
from masc.runtime.errors import InputError
from masc.runtime.targets import load_class


@dataclass(frozen=True)
class DataShape:
    """Sizes of the data that a model is built for."""

    num_tokens: int  # N
    num_classes: int
    num_positions: int  # T

    @property
    def grid(self) -> int:
        """Tokens a side of a square image; InputError if T is no square."""
        grid = round(self.num_positions**0.5)
        if grid * grid != self.num_positions:
            raise InputError(
                f"this backbone draws square grids, and an image of these codes has {self.num_positions} tokens; "
                "choose another MODEL, or codes of square images"
            )
        return grid


class Decoding(ABC):
    """A batch of images while it is drawn. `predict` and `place` take turns until every position has a token."""

    @abstractmethod
    def predict(self) -> Tensor:
        """Hidden states of the positions to draw next: (B, S, D). S may differ from step to step."""

    @abstractmethod
    def place(self, tokens: Tensor) -> None:
        """Accept the tokens drawn for those positions: (B, S) int64."""

    @abstractmethod
    def tokens(self) -> Tensor:
        """The tokens in the order of codes: (B, T) int64. Before every position has one, what it returns is open."""


class Backbone(nn.Module, ABC):
    """Turns tokens and a condition into hidden states. A condition is class numbers (B,) or text features (B, P, C);
    its mask (B, P) bool marks the real slots of text, and is None for classes."""

    config: BackboneConfig
    num_positions: int  # T

    @abstractmethod
    def initialise(self, generator: torch.Generator) -> None:
        """Draw the initial weights."""

    @abstractmethod
    def hidden(self, tokens: Tensor, condition: Tensor, mask: Tensor | None = None) -> Tensor:
        """Hidden states that predict each token: (B, T), condition -> (B, T, D), aligned with the tokens.

        The state of a position depends on the condition and on tokens that are drawn before it, never on its own."""

    @abstractmethod
    def decode(self, condition: Tensor, mask: Tensor | None = None, compiled: bool = False) -> Decoding:
        """Start to draw a batch of images, one a condition. `compiled`: by torch.compile, where the backbone can."""

    def end_decoding(self) -> None:
        """Free memory that `decode` keeps from batch to batch."""

    @property
    @abstractmethod
    def has_null(self) -> bool:
        """Whether there is a null condition, which guidance and dropping of conditions need."""

    @abstractmethod
    def null(self, condition: Tensor) -> Tensor:
        """The null condition for as many images, in the shape of `condition`."""

    @abstractmethod
    def tables(self) -> list[nn.Parameter]:
        """The matrices with a row for each token or cluster; `optim.table_scale` sets their learning rate."""

    @abstractmethod
    def blocks(self) -> list[nn.Module]:
        """The repeated blocks in order: the units that may be sharded, recomputed or compiled one by one."""

    def drop_condition(self, condition: Tensor, dropped: Tensor) -> Tensor:
        """Replace the condition of each image that `dropped` (B,) bool marks by the null condition, if there is one."""
        if not self.has_null:
            return condition
        chosen = dropped.view(-1, *[1] * (condition.ndim - 1))
        return torch.where(chosen, self.null(condition), condition)


def build_backbone(config: BackboneConfig, tokens: TokenEmbedding, shape: DataShape) -> Backbone:
    """The backbone of a config around a token embedding, not yet initialised.

    Raises InputError if its class does not exist or is not a subclass of `Backbone`."""
    return load_class(config.target, Backbone, f"the model {config.name}", "model.target")(config, tokens, shape)
