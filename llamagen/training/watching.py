"""What is watched of a training beside its losses: speed, and samples at set intervals. Neither affects it."""

from dataclasses import dataclass, field

from llamagen.sampling.filters import SamplingConfig


@dataclass(kw_only=True)
class WatchConfig:
    """Samples that are drawn during a training, from the averaged weights if there are any."""

    sample_every: int = 0  # steps, a multiple of log_every; also after the last one. 0: no samples
    sample_images: int = 1000  # of FD-lite0; the grid shows the first 64
    distance: bool = True  # measure FD-lite0 of the samples; it needs the images of the data set once
    seed: int = 0  # of the samples: those of `make sample` with this seed and sampling
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def __post_init__(self) -> None:
        if self.sample_every < 0 or self.sample_images < 1:
            raise ValueError(
                f"watch.sample_every must be 0 or a number of steps, and watch.sample_images positive; found "
                f"{self.sample_every} and {self.sample_images}"
            )
        if self.distance and self.sample_every and self.sample_images < 2:
            raise ValueError(
                "FD-lite0 needs watch.sample_images of 2 or more; watch.distance=false draws the grid only"
            )

    @property
    def metric(self) -> str:
        """The name of the distance in metrics.jsonl, with its number of samples: val/fd_lite0_1k."""
        count = self.sample_images
        return f"val/fd_lite0_{f'{count // 1000}k' if count % 1000 == 0 else count}"

    def draws(self, step: int, steps: int) -> bool:
        """Whether samples are drawn after a step of a training of `steps`."""
        return self.sample_every > 0 and (step % self.sample_every == 0 or step == steps)


def speeds(images_per_second: float, num_positions: int, full_speed: float | None) -> dict[str, float]:
    """The speed of all processes by name. `full_speed` is the images a second of their peak, if it is known."""
    found = {
        "speed/images_per_second": images_per_second,
        "speed/tokens_per_second": images_per_second * num_positions,
    }
    return found if full_speed is None else found | {"speed/mfu": images_per_second / full_speed}


def bar_words(row: dict[str, float]) -> dict[str, str]:
    """What the progress bar shows of a row beside step and time left: nats or loss, images and tokens a second, MFU."""
    words = {
        "nats": "train/nats_per_token",
        "loss": "train/loss",
        "images/s": "speed/images_per_second",
        "tokens/s": "speed/tokens_per_second",
    }
    shown = {
        word: f"{row[name]:.3f}" if name.startswith("train/") else f"{row[name]:,.0f}"
        for word, name in words.items()
        if name in row
    }
    return shown | ({"MFU": f"{row['speed/mfu']:.0%}"} if "speed/mfu" in row else {})
