"""What a sample set on disk holds."""

import torch


def contents(samples):
    """The bytes of its arrays and images, by name."""
    files = sorted(samples.directory.rglob("*"))
    return {file.name: file.read_bytes() for file in files if file.suffix in (".npy", ".png")}


def images_of(samples):
    """All of its images, (M, H, W, 3) uint8."""
    images = samples.open_images(torch.device("cpu"))
    return images.read(0, len(images))
