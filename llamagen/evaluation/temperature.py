"""Held-out likelihood at a fitted temperature: how much of a difference is calibration.

A model that was trained by soft targets, or that memorises, may be too sure or not sure enough. One number, which
divides the logits of all learned decisions, mends that. It is fitted on one half of the held-out images and judged on
the other, both ways, so that no image judges a temperature that it chose."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from masc.heads.base import Follow, Head
from masc.heads.losses import log_softmax_at

TEMPERATURES = tuple(round(0.6 + 0.05 * index, 2) for index in range(29))  # 0.6 to 2


class AtTemperatures(Follow):
    """A pick that keeps the log-probability of each given choice at every temperature: (M, len(TEMPERATURES))."""

    def __call__(self, logits: Tensor) -> Tensor:
        return self.take(
            lambda chosen: torch.stack([log_softmax_at(logits.float() / each, chosen) for each in TEMPERATURES], dim=-1)
        )

    def uniform(self, sizes: Tensor) -> Tensor:
        return self.take(lambda _: -sizes.float().log()[:, None].expand(-1, len(TEMPERATURES)))

    def fixed(self, logits: Tensor) -> Tensor:
        return self.take(lambda chosen: log_softmax_at(logits, chosen)[:, None].expand(-1, len(TEMPERATURES)))


@dataclass
class TemperedNats:
    """Watches a likelihood: nats of each image at every temperature."""

    parts: list[tuple[np.ndarray, Tensor]] = field(default_factory=list)  # rows (B,), nats (B, temperatures)

    def __call__(self, head: Head, rows: np.ndarray, hidden: Tensor, tokens: Tensor) -> None:
        kept = head.follow(hidden, tokens, AtTemperatures)  # (B, T, L, temperatures)
        self.parts.append((rows, -kept.double().sum((1, 2)).cpu()))

    def by_image(self) -> np.ndarray:
        """(images, temperatures), in the order of the images."""
        rows = np.concatenate([rows for rows, _ in self.parts])
        return torch.cat([nats for _, nats in self.parts]).numpy()[rows.argsort()]


def fitted(nats: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """Nats of each image (M,) at the temperature that suits the images of the other half best; the two temperatures:
    that of the images in even places, and that of the others. `nats` is (M, temperatures)."""
    halves = [np.arange(len(nats)) % 2 == parity for parity in (0, 1)]
    best = [int(nats[~half].mean(0).argmin()) for half in halves]
    return np.where(halves[0], nats[:, best[0]], nats[:, best[1]]), [TEMPERATURES[place] for place in best]
