"""MASC's clusters against a tokenizer that has as many codes, on pixels (`make bench-small-tokenizer`).

    make bench-small-tokenizer                                  # seeds 0, 1: 6 runs, half an hour on two cores
    make bench-small-tokenizer ARGS="--seeds 0 --steps 20 --images 64 --runs runs/check"

MASC draws the member of a cluster uniformly. It is thus a flat model over K clusters whose decoder takes a random
member, and a tokenizer with K codes is its rival. Likelihoods of two tokenizers cannot be compared, so this compares
images: reconstructions of held-out images, and samples, against the same training images in one feature space.

The information of the K clusters is decoded in three ways: a random member, as MASC's samples are; the medoid of the
cluster; the mean of its vectors. Prints the tables of small-tokenizer.md, and writes small-tokenizer.json if neither
steps nor images are given."""

import argparse
import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jobs import available_cores, run_jobs
from pipeline import evaluate_job, sample_job, train_job
from stage import load_config
from train import make_inputs
from words import override

from llamagen.training.config import TrainConfig
from masc.runtime.files import write_json
from masc.tree import Partition
from metrics.fidelity import Comparison, ImageSet, Judges
from metrics.lite0 import load_extractor
from metrics.replacement import draws, replace_tokens
from metrics.spaces import lite0_space
from reports.runs import RunRecord
from vq.autoencoder import ConvVQ
from vq.images import ImageSource
from vq.pixels import decode_pixels, encode_pixels
from vq.pretrained import load_decoder
from vq.readers import load_images

ROOT = Path(__file__).resolve().parents[1]
LARGE, SMALL = "emoji32", "emoji32-512"
MODELS = ((LARGE, "flat"), (LARGE, "masc"), (SMALL, "flat"))
GUIDANCE, SAMPLES = 2.0, "guidance-2"  # as in `make reproduce`
METRICS = ("FD-lite0", "IS-lite0", "precision-lite0", "recall-lite0")
DRAWS = (0, 1, 2)  # seeds of the random members
Decode = Callable[[np.ndarray], np.ndarray]  # held-out images (M, S, S, 3) uint8 -> their reconstructions


def plan(tokenizer: str, head: str, seed: int, steps: int | None, runs: Path) -> tuple[TrainConfig, list[str]]:
    given = {"model": "llamagen-tiny", "data": "twemoji", "head": head, "tokenizer_name": tokenizer, "seed": seed}
    given |= {"tracking.mode": "disabled", "run_dir": str(runs / f"{tokenizer}-{head}" / f"seed{seed}")}
    given |= {} if steps is None else {"steps": steps}
    overrides = [override(key, value) for key, value in given.items()]
    return load_config("train", TrainConfig, overrides), overrides


