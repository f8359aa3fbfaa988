"""The config of a data set."""

import math
from dataclasses import dataclass, field

from masc.runtime.files import check_name
from vq.crops import CROPS, Views
from vq.readers import SOURCES


@dataclass(kw_only=True)
class DataConfig:
    """An image source at one resolution, and the views of its images that training uses."""

    name: str
    source: str  # one of SOURCES
    path: str | None = None  # folder of the images, for sources on disk
    resolution: int  # pixels a side
    tokenizer: str  # default of TOKENIZER for these data
    # center: one view; center-flip: also its mirror image (LlamaGen's default); ten-crop: ten views for each range.
    crops: str = "center-flip"
    crop_ranges: list[float] = field(default_factory=lambda: [1.1, 1.05])  # LlamaGen, extract_codes_c2i.sh

    def __post_init__(self) -> None:
        check_name(self.name, "data.name")
        if self.source not in SOURCES:
            raise ValueError(f"data.source must be one of {', '.join(SOURCES)}, not {self.source!r}")
        if self.resolution < 1:
            raise ValueError(f"data.resolution must be positive, found {self.resolution}")
        if self.crops not in CROPS:
            raise ValueError(f"data.crops must be one of {', '.join(CROPS)}, not {self.crops!r}")
        if not self.crop_ranges or not all(1 <= crop_range < math.inf for crop_range in self.crop_ranges):
            raise ValueError(f"data.crop_ranges must be one or more numbers from 1 up, found {self.crop_ranges}")

    def views(self, split: str) -> Views:
        """The views that are tokenized. Held-out likelihood uses the first, which is the centre crop."""
        if self.crops == "ten-crop":
            return Views("ten-crop", tuple(self.crop_ranges)) if split == "train" else Views("center")
        return Views(self.crops)
