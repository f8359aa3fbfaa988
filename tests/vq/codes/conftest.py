"""Images in memory and on disk, and a tokenizer with its codebook, for the extraction of codes."""

import ilsvrc
import numpy as np
import pytest
import torch
from extraction import NUM_IMAGES, SMALL

from vq.codebook import make_codebook
from vq.images import ImageSource
from vq.readers import load_images


@pytest.fixture(scope="module")
def squares():
    rng = np.random.default_rng(0)
    return ImageSource(
        name="squares",
        split="train",
        pixels=rng.integers(0, 256, (NUM_IMAGES, 16, 16, 3), np.uint8),
        labels=np.arange(NUM_IMAGES) % 2,
        groups=np.arange(NUM_IMAGES) // 2,
        keys=tuple(f"{n}.png" for n in range(NUM_IMAGES)),
        captions=tuple(f"square {n}" for n in range(NUM_IMAGES)),
        class_names=("a", "b"),
        attribution="",
    )


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("small")
    (folder / "weights").write_bytes(b"x")
    model = SMALL.build().eval()
    return model, make_codebook(SMALL, folder / "weights", folder / "codebook.npz", model)


@pytest.fixture
def images(tmp_path):
    """A function that opens 50 images of five classes on disk, anew."""
    root = tmp_path / "images"
    for n in range(NUM_IMAGES):
        file = root / "train" / f"class {n % 5}" / f"{n:02d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(ilsvrc.jpeg(5 * n, size=(20 + n % 7, 24)))
    return lambda: load_images("folder", "train", 16, root)
