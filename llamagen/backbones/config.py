"""Configs of backbones: what every backbone has, and the sizes of LlamaGen.

LlamaGen's sizes are in the LlamaGen paper, Table 1, and in FoundationVision/LlamaGen (ce98ec4), gpt.py."""

import math
from dataclasses import dataclass, field
from typing import Any

from masc.runtime.files import check_name
from masc.runtime.targets import check_target


@dataclass(kw_only=True)
class BackboneConfig:
    """A backbone by its class. What depends on the data (tokens, classes, positions) is given when it is built."""

    name: str
    target: str  # the class, as package.module:Class; a subclass of llamagen.backbones.base.Backbone
    dim: int  # width of the hidden states
    class_dropout: float = 0.1  # share of conditions replaced by the null condition in training, for guidance
    condition: str = "class"  # `class`, or `text`: caption features
    caption_tokens: int = 120  # positions of a caption
    caption_dim: int = 2048  # width of the text features: FLAN-T5-XL

    def __post_init__(self) -> None:
        check_name(self.name, "model.name")
        check_target(self.target, "model.target")
        _check_positive(self, "dim", "caption_tokens", "caption_dim")
        if self.condition not in ("class", "text"):
            raise ValueError(f"model.condition must be class or text, not {self.condition!r}")
        if not 0 <= self.class_dropout < 1:
            raise ValueError(f"model.class_dropout must lie in [0, 1), found {self.class_dropout}")

    @property
    def fewest_parameters(self) -> int:
        """A number that the model's parameters exceed, known without building it."""
        return self.dim


def _check_positive(config: "BackboneConfig", *names: str) -> None:
    """Raise ValueError unless the values of a config are positive and finite."""
    for name in names:
        value = getattr(config, name)
        if not 0 < value < math.inf:
            raise ValueError(f"model.{name} must be positive, found {value}")


@dataclass(kw_only=True)
class OwnModelConfig(BackboneConfig):
    """A backbone of your own; its class reads `options`."""

    options: dict[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True)
class ModelConfig(BackboneConfig):
    """A LlamaGen transformer."""

    target: str = "llamagen.backbones.gpt:Transformer"
    num_layers: int
    num_heads: int
    num_kv_heads: int | None = None  # None: as many as num_heads; every released model
    multiple_of: int = 256  # the SwiGLU width is rounded up to it
    ffn_dim_multiplier: float | None = None
    norm_eps: float = 1e-5
    rope_base: float = 10000.0
    token_dropout: float = 0.1
    residual_dropout: float = 0.1  # after the attention's output projection
    ffn_dropout: float = 0.1
    # Stochastic depth of the last layer, rising linearly from 0 at the first. LlamaGen's train_c2i turns the
    # residual and FFN dropout off where it is on; here all three are what they are set to.
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_positive(self, "num_layers", "num_heads", "kv_heads", "multiple_of", "norm_eps", "rope_base")
        if self.ffn_dim_multiplier is not None and not 0 < self.ffn_dim_multiplier < 1000:
            raise ValueError(f"model.ffn_dim_multiplier must lie in (0, 1000), found {self.ffn_dim_multiplier}")
        if self.dim % self.num_heads or (self.dim // self.num_heads) % 4:
            raise ValueError(
                f"model.dim {self.dim} over {self.num_heads} heads must give a head width divisible by 4 "
                "(2-D RoPE pairs the channels of two axes)"
            )
        if self.num_heads % self.kv_heads:
            raise ValueError(f"model.num_heads {self.num_heads} must be a multiple of num_kv_heads {self.kv_heads}")
        for name in ("token_dropout", "residual_dropout", "ffn_dropout", "drop_path"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"model.{name} must lie in [0, 1), found {getattr(self, name)}")

    @property
    def kv_heads(self) -> int:
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def fewest_parameters(self) -> int:
        """The numbers in the matrices of the layers' SwiGLU, queries and outputs, and in the empty caption."""
        caption = self.caption_tokens * self.caption_dim if self.condition == "text" else 0
        return self.num_layers * self.dim * (3 * self.ffn_dim + 2 * self.dim) + caption

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    @property
    def ffn_dim(self) -> int:
        """Hidden width of SwiGLU: two thirds of 4 dim, rounded up."""
        hidden = int(2 * (4 * self.dim) / 3)
        if self.ffn_dim_multiplier is not None:
            hidden = int(self.ffn_dim_multiplier * hidden)
        return -(-hidden // self.multiple_of) * self.multiple_of
