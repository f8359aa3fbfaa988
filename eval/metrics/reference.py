"""Reference sets: statistics in ADM's layout, and features for precision and recall.

An .npz holds mu (2048,), sigma (2048, 2048), mu_s (2023,), sigma_s (2023, 2023) of the whole set, and images `arr_0`
for precision and recall (openai/guided-diffusion, evaluations/README.md). ADM's statistics are valid only for
TensorFlow's resize and the published Inception weights. A file made by `make reference` has a header with its origin;
ADM's own evaluator reads such a file too."""

import json
import logging
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState

from masc.layout import reference_file
from masc.runtime.artifacts import hash_arrays, reuse_npz, save_npz
from masc.runtime.device import from_main
from masc.runtime.errors import InputError, MissingArtifact, removal
from masc.runtime.files import hash_file, replacing
from masc.runtime.npy import write_npy
from masc.runtime.reading import Damaged, advising, check_array, check_json, parse_json, read_npz
from masc.runtime.streams import Purpose, random_stream
from metrics.evaluators import RESIZE, SHA256_PREFIX
from metrics.features import ImageFeatures, inception_features
from metrics.frechet import Gaussian
from metrics.inception import POOLED, SPATIAL, Inception
from metrics.streams import Images, NpzImages, SourceImages, open_samples
from vq.hub.fetch import weights_path
from vq.hub.pins import pin_of
from vq.hub.releases import RELEASES
from vq.images import ImageSource

logger = logging.getLogger(__name__)
STATISTICS = {"mu": (POOLED,), "sigma": (POOLED, POOLED), "mu_s": (SPATIAL,), "sigma_s": (SPATIAL, SPATIAL)}
FORMAT, VERSION = "masc-statistics", 1
FEATURES_VERSION = 1
# Arrays of the features that are kept: those of the set, without or with its second feature set and its images.
SPATIAL_SCHEMA = {"mu_s": ("f", (None,)), "factor_s": ("f", (None, None))}
IMAGES_SCHEMA = {"neighbours": ("f", (None, None)), "sharpness": ("f", ())}
FEATURES_SCHEMAS = [
    {"mu": ("f", (None,)), "factor": ("f", (None, None)), **spatial, **images}
    for spatial in ({}, SPATIAL_SCHEMA)
    for images in ({}, IMAGES_SCHEMA)
]


@dataclass(frozen=True, eq=False)
class ReferenceStatistics:
    """Statistics and features of a reference set, as the metrics use them."""

    name: str
    sha256: str
    split: str | None
    size: int | None  # number of images in the statistics
    pooled: Gaussian
    spatial: Gaussian | None
    neighbours: np.ndarray | None  # (M', 2048) float32 for precision and recall
    sharpness: float | None = None

    @property
    def protocol(self) -> dict[str, Any]:
        known = {
            "reference": self.name,
            "reference_sha256": self.sha256,
            "reference_split": self.split,
            "reference_size": self.size,
            "reference_neighbours": None if self.neighbours is None else len(self.neighbours),
        }
        return {key: value for key, value in known.items() if value is not None}


def find_reference(name: str, artifacts: Path, weights: Path, resize: str) -> Path:
    """The file or folder of a reference: from the registry, made by `make reference`, or a path.

    Raises InputError if there is none."""
    if name in RELEASES:
        return weights_path(name, weights)
    made = reference_file(artifacts, name)
    if made.exists():
        return made
    if Path(name).exists():
        return Path(name)
    if resize != RESIZE["adm"]:
        raise MissingArtifact(
            "reference",
            made,
            f"no reference {name!r}: neither {made} nor a path. This protocol has the resize {resize}: name a folder "
            "of PNG files, or make a reference with this resize",
            data="imagenet256",
            overrides={"resize": resize, "data.path": "FOLDER"},
        )
    raise MissingArtifact(
        "reference",
        made,
        f"no reference {name!r}: neither {made} nor a path. Name a folder of PNG files, an .npz, or ADM's own, "
        "adm-imagenet256, which is one of the released weights; or make this reference",
    )


