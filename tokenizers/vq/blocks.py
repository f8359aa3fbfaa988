"""Layers that the published convolutional tokenizers share, and the network of VQGAN, LlamaGen and IBQ.

Follows FoundationVision/LlamaGen (ce98ec4), tokenizer/tokenizer_image/vq_model.py, with its parameter names. The
options that no published tokenizer uses (batch norm, dropout, resampling without convolution) are left out.
Attention uses PyTorch's kernel.

Shapes: B images, S x S pixels, H x W code grid, C channels, d code dimension, T = H * W positions."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masc.runtime.errors import InputError
from vq.quantize import VectorQuantizer


def group_norm(channels: int) -> nn.GroupNorm:
    """The normalisation of all published tokenizers; `channels` must be a multiple of 32."""
    return nn.GroupNorm(32, channels, eps=1e-6)


def activate(x: Tensor) -> Tensor:
    """SiLU. It overwrites x if no gradient is recorded, so x must not be used again."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


class ResBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, 1x1 where the widths differ: (B, C_in, H, W) -> (B, C_out, H, W)."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True):
        super().__init__()
        self.norm1, self.norm2 = group_norm(in_channels), group_norm(out_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=bias)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1, bias=bias)

    def residual(self, x: Tensor) -> Tensor:
        """The branch that is added to the shortcut."""
        h = self.conv1(activate(self.norm1(x)))
        return self.conv2(activate(self.norm2(h)))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x
        return shortcut + self.residual(x)


def res_blocks(
    in_channels: int, channels: int, num_blocks: int, make: Callable[[int, int], nn.Module] = ResBlock
) -> nn.ModuleList:
    """Residual blocks one after another; the first changes the width from `in_channels` to `channels`."""
    widths = [in_channels] + [channels] * num_blocks
    return nn.ModuleList(make(widths[i], widths[i + 1]) for i in range(num_blocks))


class AttnBlock(nn.Module):
    """Self-attention over all positions with one head: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = group_norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (conv(h).flatten(2).transpose(1, 2) for conv in (self.q, self.k, self.v))  # (B, T, C)
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(h.transpose(1, 2).reshape(x.shape))


class Downsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # right and bottom only


class Upsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Residual blocks at one resolution, each followed by attention if `attention`, then a change of resolution."""

    def __init__(self, in_channels: int, channels: int, num_blocks: int, attention: bool):
        super().__init__()
        self.res = res_blocks(in_channels, channels, num_blocks)
        self.attn = nn.ModuleList(AttnBlock(channels) for _ in range(num_blocks if attention else 0))

    def forward(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.res):
            x = block(x)
            if self.attn:
                x = self.attn[index](x)
        for name in ("downsample", "upsample"):
            if hasattr(self, name):
                x = getattr(self, name)(x)
        return x


def _middle(channels: int) -> nn.ModuleList:
    return nn.ModuleList([ResBlock(channels, channels), AttnBlock(channels), ResBlock(channels, channels)])


class Encoder(nn.Module):
    """(B, 3, S, S) -> (B, z_channels, H, W); half the resolution after every level but the last."""

    def __init__(self, channels: int, multipliers: Sequence[int], num_blocks: int, z_channels: int):
        super().__init__()
        widths = [channels, *(channels * multiplier for multiplier in multipliers)]
        last = len(multipliers) - 1
        self.conv_in = nn.Conv2d(3, channels, 3, padding=1)
        self.conv_blocks = nn.ModuleList()
        for index in range(len(multipliers)):
            level = Level(widths[index], widths[index + 1], num_blocks, attention=index == last)
            if index < last:
                level.downsample = Downsample(widths[index + 1])
            self.conv_blocks.append(level)
        self.mid = _middle(widths[-1])
        self.norm_out = group_norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in (*self.conv_blocks, *self.mid):
            x = block(x)
        return self.conv_out(activate(self.norm_out(x)))


