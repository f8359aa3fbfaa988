"""Train a run, or resume it (`make train`)."""

from stage import run_stage

from llamagen.train import train
from llamagen.training.config import TrainConfig


def main(config: TrainConfig) -> None:
    """Train runs/<model>/<head>/seed<seed>; the same command resumes it after an interruption."""
    print(train(config))


if __name__ == "__main__":
    run_stage("train", TrainConfig, main)
