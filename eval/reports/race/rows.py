"""The runs of a race: a row for each in rows.csv, and its validation curve in curves.json."""

import csv
import dataclasses
import io
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from masc.runtime.reading import Damaged, parse_json, read_text, reason
from metrics.results import FITTED_NATS
from reports.runs import NATS, Curve, RunRecord


@dataclass(frozen=True)
class Cell:
    """A place in a race: the share of the training data, and the steps of flat's runs."""

    share: float
    length: int

    @property
    def words(self) -> str:
        return f"{self.share:.0%} of the training data, {self.length:,} steps"


@dataclass(frozen=True, kw_only=True)
class RaceRow:
    """One run of a race. Nats are held out, per fine token, by the hard likelihood."""

    contender: str
    seed: int
    share: float
    length: int  # steps of flat's runs
    steps: int  # of this run; others than `length` at equal seconds
    seconds: float  # of training
    parameters: int
    last: float  # nats at the last step
    best: float  # lowest nats of all validations after the first step
    best_step: int
    fitted: float | None  # nats at a temperature that is fitted on the other half of the held-out images
    train: float | None  # training nats of the last rows, with dropout; None for a loss that is not in nats
    fd_lite0: float | None  # of the samples
    chosen: dict[str, Any]  # values that tuning chose, by config key
    commit: str
    torch: str
    threads: int

    def __post_init__(self) -> None:
        given = self.seconds, self.last, self.best, self.fitted, self.fd_lite0
        numbers = [value for value in given if value is not None]
        if not (all(map(math.isfinite, numbers)) and 0 < self.share <= 1 and self.length > 0):
            raise ValueError("expected finite results, a share in (0, 1] and a positive length")
        if not self.contender.isprintable():
            raise ValueError("expected a printable name of the contender")

    @property
    def cell(self) -> Cell:
        return Cell(self.share, self.length)


@dataclass(frozen=True, kw_only=True)
class RaceCurve:
    """The validations of one run."""

    contender: str
    seed: int
    share: float
    length: int
    step: list[int]
    seconds: list[float]
    nats: list[float]

    def __post_init__(self) -> None:
        if not len(self.step) == len(self.seconds) == len(self.nats) or not self.step:
            raise ValueError("expected as many seconds and nats as steps, and at least one")
        if not all(map(math.isfinite, [*self.step, *self.seconds, *self.nats, self.share])):
            raise ValueError("expected finite numbers")

    @property
    def cell(self) -> Cell:
        return Cell(self.share, self.length)

    @property
    def curve(self) -> Curve:
        """The arrays that `reports.runs` reads, each (P,)."""
        parts = {"step": self.step, "seconds": self.seconds, NATS: self.nats}
        return {name: np.array(values, np.float64) for name, values in parts.items()}


def read_run(
    directory: Path, contender: str, cell: Cell, chosen: dict[str, Any], parameters: int, threads: int, samples: str
) -> tuple[RaceRow, RaceCurve]:
    """The row and the curve of a trained run; `samples` names its sample set.

    Raises InputError for a run without validations or with a last value that is not finite."""
    run = RunRecord.load(directory)
    last, curve = run.final_nats, run.curve
    kept = (curve["step"] > 0) & np.isfinite(curve[NATS])
    steps, seconds, nats = (curve[name][kept] for name in ("step", "seconds", NATS))
    best = int(np.argmin(nats))
    measured = run.results("likelihood") | run.results(samples)
    distance, fitted = (measured.get(name, {}).get("value") for name in ("FD-lite0", FITTED_NATS))
    row = RaceRow(
        contender=contender,
        seed=run.seed,
        share=cell.share,
        length=cell.length,
        steps=int(run.config["steps"]),
        seconds=round(float(seconds[-1]), 1),
        parameters=parameters,
        last=round(last, 5),
        best=round(float(nats[best]), 5),
        best_step=int(steps[best]),
        fitted=None if fitted is None else round(fitted, 5),
        train=None if math.isnan(train := run.train_nats) else round(train, 5),
        fd_lite0=distance,
        chosen=chosen,
        commit=run.provenance.commit or "",
        torch=run.provenance.packages.get("torch", ""),
        threads=threads,
    )
    place = {"contender": contender, "seed": run.seed, "share": cell.share, "length": cell.length}
    values = {
        "step": [int(step) for step in steps],
        "seconds": [round(float(value), 1) for value in seconds],
        "nats": [round(float(value), 5) for value in nats],
    }
    return row, RaceCurve(**place, **values)


def rows_text(rows: list[RaceRow]) -> str:
    """The text of rows.csv: a column for each field; text as it is, every other value as JSON."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(_names())
    for row in rows:
        values = asdict(row).values()
        writer.writerow([value if isinstance(value, str) else json.dumps(value) for value in values])
    return stream.getvalue()


def read_rows(path: Path) -> list[RaceRow]:
    """The rows of a rows.csv; `Damaged` if it is missing, damaged, of other columns, or holds a run twice."""
    try:
        lines = list(csv.reader(io.StringIO(read_text(path))))
    except csv.Error as error:
        raise Damaged(f"expected a table in {path}, which is damaged ({reason(error)})") from error
    names = _names()
    if not lines or lines[0] != names or any(len(line) != len(names) for line in lines):
        raise Damaged(f"expected the columns {', '.join(names)} in every line of {path}, found others")
    texts = {each.name for each in dataclasses.fields(RaceRow) if each.type is str}
    objects = [
        ",".join(f"{json.dumps(name)}:{json.dumps(text) if name in texts else text}" for name, text in pairs)
        for pairs in (zip(names, line, strict=True) for line in lines[1:])
    ]
    rows = parse_json(f"[{','.join(f'{{{each}}}' for each in objects)}]", list[RaceRow], path)
    if not rows:
        raise Damaged(f"expected a line for each run in {path}, found none")
    places = [(row.contender, row.seed, row.cell) for row in rows]
    if len(set(places)) < len(places):
        raise Damaged(f"{path} holds a run twice")
    return rows


def _names() -> list[str]:
    return [each.name for each in dataclasses.fields(RaceRow)]
