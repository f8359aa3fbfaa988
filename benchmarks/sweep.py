"""The learning-rate grid behind configs/tuned: every head at every point, then the best of each.

    make sweep                                  # 18 runs, about half an hour on two cores
    make sweep ARGS="--heads flat --seeds 0 1"

An untuned flat baseline is the classic way to fool oneself here. All heads get the same grid; the point with the
lowest held-out nats per token (at the end of training) is chosen, on the held-out images that the report uses
too: mildly optimistic, for all heads alike."""

import argparse
import itertools
from pathlib import Path

from jobs import available_cores, run_jobs
from pipeline import train_job
from stage import load_config

from llamagen.training.config import TrainConfig
from masc.runtime.files import write_text
from reports.runs import RunRecord

ROOT = Path(__file__).resolve().parents[1]
MODEL = "llamagen-tiny"
HEADS = ["flat", "masc", "masc-two-level"]


def plan(head: str, rate: float, scale: float, seed: int) -> tuple[TrainConfig, list[str]]:
    overrides = [
        f"model={MODEL}",
        "data=twemoji",
        f"head={head}",
        f"seed={seed}",
        f"optim.learning_rate={rate}",
        f"optim.table_scale={scale}",
        "tracking.mode=disabled",
        f"run_dir=runs/sweep/{head}-lr{rate:g}-x{scale:g}/seed{seed}",
    ]
    return load_config("train", TrainConfig, overrides), overrides


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", nargs="+", default=HEADS)
    parser.add_argument("--rates", nargs="+", type=float, default=[5e-4, 1e-3, 2e-3])
    parser.add_argument("--scales", nargs="+", type=float, default=[4.0, 8.0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--workers", type=int, default=available_cores())
    arguments = parser.parse_args()
    points = list(itertools.product(arguments.heads, arguments.rates, arguments.scales))
    planned = {(*point, seed): plan(*point, seed) for seed in arguments.seeds for point in points}
    run_jobs([train_job(*run) for run in planned.values()], arguments.workers, "sweep", "step")

    lines = [
        "# Learning-rate sweep",
        "",
        f"`make sweep`: {MODEL} on twemoji, {next(iter(planned.values()))[0].steps} steps of 32 images, seeds "
        f"{', '.join(map(str, arguments.seeds))}. Held-out nats per token at the end of training, training nats in",
        "brackets. `x` is the learning rate of token embedding and head relative to the rest (`optim.table_scale`).",
        "Bold: chosen for configs/tuned.",
        "",
        "| head | "
        + " | ".join(f"{rate:g} x{scale:g}" for _, rate, scale in points[: len(points) // len(arguments.heads)])
        + " |",
        "|---" * (1 + len(points) // len(arguments.heads)) + "|",
    ]
    for head in arguments.heads:
        cells = {}
        for rate, scale in itertools.product(arguments.rates, arguments.scales):
            runs = [RunRecord.load(planned[head, rate, scale, seed][0].directory) for seed in arguments.seeds]
            nats = sum(run.final_nats for run in runs) / len(runs)
            cells[rate, scale] = (nats, sum(run.train_nats for run in runs) / len(runs))
        best = min(cells, key=lambda point: cells[point][0])
        texts = [
            f"{'**' if point == best else ''}{nats:.3f}{'**' if point == best else ''} ({train:.2f})"
            for point, (nats, train) in cells.items()
        ]
        lines.append(f"| {head} | " + " | ".join(texts) + " |")
    text = "\n".join(lines) + "\n"
    if set(HEADS) <= set(arguments.heads):  # a part of the grid does not replace the whole
        write_text(ROOT / "benchmarks" / "sweep.md", text)
    print(text)


if __name__ == "__main__":
    main()
