"""Draw samples from a run (`make sample RUN=...`)."""

from stage import run_stage

from llamagen.sample import SampleConfig, sample


def main(config: SampleConfig) -> None:
    """Write <run>/samples/<name>: tokens, pictures, a grid to look at and a manifest."""
    print(sample(config))


if __name__ == "__main__":
    run_stage("sample", SampleConfig, main)
