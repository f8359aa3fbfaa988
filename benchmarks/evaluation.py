"""Speed and memory of the evaluation against SciPy's matrix square root and torch-fidelity's command, in one run.

    .venv/bin/python benchmarks/evaluation.py [--images 2000] [--rounds 3]

`frechet`: CPU seconds of the Frechet distance of two Gaussians of 2048 dimensions, medians over rounds taken in turn:
`scipy.linalg.sqrtm` as ADM and pytorch-fid call it, ours, and ours with the reference's factor kept. `pipeline`: FID,
IS, precision and recall of two folders of PNG files (256 x 256) by torch-fidelity's `fidelity` and by
`scripts/eval_fid.py`, each in processes of its own, with the same seeded weights; ours a second time with the
reference's features kept, as it is from the second run on. Both write nothing but numbers, and the numbers are
compared. Writes benchmarks/evaluation.json."""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
import torch
from PIL import Image

from masc.runtime.files import hash_file, write_json
from metrics.frechet import Gaussian, frechet_distance

ROOT = Path(__file__).resolve().parents[1]
DIMENSIONS = 2048


def frechet(rounds: int) -> dict[str, Any]:
    """CPU seconds by method, and the largest difference of the values."""
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((DIMENSIONS, DIMENSIONS)) / np.sqrt(DIMENSIONS)
    first, second = (Gaussian.of(scale * rng.standard_normal((6000, DIMENSIONS)) @ mix + 0.1) for scale in (1.0, 1.1))
    mean, other = first.mean.numpy(), second.mean.numpy()

    def by_sqrtm() -> float:
        a, b = first.covariance.numpy(), second.covariance.numpy()
        root = scipy.linalg.sqrtm(a @ b)
        return float(np.square(mean - other).sum() + np.trace(a) + np.trace(b) - 2 * np.trace(root.real))

    kept = Gaussian(second.mean, second.covariance)
    frechet_distance(first, kept)
    methods: dict[str, Callable[[], float]] = {
        "sqrtm": by_sqrtm,
        "ours": lambda: frechet_distance(first, Gaussian(second.mean, second.covariance)),
        "ours, factor kept": lambda: frechet_distance(first, kept),
    }
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    values = {}
    for _ in range(rounds):
        for name, method in methods.items():
            start = time.process_time()
            values[name] = method()
            seconds[name].append(time.process_time() - start)
    ratios = {
        name: statistics.median(a / b for a, b in zip(seconds[name], seconds["sqrtm"], strict=True)) for name in methods
    }
    return {
        "cpu_seconds": {name: statistics.median(found) for name, found in seconds.items()},
        "ratio_to_sqrtm": ratios,
        "relative_difference": max(abs(value / values["sqrtm"] - 1) for value in values.values()),
    }


def write_images(folder: Path, count: int, seed: int) -> None:
    """Smooth images with a little noise, 256 x 256."""
    folder.mkdir()

    def one(index: int) -> None:
        rng = np.random.default_rng([seed, index])
        coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((256, 256), Image.Resampling.BICUBIC), np.float32)
        pixels = np.clip(smooth + rng.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:06d}.png")

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, range(count)))


def timed(command: list[str]) -> tuple[str, dict[str, float]]:
    """What a command prints, and what it cost."""
    with tempfile.TemporaryFile("w+") as out:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, cwd=ROOT)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        out.seek(0)
        text = out.read()
    if status:
        sys.exit(f"{' '.join(command)} failed:\n{text[-3000:]}")
    return text, {
        "wall_seconds": wall,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_mib": usage.ru_maxrss / 1024,
    }


def pipeline(num_images: int) -> dict[str, Any]:
    """Cost and values of both programs on two folders of `num_images` images."""
    from inception_weights import save_seeded

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = save_seeded(folder)
        for seed, part in enumerate(("samples", "reference")):
            write_images(folder / part, num_images, seed)
        device = ["--gpu", "0"] if torch.cuda.is_available() else ["--cpu"]
        theirs = [sys.executable, "-m", "torch_fidelity.fidelity", *device, "--isc", "--fid", "--prc", "--json"]
        theirs += ["--input1", str(folder / "samples"), "--input2", str(folder / "reference"), "--no-cache"]
        theirs += ["--feature-extractor", "inception-v3-compat", "--feature-extractor-weights-path", str(weights)]
        ours = [sys.executable, "scripts/eval_fid.py", f"samples={folder / 'samples'}", "bootstrap=0"]
        ours += ["+protocol@protocols.paper=paper", f"protocols.paper.reference={folder / 'reference'}"]
        ours += [f"extractor.weights={weights}", f"extractor.sha256={hash_file(weights)}"]
        ours += [f"extractor.artifacts={folder / 'artifacts'}", f"out={folder / 'eval'}"]
        text, official = timed(theirs)
        _, cold = timed(ours)
        (results,) = (folder / "eval").glob("samples-*-paper.json")
        rows = json.loads(results.read_text())["rows"]
        _, warm = timed(ours)
        (folder / "few").mkdir()
        for image in sorted((folder / "samples").iterdir())[: num_images // 4]:
            image.rename(folder / "few" / image.name)
        _, few = timed([word.replace(f"samples={folder / 'samples'}", f"samples={folder / 'few'}") for word in ours])
    printed = {key: float(value) for key, value in re.findall(r'"(\w+)": ([-\d.e+]+)', text)}
    values = {row["metric"]: row["value"] for row in rows}
    named = {
        "FID": "frechet_inception_distance",
        "IS": "inception_score_mean",
        "precision": "precision",
        "recall": "recall",
    }
    for cost, passes in ((official, 2), (cold, 2), (warm, 1)):
        cost["images_per_second"] = passes * num_images / cost["wall_seconds"]
    return {
        "images": num_images,
        "torch-fidelity": official,
        "ours": cold,
        "ours, reference kept": warm,
        "speedup": official["wall_seconds"] / cold["wall_seconds"],
        "speedup_reference_kept": official["wall_seconds"] / warm["wall_seconds"],
        "memory_ratio": cold["peak_mib"] / official["peak_mib"],
        # From a quarter of the samples to all, and what the pooled features of the others take.
        "memory_growth_mib": warm["peak_mib"] - few["peak_mib"],
        "pooled_features_mib": (num_images - num_images // 4) * 2048 * 4 / 2**20,
        "values": {metric: {"ours": values[metric], "torch-fidelity": printed[key]} for metric, key in named.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    results = {
        "threads": torch.get_num_threads(),
        "frechet_2048": frechet(arguments.rounds),
        "pipeline": pipeline(arguments.images),
    }
    write_json(ROOT / "benchmarks" / "evaluation.json", results)
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
