"""Retrieval by scores: how often the own candidate is among the best of its gallery, with a binomial interval.

Shapes: Q queries, each with the same Q candidates; the own candidate of query q is candidate q."""

from typing import Any

import numpy as np
from scipy import stats

from metrics.results import row

DECIMALS = 3  # of a score that count: what is closer is rounding, and ties


def hits(scores: np.ndarray, k: int) -> np.ndarray:
    """The chance that each query's own candidate is among its k best, if ties are broken at random: (Q, Q) -> (Q,).

    `scores` has a row for each query; higher is better. Scores that are all equal give k / Q, as chance does."""
    rounded = np.round(scores, DECIMALS)
    own = np.diagonal(rounded)[:, None]
    better, equal = (rounded > own).sum(1), (rounded == own).sum(1)
    return ((k - better) / equal).clip(0, 1)


def recall_row(k: int, of: str, galleries: list[np.ndarray], protocol: dict[str, Any]) -> dict[str, Any]:
    """The row of recall@k over the queries of all galleries, each scored as in `hits`, with Wilson's interval.

    The interval takes the queries for independent; those of one gallery share their candidates."""
    found = np.concatenate([hits(scores, k) for scores in galleries])
    interval = stats.binomtest(round(found.sum()), len(found)).proportion_ci(0.95, "wilson")
    between = {"low": float(interval.low), "high": float(interval.high), "level": 0.95, "method": "Wilson"}
    return row(f"recall@{k} of {of}", float(found.mean()), protocol | {"num_images": len(found)}, between)
