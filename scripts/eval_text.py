"""Measure whether a run's likelihood knows captions from one another (`make eval-text`)."""

from stage import run_stage

from llamagen.evaluation.text import EvalTextConfig, evaluate_text
from metrics.results import Results, row_text


def main(config: EvalTextConfig) -> None:
    """Write <run>/eval/text.json, every value with its protocol, and print the values."""
    path = evaluate_text(config)
    print(path)
    for row in Results.load(path).rows:
        print(row_text(row))


if __name__ == "__main__":
    run_stage("eval_text", EvalTextConfig, main)
