"""Time to open sound artefacts of the sizes of ImageNet, beside reading the same bytes without any check.

    make bench-read

The bytes are in the page cache. `plain` reads them by numpy.load, json.loads and hashlib only, as a reader that trusts
its files would; what the checks add is the difference."""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from masc.build import TreeConfig, make_tree
from masc.runtime.artifacts import Codebook, hash_arrays
from masc.runtime.codes import load_codes, save_codes
from masc.runtime.run import read_metrics
from masc.tree import load_tree

ROUNDS = 15


def best(function: Callable[[], object]) -> float:
    """The least of several times in milliseconds."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return 1000 * min(times)


def plain_npz(path: Path) -> None:
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    json.loads(str(arrays.pop("header")))
    hash_arrays(arrays)


def plain_codes(path: Path) -> None:
    json.loads((path / "meta.json").read_text())
    np.load(path / "codes.npy", mmap_mode="r", allow_pickle=False)
    arrays = {name: np.load(path / f"{name}.npy", allow_pickle=False) for name in ("labels", "groups")}
    hash_arrays(arrays)
    hash_arrays({"used": np.load(path / "used.npy", allow_pickle=False)})


def plain_metrics(path: Path) -> None:
    [json.loads(line) for line in path.read_text().splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_281_167)
    parser.add_argument("--tokens", type=int, default=16384)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        codebook = Codebook.save(
            root / "codebook.npz", rng.standard_normal((arguments.tokens, 64)).astype("f4"), {}, {}
        )
        tree = root / "tree.npz"
        make_tree(TreeConfig(name="masc", method="linkage"), codebook, arguments.tokens // 2, tree)
        codes, count = root / "codes", arguments.images
        tokens = (rng.integers(0, arguments.tokens, (min(1024, count - at), 1, 4)) for at in range(0, count, 1024))
        names = [f"class {index}" for index in range(1000)]
        save_codes(
            codes, tokens, rng.integers(0, 1000, count), np.arange(count), names, [], arguments.tokens, "book", {}
        )
        metrics = root / "metrics.jsonl"
        line = {"step": 1, "images": 256, "seconds": 1.5, "train/nats_per_token": 5.25, "train/learning_rate": 1e-4}
        metrics.write_text("".join(json.dumps(line | {"step": step}) + "\n" for step in range(15_000)))
        cases = {
            "codebook.npz": (lambda: Codebook.load(root / "codebook.npz"), lambda: plain_npz(root / "codebook.npz")),
            "tree.npz": (lambda: load_tree(tree, codebook), lambda: plain_npz(tree)),
            f"codes of {count} images": (lambda: load_codes(codes, "book"), lambda: plain_codes(codes)),
            "metrics.jsonl, 15,000 rows": (lambda: read_metrics(metrics), lambda: plain_metrics(metrics)),
        }
        for name, (checked, plain) in cases.items():
            ours, theirs = best(checked), best(plain)
            print(f"{name:30} {ours:8.2f} ms, plain {theirs:8.2f} ms, ratio {ours / theirs:.3f}")


if __name__ == "__main__":
    main()