def load_statistics(
    name: str, artifacts: Path, weights: Path, model: Inception, resize: str, batch_size: int, state: PartialState
) -> ReferenceStatistics | None:
    """The reference called `name`, with its features, or None outside the main process.

    Features that cost a pass over images are kept in `artifacts`. Raises InputError if the reference is missing or
    broken, or if its statistics come from another extractor or resize."""
    path = find_reference(name, artifacts, weights, resize)
    stored, header = _read_statistics(path) if path.suffix == ".npz" else ({}, {})
    if stored:
        _check_origin(path, stored, header, model, resize)
    images = _images_of(path, bool(stored))
    # The file may be several gigabytes, so only one process reads it.
    sha256 = from_main(lambda: hash_file(path) if path.is_file() else images.sha256)
    if name in RELEASES:
        _check_pinned(name, path, sha256, weights)
    config = {"reference": sha256, "extractor": model.sha256, "resize": resize}
    if state_of_files := from_main(lambda: "" if path.is_file() else images.state):
        config["state"] = state_of_files
    cache = reference_file(artifacts, f"features-{hash_of(config)}")
    kept = reuse_npz(cache, "reference-features", FEATURES_VERSION, config, {}, *FEATURES_SCHEMAS)
    state.wait_for_everyone()  # every process looks before the main one writes, so that all take the same branch
    found = inception_features(images, model, resize, batch_size, state) if kept is None and images else None
    if not state.is_main_process:
        return None
    if kept is None:
        arrays = _arrays(found, stored)
        save_npz(cache, "reference-features", FEATURES_VERSION, arrays, config, {})
    else:
        arrays = kept[0]
    device = model.fc.weight.device
    return ReferenceStatistics(
        name if name in RELEASES or path.is_dir() else header.get("name", path.stem),
        sha256,
        header.get("split") or ("train" if name in RELEASES else None),
        header.get("count") or (None if stored else len(images)),
        _gaussian(arrays, "", device),
        _gaussian(arrays, "_s", device) if "mu_s" in arrays else None,
        arrays.get("neighbours"),
        float(arrays["sharpness"]) if "sharpness" in arrays else None,
    )


def _check_pinned(name: str, path: Path, sha256: str, weights: Path) -> None:
    """Raise InputError if a reference of the registry has another SHA-256 than its pin."""
    pinned = pin_of(RELEASES[name], RELEASES[name].files[0], weights).sha256
    if pinned and sha256 != pinned:
        problem = f"{path} has SHA-256 {sha256}, expected {pinned}: damaged, or another reference"
        raise MissingArtifact("weights", path, problem, remove=True, name=name)


def hash_of(config: dict[str, Any]) -> str:
    return hash_arrays({"": np.frombuffer(json.dumps(config, sort_keys=True).encode(), np.uint8)})[:12]


@dataclass(frozen=True)
class _Header:
    """The keys of a reference's header that are used, all optional."""

    name: str = ""
    sha256: str = ""  # of the statistics
    split: str | None = None
    count: int | None = None
    extractor_sha256: str = ""
    resize: str = ""


