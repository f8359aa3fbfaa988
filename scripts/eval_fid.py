"""FID, sFID, IS, precision and recall of a run, a release or any images (`make eval-fid`)."""

from stage import run_stage
from worker import is_main

from llamagen.evaluation.fid import evaluate_fid
from llamagen.evaluation.images import EvalFidConfig
from metrics.results import Results, row_text


def main(config: EvalFidConfig) -> None:
    """Write eval/<samples>-<protocol>.json, every value with its protocol, and print the values."""
    for path in evaluate_fid(config):
        if is_main():
            print(path)
            for row in Results.load(path).rows:
                print(row_text(row))


if __name__ == "__main__":
    run_stage("eval_fid", EvalFidConfig, main)
