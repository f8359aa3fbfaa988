"""FID, sFID, IS, precision and recall of a run, a release or any pictures (`make eval-fid`)."""

from accelerate import PartialState
from stage import run_stage

from llamagen.fid import EvalFidConfig, evaluate_fid
from metrics.results import Results


def main(config: EvalFidConfig) -> None:
    """Write eval/<samples>-<protocol>.json, every value with its protocol, and print the values."""
    for path in evaluate_fid(config):
        if PartialState().is_main_process:
            print(path)
            for row in Results.load(path).rows:
                spread = row.get("interval")
                between = f"   95% {spread['low']:.4f} to {spread['high']:.4f}" if spread else ""
                print(f"  {row['metric']:<10} {row['value']:>10.4f}{between}")


if __name__ == "__main__":
    run_stage("eval_fid", EvalFidConfig, main)
