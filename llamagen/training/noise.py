"""Noise in the context of training images: which tokens the model sees in the place of the right ones.

The noise depends on the seed, the step and the place of an image in its batch. The targets stay.

Shapes: B images, T positions, N tokens, m near codes."""

import numpy as np

from llamagen.training.inputs import RunInputs
from masc.losses.config import LossConfig, SoftEncoderConfig
from masc.losses.neighbours import targets_of
from masc.runtime.streams import Purpose, random_stream


class ContextNoise:
    """Replaces tokens of the context as a loss asks."""

    def __init__(self, config: LossConfig, inputs: RunInputs, seed: int, batch_size: int):
        """`batch_size` is that of all processes."""
        self.config, self.seed, self.batch_size = config, seed, batch_size
        self.num_tokens = inputs.train.num_tokens
        self.partition = None
        if config.noise == "cluster":
            self.partition = inputs.tree.cut(config.cuts(self.num_tokens)[-1])

    def draw(
        self, tokens: np.ndarray, step: int, part: slice, progress: float, near: tuple[np.ndarray, np.ndarray] | None
    ) -> np.ndarray:
        """The context of the images in `part` of a step: (B, T) int64 -> (B, T) int64.

        `progress` is the share of training done; `near` are the near codes (B, T, m) of the images and their squared
        distances, for a loss that draws among them."""
        random = random_stream(self.seed, Purpose.CONTEXT, step)
        by_place, which = random.random((2, self.batch_size, tokens.shape[1]))[:, part]
        if isinstance(self.config, SoftEncoderConfig):
            return self._near(which, *near)
        rate = self.config.noise_rate
        if self.config.noise_until is not None:
            rate *= max(0.0, 1 - progress / self.config.noise_until)
        rates = random.random(self.batch_size)[part] if self.config.noise_by_image else np.ones(len(tokens))
        return np.where(by_place < rate * rates[:, None], self._other(tokens, which), tokens)

    def _near(self, which: np.ndarray, ids: np.ndarray, distances: np.ndarray) -> np.ndarray:
        """A near code of each position, by numbers (B, T) in [0, 1)."""
        sums = targets_of(distances.astype(np.float64), self.config.temperature).cumsum(-1)
        place = (which[..., None] >= sums).sum(-1).clip(max=ids.shape[-1] - 1)
        return np.take_along_axis(ids, place[..., None], -1)[..., 0]

    def _other(self, tokens: np.ndarray, which: np.ndarray) -> np.ndarray:
        """A token in the place of each one, by numbers (B, T) in [0, 1)."""
        if self.partition is None:
            return (which * self.num_tokens).astype(np.int64)
        cluster = self.partition.cluster_of[tokens]
        place = (which * self.partition.sizes[cluster]).astype(np.int64)
        return self.partition.members[self.partition.offsets[cluster] + place]
