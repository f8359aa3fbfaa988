"""Time and memory of the tree against SciPy, scikit-learn, fastcluster and the O(N^3) loop (`make bench-tree`).

    make bench-tree                                   # about 12 minutes of one core
    make bench-tree ARGS="--cases sphere --rounds 1"  # the cases with that in their name, one round, nothing written
    make bench-tree ARGS=--large                      # also two cases of some minutes, one round

Each measurement is a process of its own: CPU seconds of one thread (compiled code loaded beforehand, codebook made
beforehand) and the peak memory of the whole process. fastcluster at N = 16,384, d = 8 runs in every round beside the
others; a ratio is taken within its round, and the median is printed. Writes benchmarks/tree.json if no case is left
out.

Codebooks are synthetic: `manifold` (a mixture on a curved 4-dimensional sheet, unit rows), `sphere` (unit rows without
structure, the hardest in 8 dimensions), `duplicates` (a quarter dead codes) and `taming` (256 dimensions, uneven
norms, decaying spectrum)."""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from masc.runtime.files import write_json

ROOT = Path(__file__).resolve().parents[1]
BASELINE = "fastcluster manifold 16384"
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")

# Method, codebook, N, k (1: the whole tree), and the most that time and memory may be of the baseline's, from the
# issue that asked for it. The baseline of the two `taming` rows is fastcluster on the same codebook.
CASES = [
    ("fastcluster", "manifold", 16384, 1, None, None),
    ("sparse", "manifold", 16384, 8192, 0.06, 0.12),
    ("sparse", "manifold", 16384, 4096, 0.06, 0.12),
    ("sparse", "manifold", 16384, 2048, 0.06, 0.12),
    ("sparse", "sphere", 16384, 8192, 0.30, 0.12),
    ("sparse", "sphere", 16384, 4096, 0.30, 0.12),
    ("sparse", "sphere", 16384, 2048, 0.30, 0.12),
    ("sparse", "duplicates", 16384, 2048, None, 0.12),
    ("sparse", "manifold", 16384, 1, 0.20, 0.12),
    ("sparse", "sphere", 16384, 1, 0.40, 0.12),
    ("sparse-faiss", "manifold", 16384, 8192, 0.30, None),
    ("sparse-faiss", "sphere", 16384, 8192, 0.30, None),
    ("sparse", "manifold", 65536, 8192, 0.35, None),
    ("sparse", "sphere", 65536, 8192, 1.5, None),
    ("sparse", "manifold", 65536, 1, None, None),
    ("sparse", "manifold", 262144, 32768, 2.0, 0.25),
    ("sparse", "sphere", 262144, 131072, 5.0, 0.25),
    ("fastcluster", "taming", 16384, 1, None, None),
    ("sparse", "taming", 16384, 8192, 0.8, 0.4),
    ("sparse", "taming", 16384, 1, None, None),
    ("scipy", "manifold", 16384, 1, None, None),
    ("sklearn", "manifold", 16384, 1, None, None),
    ("sklearn-knn", "manifold", 16384, 8192, None, None),
    ("loop", "manifold", 1024, 512, None, None),
    ("loop", "manifold", 2048, 1024, None, None),
    ("sparse", "manifold", 2048, 1024, None, None),
]
LARGE = [  # for which a dense matrix has no room
    ("sparse", "manifold", 262144, 1, None, None),
    ("sparse", "taming", 65536, 32768, None, None),
]


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def codebook(kind: str, count: int, seed: int = 0) -> np.ndarray:
    """A synthetic codebook by kind: (N, d) float32."""
    rng = np.random.default_rng([seed, count, len(kind)])
    if kind == "sphere":
        return _unit(rng.normal(size=(count, 8))).astype(np.float32)
    if kind == "taming":
        spectrum = (1.0 + np.arange(256)) ** -0.6
        which = rng.choice(64, count, p=rng.dirichlet(np.full(64, 0.5)))
        centre = rng.normal(size=(64, 256)) * spectrum * 1.5
        width = 0.35 * np.exp(0.5 * rng.normal(size=(64, 1)))
        rows = centre[which] + width[which] * rng.normal(size=(count, 256)) * spectrum
        return (rows * np.exp(0.3 * rng.normal(size=(count, 1)))).astype(np.float32)
    which = rng.choice(256, count, p=rng.dirichlet(np.full(256, 0.7)))
    centre, width = rng.normal(size=(256, 4)), 0.12 * np.exp(0.5 * rng.normal(size=(256, 1)))
    latent = centre[which] + width[which] * rng.normal(size=(count, 4))
    bend, shift = 0.9 * rng.normal(size=(4, 24)), rng.uniform(0, 2 * np.pi, 24)
    rows = np.sin(latent @ bend + shift) @ (rng.normal(size=(24, 8)) / np.sqrt(24))
    rows = _unit(rows + 0.01 * rng.normal(size=(count, 8)))
    if kind == "duplicates":
        dead, pairs, near = count // 4, count // 10, count // 7
        rows[:dead] = rows[dead + pairs + rng.integers(0, 5, dead)]
        rows[dead : dead + pairs] = rows[-pairs:]
        length = 10 ** rng.uniform(-6, -3, size=(near, 1))
        rows[dead + pairs : dead + pairs + near] = rows[-near:] + length * rng.normal(size=(near, 8))
    return rng.permutation(rows.astype(np.float32))


