"""FID, IS and CLIP score on COCO of a text model's samples or of any images (`make eval-coco`)."""

from stage import run_stage
from worker import is_main

from llamagen.evaluation.coco import EvalCocoConfig, evaluate_coco
from metrics.coco_protocol import describe
from metrics.results import Results, row_text


def main(config: EvalCocoConfig) -> None:
    """Write eval/<samples>-coco.json and -coco-clean.json, and print every value with its protocol."""
    for path in evaluate_coco(config):
        if is_main():
            print(path)
            for row in Results.load(path).rows:
                print(f"{row_text(row)}   {describe(row['protocol'])}")


if __name__ == "__main__":
    run_stage("eval_coco", EvalCocoConfig, main)
