"""FID, sFID, IS, precision and recall of a run, a release or any images (`make eval-fid`)."""

from accelerate import PartialState
from stage import run_stage

from llamagen.evaluation.fid import evaluate_fid
from llamagen.evaluation.images import EvalFidConfig
from metrics.results import Results, row_text


def main(config: EvalFidConfig) -> None:
    """Write eval/<samples>-<protocol>.json, every value with its protocol, and print the values."""
    for path in evaluate_fid(config):
        if PartialState().is_main_process:
            print(path)
            for row in Results.load(path).rows:
                print(row_text(row))


if __name__ == "__main__":
    run_stage("eval_fid", EvalFidConfig, main)