def loop(vectors: np.ndarray, num_clusters: int) -> None:
    """Algorithm 1 as it is written: a dense matrix, and a search of all of it for every merge."""
    from scipy.spatial.distance import cdist

    means = cdist(vectors, vectors)
    np.fill_diagonal(means, np.inf)
    size = np.ones(len(means))
    for _ in range(len(means) - num_clusters):
        a, b = np.unravel_index(np.argmin(means), means.shape)
        means[a] = means[:, a] = (size[a] * means[a] + size[b] * means[b]) / (size[a] + size[b])
        size[a] += size[b]
        means[a, a] = np.inf
        means[b] = means[:, b] = np.inf


def prepare(method: str, dims: int) -> Callable[[np.ndarray, int], object]:
    """The method, imported, compiled and warm."""
    if method.startswith("sparse"):
        from masc.sparse import sparse_linkage

        search = "lists" if method == "sparse-faiss" else None
        warm = np.random.default_rng(0).normal(size=(300, dims)).astype(np.float32)
        sparse_linkage(warm, search=search, finish_at=50, threads=1)
        return lambda vectors, k: sparse_linkage(vectors, coarsest=k, search=search, threads=1)
    if method == "loop":
        return lambda vectors, k: loop(vectors.astype(np.float64), k)
    if method.startswith("sklearn"):
        from sklearn.cluster import AgglomerativeClustering
        from sklearn.neighbors import kneighbors_graph

        def cluster(vectors: np.ndarray, num_clusters: int) -> object:
            near = kneighbors_graph(vectors, 32, include_self=False) if method == "sklearn-knn" else None
            return AgglomerativeClustering(num_clusters, linkage="average", connectivity=near).fit(vectors)

        return cluster
    from scipy.spatial.distance import pdist

    if method == "fastcluster":
        from fastcluster import linkage
    else:
        from scipy.cluster.hierarchy import linkage
    return lambda vectors, k: linkage(pdist(vectors.astype(np.float64)), "average")


