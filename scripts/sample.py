"""Draw samples from a run or a released model (`make sample RUN=...` or `RELEASE=...`)."""

from stage import CONFIGS, load_config, run_stage
from words import override
from worker import is_main

from llamagen.sampling.draw import check_settings, sample
from llamagen.sampling.filters import SamplingConfig
from llamagen.sampling.plan import SampleConfig


def preset_of(config: SampleConfig) -> SamplingConfig | None:
    """The published settings of the release that is sampled; None for a run or for an own checkpoint."""
    if config.release is None or not (CONFIGS / "sampling" / f"{config.release.name}.yaml").exists():
        return None
    name = config.release.name
    return load_config("sample", SampleConfig, [override("release", name), override("sampling", name)]).sampling


def main(config: SampleConfig) -> None:
    """Write <run>/samples/<name>: tokens, images, a grid of some images and a manifest."""
    samples = sample(config, preset_of(config))
    if is_main():
        print(samples.directory)


if __name__ == "__main__":
    run_stage("sample", SampleConfig, main, check=check_settings)
