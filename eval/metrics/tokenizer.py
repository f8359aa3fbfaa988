"""Evaluation of a tokenizer: reconstruction, use of tokens, and the semantic replacement test.

Writes three files to one directory: tokenizer.json and replacement.json, which are measured again when their inputs
change, and replacement.png, the image grid of the paper's Figure 4 (its images are in pictures.npz)."""

import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from masc.runtime.artifacts import hash_arrays
from masc.runtime.device import patient_state
from masc.runtime.errors import InputError, MissingArtifact
from masc.runtime.files import hash_file, replacing, write_json
from masc.runtime.reading import Damaged, read_json
from masc.runtime.streams import Purpose, random_stream
from masc.tree import Partition
from metrics import lite0
from metrics.evaluators import NAME
from metrics.fidelity import Comparison, ImageSet, Judges, llamagen_similarity
from metrics.inception import exact_arithmetic, load_inception
from metrics.lite0 import draw_variants, load_extractor, load_reference, measure_images
from metrics.perceptual import load_lpips, lpips_path
from metrics.replacement import (
    BATCH,
    TreeCut,
    labelled_grid,
    measure_replacement,
    num_shown,
    shown_images,
)
from metrics.results import TOKENIZER_FILES, check_new, row
from metrics.spaces import inception_path, inception_space, lite0_space
from metrics.streams import SourceImages, read_batches
from vq.images import ImageSource
from vq.interface import Tokenizer
from vq.pixels import decode_pixels, encode_pixels
from vq.quality import usage_and_perplexity

logger = logging.getLogger(__name__)
VERSION = 2
IMAGE_FILES = {"replacement": ("pictures.npz", "replacement.png")}  # of a part, beside its results
EMBEDDED = "twemoji"  # data whose samples are measured in the embedded feature space


@dataclass(frozen=True)
class TokenizerTest:
    """The images, trees and seeds that a tokenizer is measured with."""

    name: str
    weights: Path
    train: ImageSource | None  # for the floors of sample metrics; None: they are left out
    held_out: ImageSource
    partitions: dict[str, dict[int, Partition]]  # by tree and K
    num_images: int = 1000  # at most, of each split
    seed: int = 0
    seeds: tuple[int, ...] = (0, 1, 2)  # of the replacement test
    reconstruction: bool = True  # measure it, in addition to the replacement test
    folder: Path = Path("weights")  # of the weights of Inception and LPIPS, if there are any
    backbone: str = "alex"  # of LPIPS

    @property
    def source(self) -> dict[str, str]:
        return {"tokenizer": self.name, "tokenizer_sha256": hash_file(self.weights)}

    @property
    def cuts(self) -> list[TreeCut]:
        """The cuts of all trees, finest first."""
        cuts = [TreeCut(tree, k, one) for tree, by_k in self.partitions.items() for k, one in by_k.items()]
        return sorted(cuts, key=lambda cut: -cut.num_clusters)

    @cached_property
    def images(self) -> SourceImages:
        """The held-out images to measure."""
        rows = random_stream(self.seed, Purpose.TOKENIZER_TEST).permutation(len(self.held_out))[: self.num_images]
        return SourceImages(self.held_out, np.sort(rows))

    @property
    def about(self) -> dict[str, Any]:
        """Protocol keys of every row: the images and the tokenizer."""
        images = f"{self.held_out.name} {self.held_out.split}"
        return {**self.source, "images": images, "images_sha256": self.images.sha256}

    @property
    def inputs(self) -> dict[str, dict[str, Any]]:
        """Everything that decides the results, by part. A part that is not requested or has no trees is left out."""
        optional = {"inception": inception_path(self.folder), "lpips": lpips_path(self.folder, self.backbone)}
        common = {
            "version": VERSION,
            **self.about,
            **{name: hash_file(path) if path and path.exists() else None for name, path in optional.items()},
            "lite0": lite0.PROTOCOL,
        }
        inputs = {}
        if self.reconstruction:
            floors = None if self.train is None else [self.train.sha256, self.num_images, self.seed]
            inputs["reconstruction"] = {**common, "floors": floors}
        if self.cuts:
            partitions = {
                f"{cut.tree} {cut.num_clusters}": hash_arrays({"": cut.partition.cluster_of}) for cut in self.cuts
            }
            inputs["replacement"] = {**common, "seeds": list(self.seeds), "partitions": partitions}
        return inputs

    def missing(self, directory: Path) -> list[str]:
        """The parts without current results in `directory`."""
        return [
            part
            for part, inputs in self.inputs.items()
            if _inputs_of(directory / TOKENIZER_FILES[part]) != inputs
            or not all((directory / name).exists() for name in IMAGE_FILES.get(part, ()))
        ]

    def is_done(self, directory: Path) -> bool:
        """Whether `directory` holds the results of this test."""
        return not self.missing(directory)


def _inputs_of(file: Path) -> dict[str, Any] | None:
    """The inputs that results were measured with; None if there are none, or none that can be read."""
    try:
        return read_json(file).get("inputs")
    except Damaged:
        return None


