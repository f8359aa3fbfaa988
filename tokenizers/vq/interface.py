"""The interface of a tokenizer, and the config that names one.

A tokenizer is any torch module with the members of `Tokenizer`. The config names its class, so a user's own tokenizer
needs only a file in `configs/tokenizer` (docs/own-tokenizer.md shows one).

Shapes: B images, S x S pixels, T positions in raster order, N tokens, d code dimension."""

import inspect
import itertools
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from masc.layout import Layout
from masc.runtime.errors import InputError, MissingArtifact
from masc.runtime.files import check_name
from masc.runtime.run import differences, flatten, plain
from masc.runtime.targets import check_same_target, check_target, load_class
from vq.hub.pins import existing_weights

if TYPE_CHECKING:  # configs are read by stages that need no torch
    import torch
    from torch import Tensor, nn

TRAINED_HERE = "vq.autoencoder:ConvVQ"
SHIPPED = resources.files("vq") / "weights"


class Tokenizer(Protocol):
    """Images <-> tokens. An `nn.Module`, in evaluation mode when a stage uses it.

    An image is a square of S x S pixels. It becomes one square grid of T = (S / downsample)^2 tokens in raster order,
    so T alone gives the grid. A tokenizer with another layout (several scales, a rectangle, a 1D sequence) does not fit
    this interface: the extraction of codes, LlamaGen's backbone and `decode` rely on the square."""

    num_tokens: int  # N
    downsample: int  # pixels per token on each side

    @property
    def codebook(self) -> "Tensor":
        """The effective vectors, in the form that is compared and decoded: (N, d)."""

    def encode(self, images: "Tensor") -> "Tensor":
        """(B, 3, S, S) float32 in [-1, 1] -> (B, T) int64, T = (S / downsample)^2."""

    def decode(self, tokens: "Tensor") -> "Tensor":
        """(B, T) of a square grid -> (B, 3, S, S), near [-1, 1] but not clamped."""

    # Optional, for `make codes ARGS="near=8"`: encode_near(images, count), the `count` nearest codes of the encoder's
    # output before quantization and their squared distances to it, as the quantizer compares them: (B, T, count) int64
    # and float32, ascending, the token first. None or absent if the token is not the nearest code.


@dataclass(kw_only=True)
class TokenizerConfig:
    """Class, options and weights of a tokenizer."""

    name: str
    target: str  # its class, as package.module:Class
    options: dict[str, Any] = field(default_factory=dict)  # keyword arguments of the class
    # File of weights in the class's own layout; None: weights trained by this project, or shipped with it.
    weights: str | None = None

    def __post_init__(self) -> None:
        check_name(self.name, "tokenizer.name")
        check_target(self.target, "tokenizer.target")

    def build(self) -> Any:
        """The tokenizer with fresh weights; InputError if its class or an option does not exist."""
        target = self._load_class()
        known = inspect.signature(target).parameters
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
        unknown = sorted(set(self.options) - set(known))
        if unknown and not takes_any:
            raise InputError(f"{self.target} has no option {', '.join(unknown)}; it takes {', '.join(known)}")
        return target(**self.options)

    def _load_class(self) -> type:
        from torch import nn

        return load_class(self.target, nn.Module, f"the tokenizer {self.name}", "tokenizer.target")

    def check_described(self, described: dict[str, Any], path: Path) -> None:
        """Compare with the tokenizer that the header of the codebook at `path` describes.

        Raises InputError if the header names another class, MissingArtifact if the name or an option differs."""
        check_same_target(described.get("target"), self, path)
        there = self._identity(described.get("name"), described.get("options"))
        lines = differences(there, self._identity(self.name, self.options))
        if lines:
            problem = f"{path} was made by another tokenizer than the config {self.name}:\n{lines}\nmake it again"
            raise MissingArtifact("codebook", path, problem, tokenizer=self.name)

    def _identity(self, name: Any, options: Any) -> dict[str, Any]:
        """Name and options of a tokenizer of this class as a flat config, with the defaults of the class."""
        if isinstance(options, dict):
            known = inspect.signature(self._load_class()).parameters
            defaults = {key: value.default for key, value in known.items() if value.default is not value.empty}
            options = plain(defaults | options)
        return flatten({"name": name, "options": options})


def tokenizer_path(config: TokenizerConfig, artifacts: Path) -> Path:
    """The file of a tokenizer's weights: the one in its config, else the one trained here, else the shipped one."""
    if config.weights is not None:
        return existing_weights(Path(config.weights), f"the tokenizer {config.name}", "tokenizer.weights")
    trained = Layout(artifacts, config.name).weights
    shipped = Path(str(SHIPPED)) / f"{config.name}.safetensors"
    if trained.exists():
        return trained
    if shipped.exists():
        return shipped
    problem = f"no weights of the tokenizer {config.name} at {trained}"
    if config.target != TRAINED_HERE:
        raise InputError(f"{problem}; name their file with tokenizer.weights in its config")
    raise MissingArtifact("tokenizer", trained, problem, tokenizer=config.name)


def device_of(model: "nn.Module") -> "torch.device":
    """The device of a tokenizer's tensors. A tokenizer may have buffers only."""
    return next(itertools.chain(model.parameters(), model.buffers())).device
