"""LlamaGen's image tokenizers VQ-16 and VQ-8 (arXiv 2406.06525, Sec. 3.1).

Follows FoundationVision/LlamaGen (ce98ec4), tokenizer/tokenizer_image/vq_model.py, with its parameter names, so its
checkpoints load unchanged. Differs: `encode` computes tokens only; the losses have a method of their own instead of the
training mode; the usage buffer is not a parameter (the official class cannot be trained on a CPU).

Shapes: B images, S x S pixels, H x W code grid, d code dimension, N tokens, T = H * W positions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from masc.runtime.errors import InputError
from vq.blocks import VQGAN
from vq.checkpoint import CONTAINERS, find_state
from vq.quantize import Quantized, VectorQuantizer

USAGE_WINDOW = 65536  # number of latest tokens in the usage buffer
ENTROPY_TEMPERATURE = 0.01


class Losses(NamedTuple):
    """Weighted scalars; their sum is the quantizer's part of the training loss."""

    codebook: Tensor
    commitment: Tensor
    entropy: Tensor


class LlamaGenQuantizer(VectorQuantizer):
    """The quantizer with the usage buffer and the entropy loss of its training."""

    def __init__(self, num_tokens: int, code_dim: int, commitment: float, l2_norm: bool, track_usage: bool):
        super().__init__(num_tokens, code_dim, commitment, l2_norm)
        nn.init.uniform_(self.embedding.weight, -1 / num_tokens, 1 / num_tokens)
        if track_usage:
            self.register_buffer("codebook_used", torch.zeros(USAGE_WINDOW))
        self.track_usage = track_usage

    def forward(self, z: Tensor) -> Quantized:
        """Nearest codebook vectors of the latents z (B, d, H, W). In training, the tokens enter the usage buffer."""
        found = super().forward(z)
        if self.training and self.track_usage:
            tokens = found.tokens.flatten().to(self.codebook_used)
            self.codebook_used.copy_(torch.cat([self.codebook_used, tokens])[-USAGE_WINDOW:])
        return found

    def losses(self, z: Tensor, entropy_ratio: float = 0.0) -> Losses:
        """The training losses of the latents z (B, d, H, W), differentiable in z and in the codebook.

        The entropy loss makes the choice of each latent certain and the choices of a batch uniform (arXiv 2310.05737,
        Eq. 4)."""
        z, codebook = self.compared(z).flatten(0, 2), self.codebook
        distances = z.square().sum(1, keepdim=True) + codebook.square().sum(1) - 2 * z @ codebook.T
        quantized = codebook[distances.argmin(1)]
        log_probs = (distances / -ENTROPY_TEMPERATURE).log_softmax(-1)
        probs = log_probs.exp()
        mean = probs.mean(0)
        batch_entropy = -(mean * (mean + 1e-5).log()).sum()
        sample_entropy = -(probs * log_probs).sum(-1).mean()
        return Losses(
            (quantized - z.detach()).square().mean(),
            self.commitment * (quantized.detach() - z).square().mean(),
            entropy_ratio * (sample_entropy - batch_entropy),
        )


class LlamaGenVQ(VQGAN):
    """Images (B, 3, S, S) in [-1, 1] <-> tokens (B, T) in raster order; the defaults are VQ-16."""

    def __init__(
        self,
        num_tokens: int = 16384,  # N
        code_dim: int = 8,  # d
        channels: int = 128,  # at full resolution
        channel_multipliers: Sequence[int] = (1, 1, 2, 2, 4),  # a level each; half the resolution between them
        num_blocks: int = 2,  # residual blocks a level, one more in the decoder
        z_channels: int = 256,
        commitment: float = 0.25,
        l2_norm: bool = True,
        track_usage: bool = True,
        use_ema: bool = False,  # read the averaged weights of a training checkpoint
    ):
        quantize = LlamaGenQuantizer(num_tokens, code_dim, commitment, l2_norm, track_usage)
        super().__init__(quantize, channels, channel_multipliers, num_blocks, z_channels)
        self.use_ema = use_ema

    def forward(self, images: Tensor) -> tuple[Tensor, Quantized]:
        """Reconstruction through the straight-through quantizer, and the quantizer's result."""
        quantized = self.quantize(self.latents(images))
        return self.reconstruct(quantized.latents), quantized

    def from_release(self, checkpoint: dict[str, Any], path: Path) -> dict[str, Tensor]:
        """The state dict of a LlamaGen file: `model`, or `ema` if `use_ema`; InputError if it is missing."""
        if self.use_ema and "ema" not in checkpoint:
            raise InputError(
                f'{path} has no averaged weights (ema); load the others with ARGS="++tokenizer.options.use_ema=false"'
            )
        return find_state(checkpoint, path, ("ema",) if self.use_ema else CONTAINERS)