def evaluate_tokenizer(model: Tokenizer, test: TokenizerTest, directory: Path, data: str, reference_path: Path) -> Path:
    """Measure the parts without current results, write them to `directory`, and return `directory`.

    Runs on a GPU if there is one, in true float32. Raises InputError if there are fewer than 2 images."""
    if len(test.images) < 2:
        raise InputError(f"measuring a tokenizer needs at least 2 held-out images, found {len(test.images)}")
    missing = test.missing(directory)
    if not missing:
        return directory
    for part in missing:
        if _inputs_of(directory / TOKENIZER_FILES[part]) is not None:
            logger.warning(
                "replacing %s, which has other settings; out=FOLDER keeps it", directory / TOKENIZER_FILES[part]
            )
    device = patient_state().device
    model.to(device)
    extractor = load_extractor().to(device)
    judges = load_judges(test, extractor, device)
    with exact_arithmetic():
        if "reconstruction" in missing:
            results = {"reconstruction": measure_reconstruction(model, test, judges)}
            if test.train is not None:
                results |= measure_floors(model, test, extractor, data, reference_path)
            file = directory / TOKENIZER_FILES["reconstruction"]
            for rows in results.values():
                check_new(rows, file)
            write_json(file, {"inputs": test.inputs["reconstruction"], **results})
        if "replacement" in missing:
            _write_images(model, test, directory)
            found = measure_replacement(model, test.images, test.cuts, list(test.seeds), judges, test.about)
            file = directory / TOKENIZER_FILES["replacement"]
            for case in found:
                check_new(case["metrics"], file)
            write_json(file, {"inputs": test.inputs["replacement"], "replacement": found})
    return directory


def load_judges(test: TokenizerTest, extractor: nn.Module, device: torch.device) -> Judges:
    """Inception and LPIPS if their weights are there; the embedded space on embedded data or without Inception."""
    weights, spaces = inception_path(test.folder), []
    if weights is not None:
        spaces.append(inception_space(load_inception(weights, device=device)))
    elif test.held_out.name != EMBEDDED:
        problem = f"no Inception weights in {test.folder}"
        missing = MissingArtifact("weights", test.folder, problem, name=NAME)
        logger.warning("rFD-lite0 in place of rFID: %s", missing)
    if test.held_out.name == EMBEDDED or not spaces:
        spaces.append(lite0_space(extractor))
    return Judges(tuple(spaces), load_lpips(test.folder, device, test.backbone))


def measure_reconstruction(model: Tokenizer, test: TokenizerTest, judges: Judges) -> list[dict[str, Any]]:
    """Rows of PSNR, SSIM, LPIPS, the Frechet distance of reconstructions to their originals, codebook usage and
    perplexity, on held-out images."""
    images, originals, comparison = test.images, ImageSet(judges), Comparison(judges)
    counts, similarity = np.zeros(model.num_tokens, np.int64), []
    with tqdm(total=len(images), desc="reconstruction", unit="image", disable=None) as bar:
        for _, pixels in read_batches(images, range(0, len(images), BATCH), BATCH):
            tokens = encode_pixels(model, pixels)
            reconstruction = decode_pixels(model, tokens)
            originals.add(pixels)
            comparison.add(reconstruction, pixels)
            similarity.append(llamagen_similarity(reconstruction, pixels))
            counts += np.bincount(tokens.ravel(), minlength=model.num_tokens)
            bar.update(len(pixels))
    usage, perplexity = usage_and_perplexity(counts)
    about = {**test.about, "num_images": len(images)}
    rows = []
    for metric, value in comparison.values(originals.gaussians()).items():
        protocol = {**about, **judges.protocol(metric)}
        if metric in (space.frechet for space in judges.spaces):
            metric = f"r{metric}"
            protocol |= {
                "image_size": reconstruction.shape[1],
                "reference": "the originals of the same images",
                "reference_split": test.held_out.split,
                "reference_size": len(images),
                "reference_sha256": images.sha256,
            }
        rows.append(row(metric, value, protocol))
    as_llamagen = {**about, "by": "scikit-image", "as": "LlamaGen: window 7 x 7, range 2 for images in [0, 1]"}
    return [
        *rows,
        row("SSIM (LlamaGen's)", float(np.concatenate(similarity).mean()), as_llamagen),
        row("codebook usage", usage, about),
        row("perplexity", perplexity, about),
    ]


def measure_floors(
    model: Tokenizer, test: TokenizerTest, extractor: nn.Module, data: str, reference_path: Path
) -> dict[str, list[dict[str, Any]]]:
    """Sample metrics of training images and of their reconstructions: the best values that a sampler can reach."""
    train, seed = test.train, test.seed
    reference = load_reference(reference_path, data, train.sha256, lambda: train, extractor)
    variants = draw_variants(train, random_stream(seed, Purpose.FLOOR_VARIANTS))
    chosen = random_stream(seed, Purpose.TOKENIZER_TEST).permutation(variants)[: test.num_images]
    parts = read_batches(SourceImages(train, chosen), range(0, len(chosen), BATCH), BATCH)
    pixels = np.concatenate([part for _, part in parts])
    tokens = np.concatenate([encode_pixels(model, part) for part in np.array_split(pixels, -(-len(pixels) // BATCH))])
    plain = decode_pixels(model, tokens)
    return {
        "training images": measure_images(pixels, reference, extractor, {"images": "training images"}),
        "reconstructions": measure_images(
            plain, reference, extractor, {**test.source, "images": "reconstructions of training images"}
        ),
    }


def _write_images(model: Tokenizer, test: TokenizerTest, directory: Path) -> None:
    """Write pictures.npz and replacement.png of some evenly spread held-out images."""
    side = test.images.read(0, 1).shape[1]
    spread = np.linspace(0, len(test.held_out) - 1, min(num_shown(side), len(test.held_out))).astype(int)
    shown = shown_images(model, SourceImages(test.held_out, spread).read(0, len(spread)), test.cuts, test.seeds[0])
    arrays, sheet = (directory / name for name in IMAGE_FILES["replacement"])
    with replacing(arrays) as temporary, temporary.open("wb") as stream:
        np.savez(stream, **shown)
    with replacing(sheet) as temporary:
        labelled_grid(shown).save(temporary, format="png")
