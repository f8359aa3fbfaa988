"""Evaluation of a tokenizer: reconstruction, codebook usage, and the semantic replacement of its tokens."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from masc.artifacts import hash_arrays, hash_file, replacing, write_json
from masc.tree import Partition
from metrics.features import load_extractor
from metrics.replacement import compare_replaced, replace_tokens
from metrics.results import row
from metrics.samples import draw_variants, extractor_protocol, load_reference, measure_images
from vq.decode import decode_pixels
from vq.images import ImageSource, to_tensor
from vq.interface import Tokenizer
from vq.measure import measure

NUM_SHOWN = 24  # pictures kept for the report


@dataclass(frozen=True)
class TokenizerTest:
    """What a tokenizer is measured on."""

    name: str
    weights: Path
    train: ImageSource
    held_out: ImageSource
    partitions: dict[str, dict[int, Partition]]  # by tree and K
    num_images: int = 1000
    seed: int = 0

    @property
    def source(self) -> dict[str, str]:
        return {"tokenizer": self.name, "tokenizer_sha256": hash_file(self.weights)}

    @property
    def cases(self) -> list[tuple[str, int, Partition]]:
        return [(tree, k, cut) for tree, cuts in self.partitions.items() for k, cut in cuts.items()]

    @property
    def inputs(self) -> dict[str, Any]:
        """Everything that decides the results."""
        return {
            **self.source,
            "num_images": self.num_images,
            "seed": self.seed,
            "images_sha256": [self.train.sha256, self.held_out.sha256],
            "extractor": extractor_protocol(),
            "partitions": {f"{tree} {k}": hash_arrays({"": cut.cluster_of}) for tree, k, cut in self.cases},
        }

    def is_done(self, directory: Path) -> bool:
        """Whether `directory` holds the results of this test."""
        file = directory / "tokenizer.json"
        return file.exists() and json.loads(file.read_text())["inputs"] == self.inputs


def evaluate_tokenizer(model: Tokenizer, test: TokenizerTest, directory: Path, data: str, reference_path: Path) -> Path:
    """Write tokenizer.json and pictures.npz to `directory`, unless they are there.

    Held-out PSNR and usage; the metrics of training images and of their reconstructions (the floor for any
    sampler); and the replacement test of each partition, by tree and K."""
    file = directory / "tokenizer.json"
    if test.is_done(directory):
        return file
    train, held_out, source, seed = test.train, test.held_out, test.source, test.seed
    extractor = load_extractor()
    reference = load_reference(reference_path, data, train.sha256, lambda: train, extractor)
    chosen = np.random.default_rng([seed, 1002]).permutation(draw_variants(train, [seed, 1001]))[: test.num_images]
    pixels = train.pixels[chosen]
    with torch.inference_mode():
        tokens = np.concatenate([model.encode(to_tensor(part)).numpy() for part in _parts(pixels)])

    plain = decode_pixels(model, tokens)
    quality = measure(model, held_out)
    on_held_out = {**source, "images": f"{held_out.name} {held_out.split}", "num_images": len(held_out)}
    results: dict[str, Any] = {
        "inputs": test.inputs,
        "reconstruction": [
            row("PSNR (dB)", quality["psnr_db"], on_held_out),
            row("codebook usage", quality["usage"], on_held_out),
            row("perplexity", quality["perplexity"], on_held_out),
        ],
        "training images": measure_images(pixels, reference, extractor, {"images": "training images"}),
        "reconstructions": measure_images(plain, reference, extractor, {**source, "images": "reconstructions"}),
        "replacement": [],
    }
    spread = np.linspace(0, len(held_out) - 1, NUM_SHOWN).astype(int)
    shown = {"original": held_out.pixels[spread]}
    with torch.inference_mode():
        shown_tokens = model.encode(to_tensor(shown["original"])).numpy()
    shown["reconstruction"] = decode_pixels(model, shown_tokens)
    finest = max(k for _, k, _ in test.cases)
    for tree, num_clusters, partition in tqdm(test.cases, desc="replacement test", disable=None, leave=False):
        protocol = {**source, "tree": tree, "K": num_clusters, "seed": seed, "against": "plain reconstruction"}
        replaced = decode_pixels(model, replace_tokens(tokens, partition, seed))
        values = compare_replaced(plain, replaced)
        metrics = [
            row("PSNR (dB)", values["psnr_db"], {**protocol, "num_images": len(pixels)}),
            row("SSIM", values["ssim"], {**protocol, "num_images": len(pixels)}),
        ]
        if num_clusters == finest:  # features cost more than all the rest
            metrics.append(measure_images(replaced, reference, extractor, protocol)[0])
        results["replacement"].append(
            {
                "tree": tree,
                "K": num_clusters,
                "largest_cluster": int(partition.sizes.max()),
                "metrics": metrics,
            }
        )
        shown[f"{tree} {num_clusters}"] = decode_pixels(model, replace_tokens(shown_tokens, partition, seed))
    with replacing(directory / "pictures.npz") as temporary, temporary.open("wb") as stream:
        np.savez(stream, **shown)
    write_json(file, results)
    return file


def _parts(pixels: np.ndarray, size: int = 100) -> list[np.ndarray]:
    return [pixels[start : start + size] for start in range(0, len(pixels), size)]
