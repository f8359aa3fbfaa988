"""Values over seeds, and differences paired by seed: Student's interval, effect size, p-values with Holm's correction,
and the number of seeds that would be needed."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import special, stats

CONFIDENCE = 0.95  # of every interval
ALPHA = 1 - CONFIDENCE
POWER = 0.8  # of `seeds_needed`
FEWEST_SEEDS = 3  # that decide anything
MOST_SEEDS = 1000  # that `seeds_needed` tries


@dataclass(frozen=True)
class Estimate:
    """The mean of a value over seeds with its two-sided interval of 95% by Student's t; one seed has no interval."""

    mean: float
    low: float | None
    high: float | None
    sd: float | None  # standard deviation over seeds, n - 1 in the denominator
    count: int  # seeds

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero; false without a finite interval."""
        return self.low is not None and (0 < self.low < np.inf or -np.inf < self.high < 0)

    @property
    def effect(self) -> float | None:
        """Cohen's d of paired differences: their mean over their standard deviation; None if that is 0 or unknown."""
        return self.mean / self.sd if self.sd else None

    @property
    def p(self) -> float | None:
        """Two-sided p-value of Student's t test that the mean is 0; None for one seed."""
        if self.sd is None:
            return None
        if self.sd == 0:
            return 1.0 if self.mean == 0 else 0.0
        return float(2 * stats.t.sf(abs(self.mean) / self.sd * self.count**0.5, self.count - 1))


def estimate(values: list[float]) -> Estimate:
    """The estimate from a value for each seed, at least one."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return Estimate(mean, None, None, None, 1)
    sd = float(np.std(values, ddof=1))
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, len(values) - 1)) * sd / len(values) ** 0.5
    return Estimate(mean, mean - half, mean + half, sd, len(values))


def paired_differences(mine: Mapping[int, float], theirs: Mapping[int, float]) -> list[float]:
    """Mine minus theirs for each seed that has both."""
    return [value - theirs[seed] for seed, value in mine.items() if seed in theirs]


def holm(values: list[float]) -> list[float]:
    """P-values corrected for their number by Holm's step-down method (Holm 1979).

    If the hypotheses with a corrected value below alpha are rejected, the chance of one false rejection or more is at
    most alpha, however the tests depend on one another."""
    order = np.argsort(values, kind="stable")
    adjusted, largest = [0.0] * len(values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(values) - rank) * values[index]))
        adjusted[index] = largest
    return adjusted


@cache
def _deviations(count: int) -> np.ndarray:
    """Standard deviations of `count` values of a normal distribution over its own, at 2,000 equal chances."""
    return np.sqrt(stats.chi2.ppf((np.arange(2000) + 0.5) / 2000, count - 1) / (count - 1))


def power(effect: float, count: int, alpha: float = ALPHA) -> float:
    """The chance that a paired t test of `count` seeds at `alpha` sees an effect (Cohen's d)."""
    # The non-central t distribution as a mean over standard deviations, because SciPy's is NaN at large shifts.
    edge, shift = stats.t.ppf(1 - alpha / 2, count - 1) * _deviations(count), abs(effect) * count**0.5
    return float(np.mean(special.ndtr(shift - edge) + special.ndtr(-shift - edge)))


def seeds_needed(effect: float | None, alpha: float = ALPHA) -> int | None:
    """The smallest number of seeds, 3 or more, at which a paired t test at `alpha` has 80% power; None above 1,000 or
    for no effect."""
    if not effect:
        return None
    # With a known standard deviation, (1.96 + 0.84)² / d² would do at 0.05; Student's t needs a few more.
    normal = ((stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(POWER)) / effect) ** 2
    if normal > MOST_SEEDS:
        return None
    return next(
        count for count in itertools.count(max(FEWEST_SEEDS, int(normal))) if power(effect, count, alpha) >= POWER
    )
