"""VQGAN f16 of taming-transformers (arXiv 2012.09841), codebooks of 1,024 and of 16,384 vectors.

Follows CompVis/taming-transformers (3ba01b2), taming/models/vqgan.py and taming/modules/diffusionmodules/model.py.
LlamaGen's tokenizer has the same network, but a normalised codebook. The published files come from PyTorch Lightning:
they name and number the layers differently and also hold the discriminator. Inference only, without the losses of its
training."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from masc.runtime.errors import InputError
from vq.blocks import VQGAN
from vq.checkpoint import find_state
from vq.quantize import VectorQuantizer

KEPT = (
    "encoder.",
    "decoder.",
    "quantize.",
    "quant_conv.",
    "post_quant_conv.",
)  # the other parameters serve training only
EMA = "model_ema."
MIDDLE = {"block_1": "0", "attn_1": "1", "block_2": "2"}


def lightning_state(checkpoint: dict[str, Any], path: Path, use_ema: bool) -> dict[str, Tensor]:
    """The tokenizer's tensors in a Lightning file, under the names of the file.

    With `use_ema` they are the averaged weights, which the file stores under the same names without dots. Raises
    InputError if there are none."""
    state = find_state(checkpoint, path)
    kept = {name: value for name, value in state.items() if name.startswith(KEPT)}
    if not use_ema:
        return kept
    averaged = {name: EMA + name.replace(".", "") for name in kept}
    missing = [name for name, stored in averaged.items() if stored not in state]
    if missing:
        raise InputError(
            f"{path} holds no averaged weights of {missing[0]}; "
            'load the others with ARGS="++tokenizer.options.use_ema=false"'
        )
    return {name: state[stored] for name, stored in averaged.items()}


def vqgan_state(checkpoint: dict[str, Any], path: Path, num_levels: int, use_ema: bool) -> dict[str, Tensor]:
    """The state dict of a VQGAN in a Lightning file, under LlamaGen's names. Raises as `lightning_state` does."""
    state = lightning_state(checkpoint, path, use_ema)
    return {_rename(name, num_levels): value for name, value in state.items()}


def _rename(name: str, num_levels: int) -> str:
    """LlamaGen's name of a parameter of taming-transformers, where the decoder counts levels from the finest."""
    name = re.sub(r"\.mid\.(\w+)\.", lambda found: f".mid.{MIDDLE.get(found[1], found[1])}.", name)
    name = re.sub(r"^encoder\.down\.", "encoder.conv_blocks.", name)
    name = re.sub(r"^decoder\.up\.(\d+)", lambda found: f"decoder.conv_blocks.{num_levels - 1 - int(found[1])}", name)
    return re.sub(r"(conv_blocks\.\d+)\.block\.", r"\1.res.", name)


class TamingVQ(VQGAN):
    """Images (B, 3, S, S) in [-1, 1] <-> tokens (B, T) in raster order; the defaults are the smaller codebook."""

    def __init__(
        self,
        num_tokens: int = 1024,  # N
        code_dim: int = 256,  # d
        channels: int = 128,  # at full resolution
        channel_multipliers: Sequence[int] = (1, 1, 2, 2, 4),  # a level each; half the resolution between them
        num_blocks: int = 2,  # residual blocks a level, one more in the decoder
        z_channels: int = 256,
        use_ema: bool = False,  # read the averaged weights of a training checkpoint
    ):
        quantize = VectorQuantizer(num_tokens, code_dim, commitment=0.25, l2_norm=False)
        super().__init__(quantize, channels, channel_multipliers, num_blocks, z_channels)
        self.use_ema = use_ema

    def from_release(self, checkpoint: dict[str, Any], path: Path) -> dict[str, Tensor]:
        """The state dict of a Lightning file of taming-transformers."""
        return vqgan_state(checkpoint, path, len(self.encoder.conv_blocks), self.use_ema)
