"""Groups of images that are variants of one image, each group with the same weight."""

import numpy as np


class Groups:
    """The G groups of M images."""

    def __init__(self, group_of: np.ndarray):
        """`group_of` (M,) int64 holds every number 0..G-1."""
        self.members = np.argsort(group_of, kind="stable")  # (M,) images sorted by group
        self.sizes = np.bincount(group_of)  # (G,)
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)[:-1]])  # (G,) start of each group in `members`

    def __len__(self) -> int:
        return len(self.sizes)

    def pick(self, groups: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
        """One image of each of the given groups, chosen by numbers in [0, 1): (B,), (B,) -> (B,)."""
        return self.members[self.starts[groups] + (uniforms * self.sizes[groups]).astype(np.int64)]

    def first(self) -> np.ndarray:
        """The first image of each group: (G,)."""
        return self.members[self.starts]
