"""IBQ, the tokenizer with 262,144 vectors of 256 dimensions (arXiv 2412.02692).

Follows TencentARC/SEED-Voken (b9a17ea), src/IBQ/models/ibqgan.py and src/IBQ/modules/vqvae/quantize.py. Encoder,
decoder and file layout are VQGAN's (vq.taming) with four blocks a level. The quantizer takes the vector with the
largest inner product, not the nearest one. IBQ's evaluation uses the averaged weights, so `use_ema` is on.

Inference only, without the loss of IBQ."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vq.blocks import VQGAN
from vq.quantize import VectorQuantizer, best_match
from vq.taming import vqgan_state


class InnerProductQuantizer(VectorQuantizer):
    """Tokens by the largest inner product of latent and vector, without normalisation."""

    @torch.no_grad()
    def tokens(self, z: Tensor) -> Tensor:
        """Best matching codebook vectors: (B, d, H, W) -> (B, H * W) int64, raster order."""
        return best_match(self.compared(z).flatten(0, 2), self.codebook).view(len(z), -1)


class IBQ(VQGAN):
    """Images (B, 3, S, S) in [-1, 1] <-> tokens (B, T) in raster order; the defaults are the largest codebook."""

    encode_near = None  # the token has the largest inner product, and is often not the nearest vector

    def __init__(
        self,
        num_tokens: int = 262144,  # N
        code_dim: int = 256,  # d
        channels: int = 128,  # at full resolution
        channel_multipliers: Sequence[int] = (1, 1, 2, 2, 4),  # a level each; half the resolution between them
        num_blocks: int = 4,  # residual blocks a level, one more in the decoder
        z_channels: int = 256,
        use_ema: bool = True,  # read the averaged weights
    ):
        quantize = InnerProductQuantizer(num_tokens, code_dim, commitment=0.25, l2_norm=False)
        super().__init__(quantize, channels, channel_multipliers, num_blocks, z_channels)
        self.use_ema = use_ema

    def from_release(self, checkpoint: dict[str, Any], path: Path) -> dict[str, Tensor]:
        """The state dict of a Lightning file of SEED-Voken."""
        return vqgan_state(checkpoint, path, len(self.encoder.conv_blocks), self.use_ema)
