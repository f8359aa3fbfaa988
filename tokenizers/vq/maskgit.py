"""MaskGIT-VQ, the tokenizer of RAR (arXiv 2411.00776): 1,024 vectors of 256 dimensions, no attention.

Follows bytedance/1d-tokenizer (942a96f), modeling/modules/maskgit_vqgan.py and modeling/titok.py, with its parameter
names. All its convolutions have stride 1, so its "same" padding is the ordinary one. Its networks take and give images
in [0, 1]; the tokenizer here takes and gives them in [-1, 1], without clamping.

Shapes: B images, S x S pixels, C channels, H x W code grid, d code dimension, N tokens, T = H * W positions."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from vq.blocks import ConvTokenizer, ResBlock, activate, group_norm, res_blocks
from vq.quantize import VectorQuantizer


class MaskGITBlock(ResBlock):
    """A residual block without biases: (B, C_in, H, W) -> (B, C_out, H, W).

    If the widths differ, the published code feeds the shortcut with the branch instead of the input. The published
    weights were trained that way."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, bias=False)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(out_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.residual(x)
        return h + (self.nin_shortcut(h) if hasattr(self, "nin_shortcut") else x)


class Level(nn.Module):
    """Residual blocks at one resolution; in the decoder, then twice the resolution and a convolution."""

    def __init__(self, in_channels: int, channels: int, num_blocks: int, has_upsample: bool = False):
        super().__init__()
        self.block = res_blocks(in_channels, channels, num_blocks, MaskGITBlock)
        if has_upsample:
            self.upsample_conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        if hasattr(self, "upsample_conv"):
            x = self.upsample_conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return x


class Encoder(nn.Module):
    """(B, 3, S, S) in [0, 1] -> (B, d, H, W)."""

    def __init__(self, channels: int, multipliers: Sequence[int], num_blocks: int, code_dim: int):
        super().__init__()
        widths = [channels, *(channels * multiplier for multiplier in multipliers)]
        self.conv_in = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.down = nn.ModuleList(Level(widths[i], widths[i + 1], num_blocks) for i in range(len(multipliers)))
        self.mid = res_blocks(widths[-1], widths[-1], num_blocks, MaskGITBlock)
        self.norm_out = group_norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], code_dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for index, level in enumerate(self.down):
            x = level(F.avg_pool2d(x, 2) if index else x)
        for block in self.mid:
            x = block(x)
        return self.conv_out(activate(self.norm_out(x)))


class Decoder(nn.Module):
    """(B, d, H, W) -> (B, 3, S, S) near [0, 1]; `up` counts from the finest level."""

    def __init__(self, channels: int, multipliers: Sequence[int], num_blocks: int, code_dim: int):
        super().__init__()
        widths = [channels * multiplier for multiplier in (*multipliers, multipliers[-1])]
        self.conv_in = nn.Conv2d(code_dim, widths[-1], 3, padding=1)
        self.mid = res_blocks(widths[-1], widths[-1], num_blocks, MaskGITBlock)
        self.up = nn.ModuleList(
            Level(widths[i + 1], widths[i], num_blocks, has_upsample=i > 0) for i in range(len(multipliers))
        )
        self.norm_out = group_norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in (*self.mid, *reversed(self.up)):
            x = block(x)
        return self.conv_out(activate(self.norm_out(x)))


class MaskGITVQ(ConvTokenizer):
    """Images (B, 3, S, S) in [-1, 1] <-> tokens (B, T) in raster order."""

    def __init__(
        self,
        num_tokens: int = 1024,  # N
        code_dim: int = 256,  # d
        channels: int = 128,  # at full resolution
        channel_multipliers: Sequence[int] = (1, 1, 2, 2, 4),  # a level each; half the resolution between them
        num_blocks: int = 2,  # residual blocks a level
        commitment: float = 0.25,
    ):
        super().__init__()
        self.num_tokens, self.downsample = num_tokens, 2 ** (len(channel_multipliers) - 1)
        sizes = channels, channel_multipliers, num_blocks, code_dim
        self.encoder, self.decoder = Encoder(*sizes), Decoder(*sizes)
        self.quantize = VectorQuantizer(num_tokens, code_dim, commitment, l2_norm=False)

    def latents(self, images: Tensor) -> Tensor:
        """Encoder output before quantization: (B, 3, S, S) in [-1, 1] -> (B, d, H, W)."""
        return self.encoder((images + 1) / 2)

    def reconstruct(self, quantized: Tensor) -> Tensor:
        """Images of quantized latents: (B, d, H, W) -> (B, 3, S, S) near [-1, 1]."""
        return self.decoder(quantized) * 2 - 1
