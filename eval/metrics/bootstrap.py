"""Confidence intervals by resampling the images of a sample set (Efron 1979).

Only the samples are drawn again; the reference stays the same. The Frechet distance of a resample is biased upwards,
because the resample holds fewer distinct images. The interval is therefore the estimate -+ 1.96 standard deviations of
the resamples, not a pair of their quantiles."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import stats

from masc.runtime.streams import Purpose, random_stream

LEVEL = 0.95
SHARE = (0.0, 1.0)  # bounds of precision and recall


def bootstrap_interval(
    value: float,
    num_images: int,
    compute: Callable[[np.ndarray], float],
    replicates: int,
    bounds: tuple[float, float] = (0.0, math.inf),
    seed: int = 0,
) -> dict[str, Any] | None:
    """The 95% interval of `value`, or None with fewer than 2 replicates.

    `compute` gives the metric of resampled indices (M,) and is called `replicates` times. The interval is cut at
    `bounds`, the range of the metric."""
    if replicates < 2:
        return None
    rng = random_stream(seed, Purpose.BOOTSTRAP)
    found = [compute(rng.integers(0, num_images, num_images)) for _ in range(replicates)]
    half = float(stats.norm.ppf(0.5 + LEVEL / 2) * np.std(found, ddof=1))
    return {
        "low": max(value - half, bounds[0]),
        "high": min(value + half, bounds[1]),
        "level": LEVEL,
        "method": "bootstrap",
        "replicates": replicates,
    }
