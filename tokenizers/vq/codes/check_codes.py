"""Check of packed codes: checksums, sizes of the classes, and a grid of decoded images with their labels."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from masc.runtime.artifacts import Codebook
from masc.runtime.codes import Codes, load_codes, load_keys
from masc.runtime.files import replacing
from masc.runtime.streams import Purpose, random_stream
from masc.runtime.verify import verify_codes
from vq.interface import Tokenizer
from vq.pixels import decode_pixels

LINE = 12  # pixels of a line of text


@dataclass(frozen=True)
class Checked:
    """Result of the check of one directory of codes."""

    num_images: int
    num_views: int
    num_shards: int
    num_classes: int  # classes with at least one image
    smallest_class: int  # number of images
    largest_class: int
    usage: float  # share of the codebook in the images shown

    def __str__(self) -> str:
        return (
            f"{self.num_images} images, {self.num_views} view(s), {self.num_shards} shards match their checksums; "
            f"{self.num_classes} classes of {self.smallest_class} to {self.largest_class} images; the images shown "
            f"use {self.usage:.1%} of the codebook"
        )


def check_codes(model: Tokenizer, codebook: Codebook, path: Path, image: Path, num_shown: int, seed: int) -> Checked:
    """Verify the codes at `path`, and write a PNG of `num_shown` random entries, decoded, to `image`.

    The text below each image gives its number, view, label and the name of the label. Raises InputError as `load_codes`
    and `verify_codes` do."""
    num_shards = verify_codes(path)
    codes = load_codes(path, codebook.meta.sha256)
    keys = load_keys(path)
    rng = random_stream(seed, Purpose.CHECKED_CODES)
    rows = np.sort(rng.choice(codes.num_images, min(num_shown, codes.num_images), replace=False))
    views = rng.integers(codes.tokens.shape[1], size=len(rows))
    tokens = codes.read(rows, views)
    notes = [_note(codes, keys, int(row), int(view)) for row, view in zip(rows, views, strict=True)]
    _write_grid(image, decode_pixels(model, tokens, batch_size=16), notes)
    counts = np.bincount(codes.labels)
    return Checked(
        num_images=codes.num_images,
        num_views=codes.tokens.shape[1],
        num_shards=num_shards,
        num_classes=int((counts > 0).sum()),
        smallest_class=int(counts[counts > 0].min()),
        largest_class=int(counts.max()),
        usage=len(np.unique(tokens)) / codes.num_tokens,
    )


def _note(codes: Codes, keys: list[str], row: int, view: int) -> list[str]:
    label = int(codes.labels[row])
    names = codes.config.get("views")
    has_names = isinstance(names, list) and len(names) == codes.tokens.shape[1]
    return [
        f"{row} {keys[row].rpartition('/')[2] if keys else ''}",
        f"label {label}: {codes.class_names[label]}",
        f"view {view}: {names[view] if has_names else ''}",
    ]


def _write_grid(path: Path, images: np.ndarray, notes: list[list[str]]) -> None:
    """Write the images to a PNG, in rows of eight, each with its lines of text below."""
    side = max(images.shape[1], 128)  # room for the text
    width, height = side + 8, side + 8 + LINE * len(notes[0])
    columns = min(8, len(images))
    canvas = Image.new("RGB", (columns * width, -(-len(images) // columns) * height), "white")
    draw = ImageDraw.Draw(canvas)
    for index, (pixels, lines) in enumerate(zip(images, notes, strict=True)):
        left, top = index % columns * width + 4, index // columns * height + 4
        canvas.paste(Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST), (left, top))
        for number, line in enumerate(lines):
            fitting = line[: max(1, side // 6)]
            draw.text((left, top + side + number * LINE), fitting, "black")
    with replacing(path) as temporary:
        canvas.save(temporary, "PNG")
