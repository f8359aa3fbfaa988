"""Fabricated rows and curves of a race."""

from reports.race.records import Tuned, new_record
from reports.race.rows import RaceCurve, RaceRow

RACE = {
    "name": "made-up",
    "model_name": "llamagen-micro",
    "data_name": "twemoji",
    "tokenizer_name": "emoji32",
    "seeds": [0, 1, 2],
    "equal": "steps",
    "tuning_budget": 2,
    "tuning_share": 0.1,
}


def make_rows(values, share=1.0, length=600, fd=None):
    """A row for each contender and seed; `values` and `fd` are numbers by contender, one for each seed."""
    return [
        RaceRow(
            contender=name,
            seed=seed,
            share=share,
            length=length,
            steps=length,
            seconds=60.0,
            parameters=1000,
            last=value,
            best=value - 0.1,
            best_step=500,
            fitted=value - 0.05,
            train=None,
            fd_lite0=None if fd is None else fd[name][seed],
            chosen={"optim.weight_decay": 0.5},
            commit='abc, "d"',
            torch="2.15",
            threads=1,
        )
        for name, numbers in values.items()
        for seed, value in enumerate(numbers)
    ]


def make_curve(name, seed, nats, seconds=10.0, share=1.0, length=600):
    """Validations every 100 steps, of as many seconds each."""
    steps = [100 * (index + 1) for index in range(len(nats))]
    times = [seconds * (index + 1) for index in range(len(nats))]
    return RaceCurve(
        contender=name, seed=seed, share=share, length=length, step=steps, seconds=times, nats=list(map(float, nats))
    )


def make_record(rows, curves=(), replacement=None):
    names = dict.fromkeys(row.contender for row in rows)
    points = [{"optim.weight_decay": 0.5}, {"optim.weight_decay": 0.05}]
    tuning = [Tuned(contender=name, share=1.0, length=600, points=points, nats=[4.1, 4.2], chosen=0) for name in names]
    return new_record(RACE, rows, curves, tuning, replacement or {})
