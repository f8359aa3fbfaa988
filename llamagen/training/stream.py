"""Order of the training images: a function of (seed, step), the same for any number of processes.

An epoch visits every group once, in an order drawn from (seed, epoch). One variant and one view of each group are
drawn from (seed, step)."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from masc.runtime.codes import Codes
from masc.runtime.groups import Groups
from masc.runtime.streams import Purpose, random_stream


class CodeStream:
    """Global batches of training codes by step."""

    def __init__(self, codes: Codes, seed: int, batch_size: int, seen: np.ndarray | None = None):
        """`seen` are the groups that are read; None: all."""
        self.codes, self.seed, self.batch_size = codes, seed, batch_size
        self.groups = Groups(codes.groups)
        self.seen = np.arange(len(self.groups)) if seen is None else seen
        self._order = lru_cache(maxsize=2)(self._draw_order)
        self._draw = lru_cache(maxsize=1)(self._draw_step)

    def _draw_order(self, epoch: int) -> np.ndarray:
        return random_stream(self.seed, Purpose.ORDER, epoch).permutation(self.seen)

    def images(self, step: int, part: slice = slice(None)) -> np.ndarray:
        """Rows of a step's images in the codes, or of those in `part`: (B,) int64."""
        return self._draw(step)[0][part]

    def tokens(self, step: int, part: slice = slice(None)) -> Tensor:
        """The tokens of a step's images, or of those in `part`: (B, T) int64."""
        image, view = self._draw(step)
        return torch.from_numpy(self.codes.read(image[part], view[part]))

    def near(self, step: int, part: slice, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The `count` nearest codes of the encoder's output at each position of some images of a step, and their
        squared distances: (B, T, m) int64, (B, T, m) float32. MissingArtifact if the codes were made with fewer."""
        image, view = self._draw(step)
        return self.codes.read_near(image[part], view[part], count)

    def _draw_step(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Row and view of each image of a step: (B,) int64 each."""
        place = step * self.batch_size + np.arange(self.batch_size)
        epoch, offset = place // len(self.seen), place % len(self.seen)
        group = np.array([self._order(int(e))[o] for e, o in zip(epoch, offset, strict=True)])
        draws = random_stream(self.seed, Purpose.VARIANT, step).random((2, self.batch_size))
        return self.groups.pick(group, draws[0]), (draws[1] * self.codes.tokens.shape[1]).astype(np.int64)


def dropped_conditions(rate: float, seed: int, step: int, part: slice, batch_size: int) -> Tensor:
    """Mask of the images in `part` of a step that lose their condition, for guidance: (B,) bool."""
    return torch.from_numpy(random_stream(seed, Purpose.CONDITION, step).random(batch_size)[part] < rate)


def caption_choices(seed: int, step: int, part: slice, batch_size: int) -> np.ndarray:
    """Numbers in [0, 1) that choose a caption of each image in `part` of a step: (B,)."""
    return random_stream(seed, Purpose.CAPTION, step).random(batch_size)[part]


def group_labels(codes: Codes) -> np.ndarray:
    """The label of each group: (G,) int64. Labels drawn from it are as frequent as in training."""
    return codes.labels[Groups(codes.groups).first()]
