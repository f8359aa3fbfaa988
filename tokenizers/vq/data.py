"""Which images a run is about."""

from dataclasses import dataclass

SOURCES = ("twemoji", "imagenet")


@dataclass(kw_only=True)
class DataConfig:
    """An image source at one resolution."""

    name: str
    source: str  # one of SOURCES
    resolution: int  # pixels a side
    tokenizer: str  # the one whose codes are trained on unless TOKENIZER says otherwise
    flip: bool = True  # whether the codes hold a mirrored view of each picture

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise ValueError(f"data.source must be one of {', '.join(SOURCES)}, not {self.source!r}")
