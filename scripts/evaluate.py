"""Measure a run: held-out likelihood, and its samples in the embedded feature space (`make eval-lite`)."""

from stage import run_stage

from llamagen.evaluate import EvaluateConfig, evaluate_run


def main(config: EvaluateConfig) -> None:
    """Write <run>/eval/*.json, every value with its protocol."""
    print(evaluate_run(config))


if __name__ == "__main__":
    run_stage("evaluate", EvaluateConfig, main)
