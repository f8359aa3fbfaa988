"""Cold against warm runs on the embedded data (`make bench-warm`).

    make bench-warm                                      # seeds 0, 1, 2: 27 runs, over an hour on two cores
    make bench-warm ARGS="--seeds 0 --steps 20"          # a check; writes nothing into benchmarks/

For each seed a flat run is trained; then masc and masc-two-level, cold and from the flat run's weights; and flat from
those weights, because a warm run has seen the images of two. All follow the recipe of the model; warm runs are also
trained at a lower learning rate, because the recipe's disturbs weights that are trained already. The table says the
first and the last held-out nats per token, and after how many steps a run first reaches the last value of the flat run,
and of the cold run of its own head, within one seed. Validations are 20 steps apart.

Writes benchmarks/warm.json and warm.md if no option is given."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jobs import available_cores, run_jobs
from pipeline import train_job
from stage import load_config
from train import make_inputs
from words import override

from llamagen.training.config import TrainConfig
from masc.runtime.files import write_json, write_text
from reports.runs import NATS, RunRecord

ROOT = Path(__file__).resolve().parents[1]
MODEL, BASELINE = "llamagen-tiny", "flat"
HEADS = ("masc", "masc-two-level")
STARTS = {"cold": 1.0, "warm": 1.0, "warm-slow": 0.3}  # the learning rate relative to the recipe's
EVERY = 20  # steps between validations


@dataclass(frozen=True)
class Planned:
    head: str
    start: str  # of STARTS
    seed: int
    config: TrainConfig
    overrides: list[str]


def plan(head: str, start: str, seed: int, steps: int | None, runs: Path) -> Planned:
    given = {"model": MODEL, "data": "twemoji", "head": head, "seed": seed, "tracking.mode": "disabled"}
    given |= {"evaluate_every": EVERY, "diagnostics": False}
    given |= {"run_dir": str(runs / f"{head}-{start}" / f"seed{seed}")}
    given |= {"init": str(runs / f"{BASELINE}-cold" / f"seed{seed}")} if start != "cold" else {}
    given |= {} if steps is None else {"steps": steps}
    overrides = [override(key, value) for key, value in given.items()]
    config = load_config("train", TrainConfig, overrides)
    if STARTS[start] != 1:
        overrides.append(override("optim.learning_rate", STARTS[start] * config.optim.learning_rate))
        config = load_config("train", TrainConfig, overrides)
    return Planned(head, start, seed, config, overrides)


def measure(run: Planned, targets: dict[str, float]) -> dict[str, Any]:
    """First and last held-out nats of a run, and the first step with each of `targets`; None if it reaches it never."""
    curve = RunRecord.load(run.config.directory).curve

    def first_step(target: float) -> int | None:
        (reached,) = np.nonzero(curve[NATS] <= target)
        return int(curve["step"][reached[0]]) if len(reached) else None

    return {
        "head": run.head,
        "start": run.start,
        "seed": run.seed,
        "first_nats": float(curve[NATS][0]),
        "last_nats": float(curve[NATS][-1]),
        **{f"steps_to_{name}": first_step(target) for name, target in targets.items()},
    }


def table(rows: Sequence[dict[str, Any]], steps: int) -> str:
    """The measurements as Markdown: mean and standard deviation over the seeds."""

    def spread(values: Sequence[float]) -> str:
        return f"{np.mean(values):.3f}" + (f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else "")

    seeds = sorted({row["seed"] for row in rows})
    lines = [
        "# Warm against cold",
        "",
        f"`make bench-warm`: {MODEL} on twemoji, {steps} steps, seeds {', '.join(map(str, seeds))}. Held-out nats per",
        f"token, mean ± standard deviation. A warm run starts from the flat run of its seed, after its {steps} steps.",
        "Steps to flat: when a run first reaches that flat run's last value, seed by seed; steps to cold: that of the",
        f"cold run of its head. warm-slow has {STARTS['warm-slow']} of the recipe's learning rate.",
        "",
        "| head | start | first nats | last nats | steps to flat | steps to cold |",
        "|---|---|---|---|---|---|",
    ]
    for head, start in dict.fromkeys((row["head"], row["start"]) for row in rows):
        here = [row for row in rows if (row["head"], row["start"]) == (head, start)]
        first, last = (spread([row[f"{when}_nats"] for row in here]) for when in ("first", "last"))
        flat, cold = (
            ", ".join("never" if row[key] is None else str(row[key]) for row in here)
            for key in ("steps_to_flat", "steps_to_cold")
        )
        lines.append(f"| {head} | {start} | {first} | {last} | {flat} | {cold} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="of each run; by default those of the recipe")
    parser.add_argument("--runs", type=Path, default=Path("runs/warm"), help="where the runs lie; found ones continue")
    parser.add_argument("--workers", type=int, default=available_cores())
    arguments = parser.parse_args()

    def planned(head: str, start: str) -> list[Planned]:
        return [plan(head, start, seed, arguments.steps, arguments.runs) for seed in arguments.seeds]

    flat = planned(BASELINE, "cold")
    later = [run for head in (BASELINE, *HEADS) for start in STARTS for run in planned(head, start)]
    later = later[len(flat) :]
    make_inputs(later[-1].config)
    for runs in (flat, later):
        run_jobs([train_job(run.config, run.overrides) for run in runs], arguments.workers, "warm start", "step")
    cold = {
        (run.head, run.seed): RunRecord.load(run.config.directory).final_nats
        for run in flat + later
        if run.start == "cold"
    }
    rows = [measure(run, {"flat": cold[BASELINE, run.seed], "cold": cold[run.head, run.seed]}) for run in flat + later]
    text = table(rows, flat[0].config.steps)
    if arguments.steps is None and arguments.seeds == parser.get_default("seeds"):
        write_json(ROOT / "benchmarks" / "warm.json", {"steps": flat[0].config.steps, "runs": rows})
        write_text(ROOT / "benchmarks" / "warm.md", text)
    print(text)


if __name__ == "__main__":
    main()
