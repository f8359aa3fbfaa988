"""The form of a file of results: what its rows and its evidence hold, apart from the keys of a protocol."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

LARGEST = 2**53  # whole numbers beyond it are no floats


def check_sizes(content: Any) -> None:
    """Raise ValueError for a whole number beyond LARGEST anywhere in plain values: arithmetic could not use it."""
    if isinstance(content, dict):
        content = list(content.values())
    if isinstance(content, list | tuple):
        for value in content:
            check_sizes(value)
    elif isinstance(content, int) and abs(content) > LARGEST:
        raise ValueError("a whole number is too large")


@dataclass(frozen=True)
class Interval:
    """A confidence interval, as a row stores it."""

    low: float
    high: float
    level: float = 0.95
    method: str = ""
    replicates: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise ValueError(f"expected an interval of finite numbers, found {self.low} to {self.high}")


@dataclass(frozen=True)
class StoredRow:
    """A row in a file of results."""

    metric: str
    value: float
    protocol: dict[str, Any]
    interval: Interval | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise ValueError(f"expected a finite value, found {self.value}")


@dataclass(frozen=True)
class LabelCounts:
    """Observations about the labels of samples: numbers of classes and of images a class."""

    classes: int
    present: int
    fewest: int
    most: int
    sorted: bool  # by class, in the order of the images

    def __post_init__(self) -> None:
        check_sizes(asdict(self))
        if not 0 <= self.present <= self.classes or not 0 <= self.fewest <= self.most or not self.classes:
            raise ValueError("counts of labels that no images have")


@dataclass(frozen=True)
class ScoreOrder:
    """The inception score over chunks in file order, and over shuffled chunks."""

    file_order: float
    shuffled: float
    chunks: int = 2

    def __post_init__(self) -> None:
        if self.shuffled == 0:
            raise ValueError("an inception score of 0")


@dataclass(frozen=True)
class Sharpness:
    """Mean Laplacian of the images and of the reference."""

    samples: float = 0.0
    reference: float = 0.0


@dataclass(frozen=True)
class Evidence:
    """The observations about images that `make doctor` reads; all may be absent, and none is null."""

    tree_tokenizer_sha256: str = ""
    labels: LabelCounts = LabelCounts(1, 1, 0, 0, False)
    inception_score: ScoreOrder = ScoreOrder(1.0, 1.0)
    file_types: dict[str, int] = field(default_factory=dict)  # number of images by type
    image_sizes: dict[str, int] = field(default_factory=dict)  # number of images by size
    blockiness: float = 1.0
    sharpness: Sharpness = Sharpness()
    average_kept: bool = False
    label_map: str = ""