def measure(method: str, kind: str, count: int, num_clusters: int) -> dict[str, float]:
    """CPU seconds and the process's peak memory of one build: what a process of its own prints."""
    vectors = codebook(kind, count)
    run = prepare(method, vectors.shape[1])
    start = time.process_time()
    run(vectors, num_clusters)
    seconds = time.process_time() - start
    return {"cpu_seconds": seconds, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def in_a_process(method: str, kind: str, count: int, num_clusters: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", method, kind, str(count), str(num_clusters)]
    done = subprocess.run(command, env={**os.environ, **ONE_THREAD}, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="", help="only cases with this in their name")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--large", action="store_true", help="also the two cases of some minutes, one round")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        method, kind, count, num_clusters = arguments.one
        print(json.dumps(measure(method, kind, int(count), int(num_clusters))))
        return
    in_a_process("sparse", "manifold", 300, 1)  # compiles, once
    cases = [*CASES, *(LARGE if arguments.large else [])]
    chosen = [case for case in cases if arguments.cases in " ".join(map(str, case[:4]))]
    baselines = [case for case in CASES if case[0] == "fastcluster"]
    cases = baselines[:1] + [case for case in chosen if case not in baselines[:1]]
    if any(case[1] == "taming" for case in chosen) and baselines[1] not in cases:
        cases.insert(1, baselines[1])
    rounds = []
    for number in range(arguments.rounds):
        rounds.append({})
        for case in cases:
            if number and case in LARGE:
                continue
            rounds[-1][case] = in_a_process(*case[:4])
            print(f"round {number + 1}: {' '.join(map(str, case[:4]))}: {rounds[-1][case]}", file=sys.stderr)
    results = [summarise(case, rounds, baselines) for case in cases]
    extrapolate(results)
    print(f"{'method':13} {'codebook':11} {'N':>7} {'k':>7} {'CPU s':>8} {'MiB':>6} {'ratio':>7} {'at most':>8}"
          f" {'memory':>7} {'at most':>8}")  # fmt: skip
    for row in results:
        print(
            f"{row['method']:13} {row['codebook']:11} {row['N']:7d} {row['k']:7d} {row['cpu_seconds']:8.2f}"
            f" {row['peak_mib']:6.0f} {row['time_ratio']:7.3f} {row['time_at_most'] or '':>8}"
            f" {row['memory_ratio']:7.3f} {row['memory_at_most'] or '':>8} {row.get('note', '')}"
        )
    if arguments.cases:
        return
    written = {"machine": machine(), "baseline": BASELINE, "rounds": arguments.rounds, "results": results}
    write_json(ROOT / "benchmarks" / "tree.json", written)


def summarise(case: tuple, rounds: list[dict], baselines: list[tuple]) -> dict:
    """Medians over the rounds of one case, ratios taken within each round."""
    method, kind, count, num_clusters, time_at_most, memory_at_most = case
    base = baselines[1] if kind == "taming" and count == 16384 else baselines[0]
    done = [(found[case], found[base]) for found in rounds if case in found]
    return {
        "method": method,
        "codebook": kind,
        "N": count,
        "k": num_clusters,
        "cpu_seconds": statistics.median(one["cpu_seconds"] for one, _ in done),
        "peak_mib": statistics.median(one["peak_mib"] for one, _ in done),
        "time_ratio": statistics.median(one["cpu_seconds"] / other["cpu_seconds"] for one, other in done),
        "memory_ratio": statistics.median(one["peak_mib"] / other["peak_mib"] for one, other in done),
        "time_at_most": time_at_most,
        "memory_at_most": memory_at_most,
        "baseline": f"fastcluster {base[1]} {base[2]}",
    }


def extrapolate(results: list[dict]) -> None:
    """What the loop would take at N = 16,384, from its largest run: its time grows as N^3."""
    largest = max((row for row in results if row["method"] == "loop"), key=lambda row: row["N"], default=None)
    if largest:
        hours = largest["cpu_seconds"] * (16384 / largest["N"]) ** 3 / 3600
        largest["note"] = f"EXTRAPOLATED to N = 16384, k = 8192: {hours:.2f} h"


def machine() -> dict[str, str]:
    import importlib.metadata
    import platform

    names = ("numpy", "scipy", "numba", "faiss-cpu", "fastcluster", "scikit-learn")
    versions = {name: importlib.metadata.version(name) for name in names}
    return {"python": platform.python_version(), "machine": platform.machine(), **versions}


if __name__ == "__main__":
    main()
