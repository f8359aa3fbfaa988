"""One row of a paper's table from images to the number (`make experiment`, docs/experiments.md)."""

from doctor import DoctorStage
from doctor import main as ask_doctor
from experiment_page import SMOKE_WORDS, result_text
from experiment_plan import ExperimentConfig, check_known, check_possible, smoke_version
from experiment_stages import read_curves, run_stages, stages_of
from stage import run_stage


def main(config: ExperimentConfig) -> None:
    """Run the stages that are not done; print the curve over guidance, the published row, and the doctor's word."""
    check_known(config)
    if config.smoke:
        config = smoke_version(config)
        print(SMOKE_WORDS)
    check_possible(config)
    run_stages(stages_of(config))
    print("\nThe doctor:")
    ask_doctor(DoctorStage(run=str(config.directory)))
    print(f"\n{result_text(config, read_curves(config))}")


if __name__ == "__main__":
    run_stage("experiment", ExperimentConfig, main)
