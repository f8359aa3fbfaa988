"""The part of the training images that a run sees, and the part that tuning is judged by instead of held-out images."""

from dataclasses import replace

import numpy as np
from torch import Tensor

from llamagen.conditions.images import Conditions
from masc.runtime.codes import Codes
from masc.runtime.errors import InputError
from masc.runtime.streams import Purpose, random_stream


def divide_groups(num_groups: int, train_share: float, tuning_share: float) -> tuple[np.ndarray, np.ndarray]:
    """The groups that a run trains on, and those held out for tuning: two sorted arrays of numbers below `num_groups`.

    One order of the groups, the same for all runs, decides. `tuning_share` of all groups is held out; the run trains on
    `train_share` of the others. The groups of a smaller share lie in those of a larger one. Raises InputError if either
    part has no group."""
    order = random_stream(0, Purpose.SUBSET).permutation(num_groups)
    tuning = round(tuning_share * num_groups)
    trained = round(train_share * (num_groups - tuning))
    if not trained or bool(tuning) != bool(tuning_share):
        raise InputError(
            f"train_share={train_share} and tuning_share={tuning_share} of {num_groups} groups leave {trained} for "
            f"training and {tuning} for tuning; set larger shares"
        )
    return np.sort(order[:trained]), np.sort(order[num_groups - tuning :])


def part_of(codes: Codes, images: np.ndarray) -> Codes:
    """The codes of some images by their rows (B,), in memory, with their first view only and no near codes."""
    tokens = codes.read(images, 0)[:, None]
    return replace(codes, tokens=tokens, labels=codes.labels[images], groups=np.arange(len(images)), near=None)


class PartOfConditions:
    """The conditions of some images of a set."""

    def __init__(self, conditions: Conditions, images: np.ndarray):
        """`images` (M,) are their rows in the set."""
        self.conditions, self.images = conditions, images

    def batch(self, images: np.ndarray, uniforms: np.ndarray | None = None) -> tuple[Tensor, Tensor | None]:
        """As the batch of the whole set, by rows of the part."""
        return self.conditions.batch(self.images[images], uniforms)
