"""The small convolutional VQ tokenizer of the embedded experiment, trained in minutes on a CPU.

A LlamaGen-style tokenizer (l2-normalised codebook, raster code grid) with a pixel-unshuffle stem in place
of the deep full-resolution levels.

Shapes: B images, S x S pixels, T = grid * grid positions, N tokens, d code dimension."""

import torch.nn.functional as F
from torch import Tensor, nn

from masc.runtime.errors import InputError
from vq.quantize import Quantized, VectorQuantizer


class ResBlock(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, channels), nn.GroupNorm(8, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


class ConvVQ(nn.Module):
    """Images (B, 3, S, S) in [-1, 1] <-> tokens (B, T) in raster order."""

    def __init__(
        self,
        resolution: int = 32,  # S: pixels a side
        downsample: int = 4,  # pixels a token and side
        num_tokens: int = 1024,  # N
        code_dim: int = 8,  # d
        width: int = 64,  # channels at half resolution, twice that at every coarser level
        num_blocks: int = 2,  # residual blocks a level
        commitment: float = 0.25,
    ):
        super().__init__()
        self.options = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        if downsample < 2 or downsample & (downsample - 1):
            raise InputError(f"tokenizer.options.downsample must be a power of two, at least 2, not {downsample}")
        if resolution % downsample:
            raise InputError(
                f"tokenizer.options.resolution {resolution} is not a multiple of its downsample {downsample}"
            )
        self.resolution, self.downsample, self.num_tokens = resolution, downsample, num_tokens
        num_levels = downsample.bit_length() - 1  # the stem's unshuffle is the first level
        widths = [width * (1 if level == 0 else 2) for level in range(num_levels)]

        encoder: list[nn.Module] = [nn.PixelUnshuffle(2), nn.Conv2d(12, widths[0], 3, padding=1)]
        for level, channels in enumerate(widths):
            if level:
                encoder.append(nn.Conv2d(widths[level - 1], channels, 4, stride=2, padding=1))
            encoder += [ResBlock(channels) for _ in range(num_blocks)]
        encoder += [nn.GroupNorm(8, widths[-1]), nn.SiLU(), nn.Conv2d(widths[-1], code_dim, 1)]
        self.encoder = nn.Sequential(*encoder)

        self.quantize = VectorQuantizer(num_tokens, code_dim, commitment)

        decoder: list[nn.Module] = [nn.Conv2d(code_dim, widths[-1], 3, padding=1)]
        for level in reversed(range(num_levels)):
            decoder += [ResBlock(widths[level]) for _ in range(num_blocks + 1)]
            if level:
                decoder += [
                    nn.Conv2d(widths[level], 4 * widths[level - 1], 3, padding=1),
                    nn.PixelShuffle(2),
                ]
        decoder += [nn.GroupNorm(8, widths[0]), nn.SiLU(), nn.Conv2d(widths[0], 12, 3, padding=1)]
        self.decoder = nn.Sequential(*decoder, nn.PixelShuffle(2))

    @property
    def grid(self) -> int:
        """Tokens a side."""
        return self.resolution // self.downsample

    @property
    def codebook(self) -> Tensor:
        """Effective vectors: (N, d)."""
        return self.quantize.codebook

    def latents(self, images: Tensor) -> Tensor:
        """Encoder output before quantization, on the unit sphere: (B, 3, S, S) -> (B, d, grid, grid)."""
        return F.normalize(self.encoder(images), dim=1)

    def forward(self, images: Tensor) -> tuple[Tensor, Quantized]:
        """Reconstruction through the straight-through quantizer, and the quantizer's result."""
        quantized = self.quantize(self.latents(images))
        return self.decoder(quantized.latents), quantized

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) in [-1, 1] -> (B, T) int64. Raises InputError for images of another size."""
        self._check_size(images)
        return self.quantize(self.latents(images)).tokens

    def encode_near(self, images: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The `count` nearest codes of each latent, and their squared distances, as `Tokenizer.encode_near`."""
        self._check_size(images)
        return self.quantize.near(self.latents(images), count)

    def _check_size(self, images: Tensor) -> None:
        if images.shape[-1] != self.resolution:
            raise InputError(
                f"the images have {images.shape[-1]} pixels a side, but the tokenizer takes {self.resolution}; "
                "choose DATA and TOKENIZER of one size"
            )

    def decode(self, tokens: Tensor) -> Tensor:
        """(B, T) -> (B, 3, S, S), near [-1, 1] but not clamped."""
        return self.decoder(self.quantize.lookup(tokens, self.grid))
