"""The judgement of a race: every contender beside the tuned baseline, by rules that are fixed before the race.

In each cell (share of the data, length) four values are judged: the last held-out nats, the best ones, the last ones at
a fitted temperature, and FD-lite0. The differences to the baseline are paired by seed. A contender is `better` or
`worse` if all three hold, otherwise it is `undecided`:

1. At least three seeds have both runs.
2. The p-value of the paired t test is below 0.05 after Holm's correction over the contenders of the cell.
3. The mean difference is not smaller than the spread of retraining: the baseline's standard deviation over its seeds.

By rule 2 the chance that a cell calls any of its contenders better or worse by one value, if none is, is at most 5%."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from masc.runtime.errors import InputError
from reports.paired import ALPHA, FEWEST_SEEDS, Estimate, estimate, holm, paired_differences, seeds_needed
from reports.race.rows import Cell, RaceCurve, RaceRow
from reports.runs import BASELINE, NATS, TimeToTarget, time_between

# Values that are judged: field of RaceRow -> name.
VALUES = {
    "last": "last held-out nats",
    "best": "best held-out nats",
    "fitted": "last held-out nats at a fitted temperature",
    "fd_lite0": "FD-lite0",
}
RULES = (
    f"A contender is better or worse if at least {FEWEST_SEEDS} seeds have both runs, the paired t test gives p < "
    f"{ALPHA:g} after Holm's correction over the contenders, and the mean difference is not smaller than flat's "
    "standard deviation over seeds, the spread of retraining. Otherwise it is undecided."
)


@dataclass(frozen=True)
class Verdict:
    """One contender beside the baseline by one value; every value is better if it is lower."""

    contender: str
    own: Estimate  # over the contender's own seeds
    difference: Estimate | None  # contender minus baseline, paired by seed; None if no seed has both
    p: float | None  # of the paired t test, corrected by Holm's method
    needed: int | None  # seeds at which a paired t test at ALPHA / contenders would see this effect with 80% power
    word: str  # better, worse or undecided
    reason: str  # why it is undecided; empty otherwise


@dataclass(frozen=True)
class Table:
    """All contenders by one value in one cell."""

    cell: Cell
    value: str  # key of VALUES
    baseline: Estimate
    verdicts: list[Verdict]


@dataclass(frozen=True)
class Times:
    """The time of a contender to the baseline's final value, paired by seed; means only if every seed reached it."""

    cell: Cell
    contender: str
    axis: str  # step or seconds
    reached: int
    of: int  # seeds that have both runs
    saved: Estimate | None  # 1 - t / t0
    speedup: Estimate | None  # t0 / t


@dataclass(frozen=True)
class Prediction:
    """Whether semantic replacement predicts the likelihood: rank correlation over the trees of a cell."""

    cell: Cell
    trees: int
    spearman: float  # of PSNR and last nats; negative if better replacement goes with better likelihood
    p: float


@dataclass(frozen=True)
class Judgement:
    tables: list[Table]
    times: list[Times]
    predictions: list[Prediction]


def judge(
    rows: Sequence[RaceRow], curves: Sequence[RaceCurve] = (), replacement: dict[str, float] | None = None
) -> Judgement:
    """The judgement of the rows of a race.

    `curves` give the times to the baseline's value, `replacement` the PSNR in dB of each contender's tree. Raises
    InputError if a cell lacks the baseline."""
    tables: list[Table] = []
    times: list[Times] = []
    predictions: list[Prediction] = []
    for cell in dict.fromkeys(row.cell for row in rows):
        inside = [row for row in rows if row.cell == cell]
        if BASELINE not in {row.contender for row in inside}:
            raise InputError(f"the race has no run of {BASELINE} at {cell.words}; contenders are compared with it")
        tables += [table for value in VALUES if (table := compare(inside, value)) is not None]
        times += _times([curve for curve in curves if curve.cell == cell])
        predictions += _predictions(inside, replacement or {})
    return Judgement(tables, times, predictions)


def compare(rows: Sequence[RaceRow], value: str) -> Table | None:
    """The contenders of one cell by one value; None if the baseline has none."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        if (number := getattr(row, value)) is not None:
            found.setdefault(row.contender, {})[row.seed] = number
    if BASELINE not in found:
        return None
    baseline = found.pop(BASELINE)
    spread = estimate(list(baseline.values()))
    pairs = {name: paired_differences(mine, baseline) for name, mine in found.items()}
    differences = {name: estimate(values) if values else None for name, values in pairs.items()}
    tested = {name: each.p for name, each in differences.items() if each is not None and each.p is not None}
    corrected = dict(zip(tested, holm(list(tested.values())), strict=True))
    verdicts = []
    for name, mine in found.items():
        difference, p = differences[name], corrected.get(name)
        reason = _undecided(difference, p, spread.sd)
        word = "undecided" if reason else "better" if difference.mean < 0 else "worse"
        needed = None if difference is None else seeds_needed(difference.effect, ALPHA / max(1, len(tested)))
        verdicts.append(Verdict(name, estimate(list(mine.values())), difference, p, needed, word, reason))
    return Table(rows[0].cell, value, spread, verdicts)


def _undecided(difference: Estimate | None, p: float | None, spread: float | None) -> str:
    """Why a difference decides nothing; empty if it does."""
    count = 0 if difference is None else difference.count
    if count < FEWEST_SEEDS:
        return f"{count} paired seed{'s' * (count != 1)}, {FEWEST_SEEDS} are needed"
    if not p < ALPHA:  # also if it is NaN
        return f"p {p:.2g} after Holm's correction"
    if abs(difference.mean) < spread:
        return f"below the spread of retraining, {spread:.3g}"
    return ""


def _times(curves: Sequence[RaceCurve]) -> list[Times]:
    """The times to the baseline's final value of every other contender of a cell."""
    baseline = {curve.seed: curve.curve for curve in curves if curve.contender == BASELINE}
    found = []
    for name in dict.fromkeys(curve.contender for curve in curves if curve.contender != BASELINE):
        mine = [curve for curve in curves if curve.contender == name and curve.seed in baseline]
        for axis in ("step", "seconds") if mine else ():
            times = [_time(curve.curve, baseline[curve.seed], axis) for curve in mine]
            reached = [time for time in times if time.saved is not None and time.speedup is not None]
            means = (
                [estimate([time.saved for time in reached]), estimate([time.speedup for time in reached])]
                if len(reached) == len(times)
                else [None, None]
            )
            found.append(Times(mine[0].cell, name, axis, len(reached), len(times), *means))
    return found


def _time(curve: dict[str, np.ndarray], baseline: dict[str, np.ndarray], axis: str) -> TimeToTarget:
    return time_between(curve, baseline, NATS, axis, float(baseline[NATS][-1]))


def _predictions(rows: Sequence[RaceRow], replacement: dict[str, float]) -> list[Prediction]:
    """Spearman's correlation over the contenders with a tree that was measured; none for fewer than three."""
    nats: dict[str, list[float]] = {}
    for row in rows:
        if row.contender in replacement:
            nats.setdefault(row.contender, []).append(row.last)
    if len(nats) < 3:
        return []
    found = stats.spearmanr([replacement[name] for name in nats], [float(np.mean(each)) for each in nats.values()])
    return [Prediction(rows[0].cell, len(nats), float(found.statistic), float(found.pvalue))]
