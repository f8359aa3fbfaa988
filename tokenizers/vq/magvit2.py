"""Open-MAGVIT2, whose 18 latent signs are the token: 262,144 tokens without a codebook (arXiv 2409.04410).

Follows TencentARC/SEED-Voken (b9a17ea), src/Open_MAGVIT2/models/lfqgan.py, modules/diffusionmodules/improved_model.py
and modules/vqvae/lookup_free_quantize.py, with its parameter names. Its evaluation uses the averaged weights, so
`use_ema` is on. Inference only, without the entropy loss.

Shapes: B images, S x S pixels, C channels, H x W code grid, d = log2 N bits, T = H * W positions."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masc.runtime.errors import InputError
from vq.blocks import ConvTokenizer, ResBlock, activate, group_norm, res_blocks
from vq.taming import lightning_state


class SignQuantizer(nn.Module):
    """Lookup-free quantization: bit i of a token, counted from the lowest, says whether latent i is positive."""

    def __init__(self, num_bits: int):
        super().__init__()
        self.num_bits = num_bits

    def _powers(self, device: torch.device) -> Tensor:
        return 2 ** torch.arange(self.num_bits, device=device)

    @property
    def codebook(self) -> Tensor:
        """All corners of the cube {-1, +1}^d in the order of their tokens: (2^d, d) float32."""
        return self._vectors(torch.arange(2**self.num_bits))

    def _vectors(self, tokens: Tensor) -> Tensor:
        return ((tokens.unsqueeze(-1) & self._powers(tokens.device)) > 0).float() * 2 - 1

    def tokens(self, z: Tensor) -> Tensor:
        """Signs of the latents as numbers; zero counts as negative: (B, d, H, W) -> (B, H * W) int64."""
        bits = z.flatten(2).transpose(1, 2) > 0
        return (bits * self._powers(z.device)).sum(-1)

    def lookup(self, tokens: Tensor, grid: int) -> Tensor:
        """Vectors of a code grid: (B, grid * grid) -> (B, d, grid, grid)."""
        return self._vectors(tokens).unflatten(1, (grid, grid)).permute(0, 3, 1, 2)


UnbiasedBlock = partial(ResBlock, bias=False)


class Upsampler(nn.Module):
    """Twice the resolution by moving channels to pixels: (B, C, H, W) -> (B, C, 2H, 2W)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 4 * channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        # Here the place in the 2 x 2 square is the slow index of the channels; in pixel_shuffle it is the fast index.
        return F.pixel_shuffle(self.conv1(x).unflatten(1, (4, -1)).transpose(1, 2).flatten(1, 2), 2)


class AdaptiveGroupNorm(nn.Module):
    """Group normalisation whose scale and shift come from the deviation and mean of the code grid's bits."""

    def __init__(self, num_bits: int, channels: int):
        super().__init__()
        self.gn = nn.GroupNorm(32, channels, eps=1e-6, affine=False)
        self.gamma, self.beta = nn.Linear(num_bits, channels), nn.Linear(num_bits, channels)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        """(B, C, H, W) and the code grid (B, d, H', W') -> (B, C, H, W)."""
        bits = code.flatten(2)
        scale = self.gamma((bits.var(-1) + self.gn.eps).sqrt())[..., None, None]
        return scale * self.gn(x) + self.beta(bits.mean(-1))[..., None, None]


class Encoder(nn.Module):
    """(B, 3, S, S) -> (B, d, H, W)."""

    def __init__(self, channels: int, multipliers: Sequence[int], num_blocks: int, num_bits: int):
        super().__init__()
        widths = [channels, *(channels * multiplier for multiplier in multipliers)]
        self.conv_in = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.down = nn.ModuleList()
        for index in range(len(multipliers)):
            level = nn.Module()
            level.block = res_blocks(widths[index], widths[index + 1], num_blocks, UnbiasedBlock)
            if index < len(multipliers) - 1:
                level.downsample = nn.Conv2d(widths[index + 1], widths[index + 1], 3, stride=2, padding=1)
            self.down.append(level)
        self.mid_block = res_blocks(widths[-1], widths[-1], num_blocks, UnbiasedBlock)
        self.norm_out = group_norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], num_bits, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            for block in level.block:
                x = block(x)
            x = level.downsample(x) if hasattr(level, "downsample") else x
        for block in self.mid_block:
            x = block(x)
        return self.conv_out(activate(self.norm_out(x)))


class Decoder(nn.Module):
    """(B, d, H, W) -> (B, 3, S, S); `up` and `adaptive` count from the finest level."""

    def __init__(self, channels: int, multipliers: Sequence[int], num_blocks: int, num_bits: int):
        super().__init__()
        widths = [channels * multiplier for multiplier in (*multipliers, multipliers[-1])]
        self.conv_in = nn.Conv2d(num_bits, widths[-1], 3, padding=1)
        self.mid_block = res_blocks(widths[-1], widths[-1], num_blocks, UnbiasedBlock)
        self.up, self.adaptive = nn.ModuleList(), nn.ModuleList()
        for index in range(len(multipliers)):
            level = nn.Module()
            level.block = res_blocks(widths[index + 1], widths[index], num_blocks, UnbiasedBlock)
            if index:
                level.upsample = Upsampler(widths[index])
            self.up.append(level)
            self.adaptive.append(AdaptiveGroupNorm(num_bits, widths[index + 1]))
        self.norm_out = group_norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, code: Tensor) -> Tensor:
        x = self.conv_in(code)
        for block in self.mid_block:
            x = block(x)
        for level, adaptive in zip(reversed(self.up), reversed(self.adaptive), strict=True):
            x = adaptive(x, code)
            for block in level.block:
                x = block(x)
            x = level.upsample(x) if hasattr(level, "upsample") else x
        return self.conv_out(activate(self.norm_out(x)))


class OpenMAGVIT2(ConvTokenizer):
    """Images (B, 3, S, S) in [-1, 1] <-> tokens (B, T) in raster order."""

    encode_near = None  # the token is the signs of the latent, found without distances

    def __init__(
        self,
        num_tokens: int = 262144,  # N, a power of two
        channels: int = 128,  # at full resolution
        channel_multipliers: Sequence[int] = (1, 1, 2, 2, 4),  # a level each; half the resolution between them
        num_blocks: int = 4,  # residual blocks a level
        use_ema: bool = True,  # read the averaged weights
    ):
        super().__init__()
        if num_tokens < 2 or num_tokens & (num_tokens - 1):
            raise InputError(f"tokenizer.options.num_tokens must be a power of two, at least 2, not {num_tokens}")
        self.num_tokens, self.downsample = num_tokens, 2 ** (len(channel_multipliers) - 1)
        self.use_ema = use_ema
        self.quantize = SignQuantizer(num_tokens.bit_length() - 1)
        sizes = channels, channel_multipliers, num_blocks, self.quantize.num_bits
        self.encoder, self.decoder = Encoder(*sizes), Decoder(*sizes)

    def from_release(self, checkpoint: dict[str, Any], path: Path) -> dict[str, Tensor]:
        """The state dict of a Lightning file of SEED-Voken."""
        return lightning_state(checkpoint, path, self.use_ema)