def central_members(partition: Partition, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The medoid of each cluster and the mean of its vectors: (K,) int64, (K, d).

    The member with the smallest sum of squared distances to all others is the one nearest to the mean."""
    groups = np.split(partition.members, partition.offsets[1:-1])
    means = np.stack([vectors[members].mean(0) for members in groups])
    nearest = [np.square(vectors[members] - mean).sum(1).argmin() for members, mean in zip(groups, means, strict=True)]
    return np.array([members[place] for members, place in zip(groups, nearest, strict=True)]), means


def decoders(large: ConvVQ, small: ConvVQ, partition: Partition) -> dict[str, list[Decode]]:
    """The ways to reconstruct images by name, each with its draws."""
    medoids, means = central_members(partition, large.codebook.numpy())
    averaged = copy.deepcopy(large)
    averaged.quantize.embedding.weight.copy_(torch.from_numpy(means[partition.cluster_of]))

    def drawn(pixels: np.ndarray, seed: int) -> np.ndarray:
        return decode_pixels(large, replace_tokens(encode_pixels(large, pixels), partition, draws(seed)))

    return {
        LARGE: [lambda pixels: decode_pixels(large, encode_pixels(large, pixels))],
        "random member": [lambda pixels, seed=seed: drawn(pixels, seed) for seed in DRAWS],
        "medoid": [
            lambda pixels: decode_pixels(large, medoids[partition.cluster_of[encode_pixels(large, pixels)]]),
        ],
        "mean": [lambda pixels: decode_pixels(averaged, encode_pixels(large, pixels))],
        SMALL: [lambda pixels: decode_pixels(small, encode_pixels(small, pixels))],
    }


def measure_reconstructions(ways: dict[str, list[Decode]], held_out: ImageSource) -> dict[str, dict[str, float]]:
    """PSNR, SSIM and rFD-lite0 against the originals, by way of decoding: means over its draws."""
    judges = Judges((lite0_space(load_extractor()),))
    originals = ImageSet(judges)
    originals.add(held_out.pixels)
    found = {}
    for name, draws_of in ways.items():
        values = []
        for decode in draws_of:
            comparison = Comparison(judges)
            comparison.add(decode(held_out.pixels), held_out.pixels)
            values.append(comparison.values(originals.gaussians()))
        found[name] = {metric: float(np.mean([one[metric] for one in values])) for metric in values[0]}
    return found


def measure_samples(planned: dict[tuple[str, str, int], TrainConfig]) -> list[dict[str, float | str]]:
    """Sample metrics of each run."""
    rows = []
    for (tokenizer, head, seed), config in planned.items():
        results = RunRecord.load(config.directory).results(SAMPLES)
        values = {metric: float(results[metric]["value"]) for metric in METRICS}
        rows.append({"tokenizer": tokenizer, "head": head, "seed": seed, **values})
    return rows


def tables(reconstructions: dict[str, dict[str, float]], samples: list[dict[str, float | str]], k: int) -> str:
    """Both tables as Markdown; samples as mean ± standard deviation over the seeds."""
    lines = ["| reconstruction | codes | PSNR (dB) | SSIM | rFD-lite0 |", "|---|---|---|---|---|"]
    for name, values in reconstructions.items():
        number = 2 * k if name == LARGE else k
        what = name if name in (LARGE, SMALL) else f"{LARGE}, {name} of MASC's clusters"
        lines.append(f"| {what} | {number} | " + " | ".join(f"{value:.4g}" for value in values.values()) + " |")
    lines += ["", "| model | codes predicted | " + " | ".join(METRICS) + " |", "|---" * (2 + len(METRICS)) + "|"]
    for tokenizer, head in MODELS:
        here = [row for row in samples if (row["tokenizer"], row["head"]) == (tokenizer, head)]
        number = 2 * k if (tokenizer, head) == (LARGE, "flat") else k
        cells = [[row[metric] for row in here] for metric in METRICS]
        spread = [
            f"{np.mean(cell):.4g}" + (f" ± {np.std(cell, ddof=1):.2g}" if len(cell) > 1 else "") for cell in cells
        ]
        lines.append(f"| {head} on {tokenizer} | {number} | " + " | ".join(spread) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--steps", type=int, help="of each run; by default those of the recipe")
    parser.add_argument("--images", type=int, help="sampled and measured of each run; by default 1,000")
    parser.add_argument("--runs", type=Path, default=Path("runs/small-tokenizer"), help="found ones continue")
    parser.add_argument("--workers", type=int, default=available_cores())
    arguments = parser.parse_args()
    runs = {
        (tokenizer, head, seed): plan(tokenizer, head, seed, arguments.steps, arguments.runs)
        for seed in arguments.seeds
        for tokenizer, head in MODELS
    }
    planned = {key: config for key, (config, _) in runs.items()}
    layouts = {}
    for tokenizer, head in MODELS:
        config = planned[tokenizer, head, arguments.seeds[0]]
        make_inputs(config)
        layouts[tokenizer] = config.layout
    masc = planned[LARGE, "masc", arguments.seeds[0]]
    codebooks = {name: layout.load_codebook() for name, layout in layouts.items()}
    large, small = (load_decoder(codebooks[name], layouts[name]) for name in (LARGE, SMALL))
    (k,) = masc.head.cuts(large.num_tokens)
    partition, _ = layouts[LARGE].load_partition(masc.tree, k, codebooks[LARGE])
    data = masc.data
    held_out = load_images(data.source, "val", data.resolution, data.path)

    count, workers = arguments.images or 1000, arguments.workers
    run_jobs([train_job(*run) for run in runs.values()], workers, "small tokenizer", "step")
    places = [config.directory for config in planned.values()]
    run_jobs([sample_job(place, SAMPLES, GUIDANCE, count) for place in places], workers, "samples", "image")
    run_jobs([evaluate_job(place, [SAMPLES], count) for place in places], workers, "measuring", "image")
    reconstructions = measure_reconstructions(decoders(large, small, partition), held_out)
    samples = measure_samples(planned)
    if arguments.steps is None and arguments.images is None:
        found = {"K": k, "steps": masc.steps, "reconstructions": reconstructions, "samples": samples}
        write_json(ROOT / "benchmarks" / "small-tokenizer.json", found)
    print(tables(reconstructions, samples, k))


if __name__ == "__main__":
    main()
