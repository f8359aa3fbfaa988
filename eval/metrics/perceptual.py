"""LPIPS (Zhang et al. 2018, version 0.1): distance of two images in a network's features, weighted by human judgement.

The `lpips` package holds the network and its linear layers. The backbone is torchvision's file, whose name ends in the
first digits of its SHA-256. This module downloads nothing."""

import logging
import warnings
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from masc.runtime.errors import MissingArtifact
from masc.runtime.files import hash_file
from masc.runtime.reading import reason
from vq.pixels import to_tensor

logger = logging.getLogger(__name__)


class Backbone(NamedTuple):
    file: str
    sha256: str  # first digits
    release: str  # its name for `make weights`


BACKBONES = {
    "alex": Backbone("alexnet-owt-7be5be79.pth", "7be5be79", "lpips-alexnet"),  # the usual backbone of published LPIPS
    "vgg": Backbone("vgg16-397923af.pth", "397923af", "lpips-vgg16"),
}


class Lpips(nn.Module):
    """LPIPS of pairs of uint8 images; `load_lpips` loads its weights."""

    def __init__(self, backbone: str = "alex"):
        from lpips import LPIPS

        super().__init__()
        with warnings.catch_warnings():  # lpips uses old names of torchvision's networks
            warnings.simplefilter("ignore", UserWarning)
            self.network = LPIPS(net=backbone, pretrained=False, pnet_rand=True, verbose=False)
        linear = str(resources.files("lpips") / "weights" / "v0.1" / f"{backbone}.pth")
        layers = torch.load(linear, weights_only=True, map_location="cpu")
        self.network.load_state_dict(self.network.state_dict() | layers)
        self.backbone, self.sha256 = backbone, ""

    def load_backbone(self, state: dict[str, Tensor]) -> None:
        """Load the convolutions of torchvision's state dict; KeyError or RuntimeError if it is of another network."""
        # lpips cuts `features` into slices that keep the layers' numbers: slice2.3.weight is features.3.weight.
        names = {name: f"features.{name.partition('.')[2]}" for name in self.network.net.state_dict()}
        self.network.net.load_state_dict({name: state[source] for name, source in names.items()})

    @torch.inference_mode()
    def forward(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """uint8 (B, H, W, 3), (B, H, W, 3) -> (B,) float32. Images enter the network in [-1, 1] at their own size."""
        device = next(self.parameters()).device
        return self.network(*(to_tensor(images).to(device) for images in (a, b))).flatten().cpu().numpy()

    @property
    def protocol(self) -> dict[str, Any]:
        return {"version": "0.1", "backbone": self.backbone, "backbone_sha256": self.sha256}


def lpips_path(folder: Path, backbone: str = "alex") -> Path:
    """Path of the backbone's file in the folder of `make weights`."""
    return Path(folder) / BACKBONES[backbone].file


def load_lpips(
    folder: Path, device: torch.device | str = "cpu", backbone: str = "alex", sha256: str | None = None
) -> Lpips | None:
    """LPIPS with the backbone's published file in `folder`, or with a file of the SHA-256 that is given.

    Returns None, with a warning, if the file is missing. Raises InputError if it is another file or truncated."""
    path, known = lpips_path(folder, backbone), BACKBONES[backbone]
    if not path.exists():
        logger.warning("LPIPS is left out: %s", MissingArtifact("weights", path, name=known.release))
        return None
    found, expected = hash_file(path), sha256 or known.sha256
    if not found.startswith(expected):
        raise MissingArtifact(
            "weights",
            path,
            f"{path} has SHA-256 {found}, expected {expected}{'' if sha256 else '...'}: truncated, or another network",
            remove=True,
            name=known.release,
        )
    model = Lpips(backbone)
    try:
        model.load_backbone(torch.load(path, weights_only=True, map_location="cpu"))
    except Exception as error:  # for damaged bytes torch raises errors of any type
        problem = f"{path} does not hold torchvision's weights of {path.stem} ({reason(error, path)})"
        raise MissingArtifact("weights", path, problem, remove=True, name=known.release) from error
    model.sha256 = found
    return model.eval().requires_grad_(False).to(device)
