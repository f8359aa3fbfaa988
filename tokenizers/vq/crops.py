"""Square views of an image of any size, equal to LlamaGen's in every pixel.

Follows FoundationVision/LlamaGen (ce98ec4), dataset/augmentation.py and autoregressive/train/extract_codes_c2i.py;
the centre crop is ADM's (openai/guided-diffusion, image_datasets.py). Differs: all functions also take arrays, and the
random crop takes a generator.

Shapes: V views of S x S pixels."""

import math
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

CROPS = ("center", "center-flip", "ten-crop")
MAX_SCALED = 2**26  # most pixels of a scaled image in memory
FIVE = ("top left", "top right", "bottom left", "bottom right", "centre")


def _image(image: Image.Image | np.ndarray) -> Image.Image:
    return image if isinstance(image, Image.Image) else Image.fromarray(image)


def _halve(image: Image.Image, side: int) -> Image.Image:
    """Halve the image by a box filter while its shorter side is at least twice `side`."""
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    return image


def _scaled_size(image: Image.Image, side: int) -> tuple[int, int]:
    """Width and height of the image when its shorter side is scaled to `side`."""
    scale = side / min(image.size)
    return round(image.width * scale), round(image.height * scale)


def _cut(image: Image.Image, scaled: tuple[int, int], left: int, top: int, size: int) -> np.ndarray:
    """The square of `size` at (left, top) of the image scaled to `scaled` by a bicubic filter: (S, S, 3) uint8."""
    width, height = scaled
    if width * height > MAX_SCALED:  # a strip: only the square is computed, equal but for rounding
        x, y = image.width / width, image.height / height
        box = (left * x, top * y, (left + size) * x, (top + size) * y)
        return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box))
    return np.asarray(image.resize(scaled, Image.Resampling.BICUBIC))[top : top + size, left : left + size]


def center_crop(image: Image.Image | np.ndarray, size: int) -> np.ndarray:
    """ADM's centre crop: an image or (H, W, 3) uint8 -> (S, S, 3) uint8."""
    image = _halve(_image(image), size)
    width, height = scaled = _scaled_size(image, size)
    return _cut(image, scaled, (width - size) // 2, (height - size) // 2, size)


def random_crop(
    image: Image.Image | np.ndarray, size: int, smallest: float, largest: float, rng: Any = random
) -> np.ndarray:
    """ADM's random crop: its side is a share between `smallest` and `largest` of the shorter side.

    An image or (H, W, 3) uint8 -> (S, S, 3) uint8. `rng` is a random.Random, or the module's own generator."""
    side = rng.randrange(math.ceil(size / largest), math.ceil(size / smallest) + 1)
    image = _halve(_image(image), side)
    width, height = scaled = _scaled_size(image, side)
    top = rng.randrange(height - size + 1)
    left = rng.randrange(width - size + 1)
    return _cut(image, scaled, left, top, size)


def ten_crop(image: Image.Image | np.ndarray, size: int, crop_range: float) -> np.ndarray:
    """Corners and centre of the centre crop of `int(size * crop_range)` pixels, then of its mirror image.

    An image or (H, W, 3) uint8 -> (10, S, S, 3) uint8, in the order of torchvision's TenCrop."""
    pixels = center_crop(image, int(size * crop_range))
    edge = len(pixels) - size
    middle = round(edge / 2)  # rounded to even, as in torchvision
    corners = [(0, 0), (0, edge), (edge, 0), (edge, edge), (middle, middle)]
    return np.stack(
        [one[top : top + size, left : left + size] for one in (pixels, pixels[:, ::-1]) for top, left in corners]
    )


@dataclass(frozen=True)
class Views:
    """The views of an image that are tokenized.

    In training, LlamaGen picks the ten crops at 1.1 or those at 1.05 with equal chance, and then one of the ten
    (dataset/imagenet.py). That is uniform over the twenty views of `ten-crop` here."""

    crops: str  # one of CROPS
    crop_ranges: tuple[float, ...] = ()  # of ten-crop

    @property
    def names(self) -> list[str]:
        """The name of each view: V names."""
        if self.crops != "ten-crop":
            return ["centre", "centre mirrored"][: 2 if self.crops == "center-flip" else 1]
        return [
            f"{crop_range:g} {place}{mirrored}"
            for crop_range in self.crop_ranges
            for mirrored in ("", " mirrored")
            for place in FIVE
        ]

    def __call__(self, image: Image.Image | np.ndarray, size: int) -> np.ndarray:
        """An image or (H, W, 3) uint8 -> (V, S, S, 3) uint8."""
        if self.crops == "ten-crop":
            return np.concatenate([ten_crop(image, size, crop_range) for crop_range in self.crop_ranges])
        crop = center_crop(image, size)
        return np.stack([crop, crop[:, ::-1]][: len(self.names)])