class Decoder(nn.Module):
    """(B, z_channels, H, W) -> (B, 3, S, S); `conv_blocks` runs from the coarsest level to the finest."""

    def __init__(self, channels: int, multipliers: Sequence[int], num_blocks: int, z_channels: int):
        super().__init__()
        widths = [channels * multiplier for multiplier in reversed(multipliers)]
        last = len(multipliers) - 1
        self.conv_in = nn.Conv2d(z_channels, widths[0], 3, padding=1)
        self.mid = _middle(widths[0])
        self.conv_blocks = nn.ModuleList()
        for index, width in enumerate(widths):
            level = Level(widths[max(index - 1, 0)], width, num_blocks + 1, attention=index == 0)
            if index < last:
                level.upsample = Upsample(width)
            self.conv_blocks.append(level)
        self.norm_out = group_norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in (*self.mid, *self.conv_blocks):
            x = block(x)
        return self.conv_out(activate(self.norm_out(x)))


class ConvTokenizer(nn.Module):
    """Base of all convolutional tokenizers: from images to latents to tokens, and back.

    A subclass sets `encoder`, `quantize`, `decoder`, `num_tokens`, `downsample`."""

    encoder: nn.Module
    decoder: nn.Module
    quantize: nn.Module
    num_tokens: int
    downsample: int

    @property
    def codebook(self) -> Tensor:
        """Effective vectors: (N, d)."""
        return self.quantize.codebook

    def latents(self, images: Tensor) -> Tensor:
        """Encoder output before quantization: (B, 3, S, S) -> (B, d, H, W)."""
        return self.encoder(images)

    def reconstruct(self, quantized: Tensor) -> Tensor:
        """Images of quantized latents: (B, d, H, W) -> (B, 3, S, S)."""
        return self.decoder(quantized)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) in [-1, 1] -> (B, T) int64. Raises InputError unless S is a multiple of `downsample`."""
        return self.quantize.tokens(self._checked_latents(images))

    @torch.no_grad()
    def encode_near(self, images: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The `count` nearest codes of each latent, and their squared distances, as `Tokenizer.encode_near`."""
        return self.quantize.near(self._checked_latents(images), count)

    def _checked_latents(self, images: Tensor) -> Tensor:
        """`latents` of images whose size fits; InputError otherwise."""
        height, width = images.shape[-2:]
        if height != width or height % self.downsample:
            raise InputError(
                f"the images have {height} x {width} pixels, but this tokenizer takes squares whose side is a multiple "
                f"of {self.downsample}; choose another size with DATA"
            )
        return self.latents(images.contiguous(memory_format=torch.channels_last))  # a tenth faster, also on a CPU

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """(B, T) -> (B, 3, S, S), near [-1, 1] but not clamped. Raises InputError unless T is a square."""
        grid = math.isqrt(tokens.shape[1])
        if grid * grid != tokens.shape[1]:
            raise InputError(f"{tokens.shape[1]} tokens do not fill a square grid; decode the codes of square images")
        return self.reconstruct(self.quantize.lookup(tokens, grid))


class VQGAN(ConvTokenizer):
    """Encoder and decoder as above, with 1x1 convolutions between their latents and the codebook's dimensions."""

    def __init__(
        self,
        quantize: VectorQuantizer,
        channels: int,
        channel_multipliers: Sequence[int],
        num_blocks: int,
        z_channels: int,
    ):
        super().__init__()
        self.num_tokens, code_dim = quantize.embedding.weight.shape
        self.downsample = 2 ** (len(channel_multipliers) - 1)
        sizes = channels, channel_multipliers, num_blocks, z_channels
        self.encoder, self.decoder, self.quantize = Encoder(*sizes), Decoder(*sizes), quantize
        self.quant_conv = nn.Conv2d(z_channels, code_dim, 1)
        self.post_quant_conv = nn.Conv2d(code_dim, z_channels, 1)

    def latents(self, images: Tensor) -> Tensor:
        """Encoder output before quantization and normalisation: (B, 3, S, S) -> (B, d, H, W)."""
        return self.quant_conv(self.encoder(images))

    def reconstruct(self, quantized: Tensor) -> Tensor:
        """Images of quantized latents: (B, d, H, W) -> (B, 3, S, S)."""
        return self.decoder(self.post_quant_conv(quantized))
