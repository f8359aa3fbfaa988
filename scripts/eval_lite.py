"""Measure a run: held-out likelihood, and its samples in the embedded feature space (`make eval-lite`)."""

from stage import run_stage

from llamagen.evaluation.lite import EvalLiteConfig, evaluate_lite
from metrics.results import Results, row_text


def main(config: EvalLiteConfig) -> None:
    """Write <run>/eval/*.json, every value with its protocol, and print the values."""
    directory = evaluate_lite(config)
    for name in ("likelihood", *config.samples):
        print(directory / f"{name}.json")
        for row in Results.load(directory / f"{name}.json").rows:
            print(row_text(row))


if __name__ == "__main__":
    run_stage("eval_lite", EvalLiteConfig, main)
