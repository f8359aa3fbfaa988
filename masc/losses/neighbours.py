"""Near codes of each code, and targets over them of a wanted entropy.

Shapes: N tokens, d channels of a code, m near codes."""

import numpy as np
from scipy.optimize import brentq
from scipy.special import softmax

from masc.runtime.errors import InputError

COLDEST, HOTTEST = 1e-6, 1e6  # temperatures, relative to the mean of the distances


def nearest_codes(vectors: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The nearest other codes of each code, and their squared distances, ascending: (N, d) -> (N, m) int64, float64.

    m is `count`, or N - 1 if that is less. Among equal distances the lower number comes first. FAISS finds the codes
    by all pairs, and the distances are computed again in float64."""
    import faiss

    num_tokens = len(vectors)
    if num_tokens < 2:
        raise InputError(f"soft targets need other codes, found a codebook of {num_tokens}; choose another LOSS")
    count = min(count, num_tokens - 1)
    rows = np.ascontiguousarray(vectors, np.float32)
    index = faiss.IndexFlatL2(rows.shape[1])
    index.add(rows)
    found = index.search(rows, count + 1)[1]
    is_self = found == np.arange(num_tokens)[:, None]
    is_self[~is_self.any(1), -1] = True  # so many codes are equal to it that it is not among its own nearest
    ids = found[~is_self].reshape(num_tokens, count)
    exact = vectors.astype(np.float64)
    squared = np.stack([((exact[ids[:, place]] - exact) ** 2).sum(1) for place in range(count)], axis=1)
    order = np.lexsort((ids, squared))
    return np.take_along_axis(ids, order, 1).astype(np.int64), np.take_along_axis(squared, order, 1)


def entropy(targets: np.ndarray) -> np.ndarray:
    """The entropy of distributions in nats: (..., m) -> (...)."""
    return -(targets * np.log(np.where(targets > 0, targets, 1))).sum(-1)


def targets_of(squared: np.ndarray, temperature: float) -> np.ndarray:
    """softmax of minus squared distances over a temperature: (N, m) -> (N, m)."""
    return softmax(-squared / temperature, axis=-1)


def temperature_of(squared: np.ndarray, wanted: float) -> float:
    """The temperature at which the targets have the wanted mean entropy in nats.

    Raises InputError for an entropy that no temperature gives."""
    scale = squared.mean() or 1.0

    def excess(log_temperature: float) -> float:
        return float(entropy(targets_of(squared, scale * np.exp(log_temperature))).mean()) - wanted

    low, high = np.log(COLDEST), np.log(HOTTEST)
    if excess(low) > 0 or excess(high) < 0:
        raise InputError(
            f"loss.entropy must lie between {excess(low) + wanted:.3f} and {excess(high) + wanted:.3f} nats for "
            f"{squared.shape[1]} near codes, found {wanted}; change it, or loss.neighbours"
        )
    return float(scale * np.exp(brentq(excess, low, high)))
