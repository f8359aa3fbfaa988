"""Conditions of a run's images by their row in the codes: the class of an image, or one of its captions.

Shapes: B images, C caption feature width, P positions of the condition."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from llamagen.backbones.config import BackboneConfig
from llamagen.conditions.encoders import WordLlama
from llamagen.conditions.features import TextFeatures
from masc.runtime.captions import load_captions
from masc.runtime.codes import Codes
from masc.runtime.errors import InputError, MissingArtifact, naming
from masc.runtime.streams import Purpose, random_stream


class Labels:
    """The class of each image."""

    def __init__(self, labels: np.ndarray):
        self.labels = labels  # (M,) int64

    def batch(self, images: np.ndarray, uniforms: np.ndarray | None = None) -> tuple[Tensor, None]:
        """The classes of the images with these rows: (B,) -> (B,) int64, and no mask."""
        return torch.from_numpy(self.labels[images]), None


class ImageCaptions:
    """The captions of each image, as text features."""

    def __init__(self, features: TextFeatures, counts: list[int]):
        """`features` holds the captions of one image after another; `counts` (M,) is their number for each image."""
        self.features, self.counts = features, np.array(counts)
        self.starts = np.cumsum(self.counts) - self.counts

    def batch(self, images: np.ndarray, uniforms: np.ndarray | None = None) -> tuple[Tensor, Tensor]:
        """One caption of each image with these rows (B,): features (B, P, C) and mask (B, P).

        `uniforms` (B,) in [0, 1) choose among the captions of an image; without them the first is taken."""
        place = 0 if uniforms is None else (uniforms * self.counts[images]).astype(np.int64)
        return self.features.batch(self.starts[images] + place)


Conditions = Labels | ImageCaptions


def draw_labels(population: np.ndarray, num_images: int, seed: int) -> np.ndarray:
    """A label of the population for each image by index: (M,) int64. Image i has the same label whatever M is."""
    draws = [random_stream(seed, Purpose.LABELS, index).random() for index in range(num_images)]
    return population[(np.array(draws) * len(population)).astype(np.int64)]


def check_text_model(config: BackboneConfig, captions: str | None) -> None:
    """Raise InputError unless a text model is given captions, and a class model none."""
    if (captions is None) == (config.condition == "text"):
        raise InputError(
            f"{config.name} is {config.condition}-conditional: a text model needs captions=FOLDER of text features, "
            "a class model takes none"
        )


def check_features(config: BackboneConfig, features: TextFeatures, path: Path) -> None:
    """Raise InputError unless text features have the shape that a text model takes."""
    found = features.max_tokens, features.dim
    if found != (config.caption_tokens, config.caption_dim):
        raise InputError(
            f"{config.name} takes captions of {config.caption_tokens} x {config.caption_dim} numbers, {path} holds "
            f"{found[0]} x {found[1]} by {features.config['encoder']}; take the model's encoder, or set "
            f"model.caption_tokens={found[0]} model.caption_dim={found[1]} for a model of your own"
        )


def encoder_override(config: BackboneConfig) -> dict[str, str]:
    """What a command that makes a model's text features must say of the encoder; empty for FLAN-T5-XL, the default."""
    is_small = (config.caption_tokens, config.caption_dim) == (WordLlama.max_tokens, WordLlama.dim)
    return {"encoder": WordLlama.name} if is_small else {}


def open_captions(codes_path: Path, codes: Codes, features_path: Path) -> ImageCaptions:
    """The captions of a set of codes, from the text features that were made of its captions.json.

    Raises InputError if the features are of other captions, or an image has none."""
    captions = load_captions(codes_path)
    bare = [row for row in range(codes.num_images) if row >= len(captions) or not captions[row]]
    if bare:
        raise InputError(
            f"image {bare[0]} and {len(bare) - 1} others in {codes_path} have no caption; train a class model without "
            "captions=..., or extract codes of images that all have captions"
        )
    how = {"captions": f"{codes_path}/captions.json", "overrides": {"out": features_path}}
    with naming(**how):
        features = TextFeatures.load(features_path)
    wanted = [(str(row), text) for row, texts in enumerate(captions) for text in texts]
    found = list(zip(features.images or [], features.captions, strict=False))
    if wanted != found:
        problem = f"{features_path} holds the features of other captions than those of {codes_path}"
        raise MissingArtifact("text features", features_path, problem, remove=True, **how)
    return ImageCaptions(features, [len(texts) for texts in captions])
