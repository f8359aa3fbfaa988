"""Draw samples from a run or a released model (`make sample RUN=...` or `RELEASE=...`)."""

import sys

from stage import load_config, run_stage

from llamagen.plan import SampleConfig
from llamagen.sample import sample


def main(config: SampleConfig) -> None:
    """Write <run>/samples/<name>: tokens, pictures, a grid to look at and a manifest."""
    chosen = [word for word in sys.argv[1:] if not word.startswith("sampling.")]
    preset = load_config("sample", SampleConfig, chosen).sampling
    print(sample(config, preset))


if __name__ == "__main__":
    run_stage("sample", SampleConfig, main)