def _read_statistics(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The statistics in an .npz, and its header if `make reference` made it; both are empty without them."""
    with advising("copy it or make it again"):
        stored = read_npz(path, [*STATISTICS, "header"])
        text, header = stored.pop("header", None), {}
        if text is not None:
            header = parse_json(str(check_array(path, text, "U", ())), dict[str, Any], path)
            check_json(header, _Header, path)
        for array in stored.values():
            check_array(path, array, "f", (None,) * array.ndim)
        if stored and header.get("sha256") not in (None, hash_arrays(stored)):
            raise Damaged(f"the statistics in {path} do not match its own SHA-256")
    if stored and not {"mu", "sigma"} <= stored.keys():
        raise InputError(f"{path} holds {', '.join(stored)} but not both mu and sigma; make it again")
    return stored, header


def _check_origin(path: Path, stored: dict[str, np.ndarray], header: dict, model: Inception, resize: str) -> None:
    for key, array in stored.items():
        if array.shape != STATISTICS[key]:
            raise InputError(
                f"{key} of {path} has shape {array.shape}, expected {STATISTICS[key]}: they come from another "
                "extractor; take statistics of Inception features"
            )
        if not np.isfinite(array).all():
            raise InputError(f"{key} of {path} is not finite; copy or make it again")
    if "extractor_sha256" not in header and not model.sha256.startswith(SHA256_PREFIX):
        logger.warning(
            "%s does not say which network its statistics come from (ADM's come from the published one); the weights "
            "in use are others (%s), so FID and sFID mean nothing unless the statistics come from them",
            path,
            model.sha256[:12],
        )
    made_with = header.get("extractor_sha256", model.sha256), header.get("resize", RESIZE["adm"])
    if made_with != (model.sha256, resize):
        raise MissingArtifact(
            "reference",
            path,
            f"the statistics in {path} come from the extractor {made_with[0][:12]} with the resize {made_with[1]}; "
            f"this protocol has {model.sha256[:12]} and {resize}, and the two cannot be "
            "compared. Make a reference for it",
            overrides={"resize": resize, "name": "..."},
        )


def _images_of(path: Path, has_statistics: bool) -> Images | None:
    """The images of a reference; None if it holds only statistics."""
    if not has_statistics:
        return open_samples(path)
    with zipfile.ZipFile(path) as archive:
        return NpzImages(path) if "arr_0.npy" in archive.namelist() else None


def _arrays(found: ImageFeatures | None, stored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Mean and factor of both feature sets, and the features of the images."""
    arrays = {} if found is None else {"neighbours": found.pooled, "sharpness": np.array(found.pixels["sharpness"])}
    for suffix in ("", "_s"):
        if f"mu{suffix}" in stored:
            mean, covariance = (torch.from_numpy(stored[key + suffix].astype(np.float64)) for key in ("mu", "sigma"))
            gaussian = Gaussian(mean, covariance)
        elif stored or found is None:
            continue
        else:
            gaussian = found.spatial if suffix else found.gaussian
        arrays |= {f"mu{suffix}": gaussian.mean.cpu().numpy(), f"factor{suffix}": gaussian.factor.cpu().numpy()}
    return arrays


def _gaussian(arrays: dict[str, np.ndarray], suffix: str, device: torch.device) -> Gaussian:
    mean, factor = (torch.from_numpy(arrays[key + suffix]).to(device) for key in ("mu", "factor"))
    return Gaussian.from_factor(mean, factor)


def make_reference(
    path: Path,
    source: ImageSource,
    model: Inception,
    resize: str,
    num_kept: int,
    seed: int,
    batch_size: int,
    state: PartialState,
    more: dict[str, Any] | None = None,
) -> None:
    """Write the reference of all images of a source, unless `path` holds it already.

    `more`: further metadata of the images. Raises InputError if `path` holds a reference of other images, of another
    extractor or of another resize."""
    rows = np.sort(random_stream(seed, Purpose.REFERENCE_IMAGES).permutation(len(source))[:num_kept])
    about = {
        "name": path.stem,
        "split": source.split,
        "count": len(source),
        "images_sha256": source.sha256,
        "resolution": list(source.pixels.shape[1:3]),
        "resize": resize,
        "extractor_sha256": model.sha256,
        "kept_seed": seed,
        "kept": len(rows),
        **(more or {}),
    }
    if path.exists():
        there = _read_statistics(path)[1]
        if source.earlier_sha256 is not None and there.get("images_sha256") == source.earlier_sha256:
            logger.warning(
                "%s was made by an earlier version, which recorded the names and sizes of the images but not when they "
                "were changed; it is kept",
                path,
            )
            about["images_sha256"] = source.earlier_sha256
        differing = [f"{key} {there.get(key)} there, {about[key]} now" for key in about if there.get(key) != about[key]]
        if differing:
            raise InputError(
                f'{path} holds another reference: {", ".join(differing)}. Choose another name with ARGS="name=...", or '
                f"delete the file with `{removal(path)}`"
            )
        return
    found = inception_features(SourceImages(source), model, resize, batch_size, state)
    if state.is_main_process:
        save_reference(path, found, SourceImages(source, rows), about)
    state.wait_for_everyone()


def save_reference(path: Path, found: ImageFeatures, kept: Images, about: dict[str, Any]) -> None:
    """Write a reference in ADM's layout: statistics of `found`, the images `kept`, and the header `about`.

    The images are written batch by batch."""
    statistics = {
        "mu": found.gaussian.mean,
        "sigma": found.gaussian.covariance,
        "mu_s": found.spatial.mean,
        "sigma_s": found.spatial.covariance,
    }
    arrays = {key: value.cpu().numpy() for key, value in statistics.items()}
    header = {"format": FORMAT, "version": VERSION, "sha256": hash_arrays(arrays), **about}
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, array in {**arrays, "header": np.array(json.dumps(header))}.items():
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
        with archive.open("arr_0.npy", "w", force_zip64=True) as file:
            parts = (kept.read(start, start + 64) for start in range(0, len(kept), 64))
            write_npy(file, parts, len(kept), str(path))
