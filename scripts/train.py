"""Train a run, or resume it (`make train`)."""

from inputs import make_inputs
from stage import run_stage
from worker import is_main

from llamagen.train import train
from llamagen.training.config import TrainConfig


def main(config: TrainConfig) -> None:
    """Train runs/<model>/<head>/seed<seed>; the same command resumes it after an interruption."""
    directory = train(config)
    if is_main():
        print(directory)


if __name__ == "__main__":
    run_stage("train", TrainConfig, main, prepare=make_inputs)
