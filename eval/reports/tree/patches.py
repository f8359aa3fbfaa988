"""Patches: the pixels that a token decodes to, cut from decoded images."""

import numpy as np

from masc.tree import Partition


def token_patches(tokens: np.ndarray, images: np.ndarray, num_tokens: int, margin: int) -> np.ndarray:
    """A decoded patch of each token, taken from the middle one of its uses: (N, side, side, 3) uint8.

    `tokens` (M, T) and their decoded `images` (M, H, W, 3); a patch shows the token's own cell and `margin`
    pixels around it, white beyond the edge. A token that is never used is white."""
    grid = round(tokens.shape[1] ** 0.5)
    cell = images.shape[1] // grid
    side = cell + 2 * margin
    padded = np.pad(images, ((0, 0), (margin, margin), (margin, margin), (0, 0)), constant_values=255)
    patches = np.full((num_tokens, side, side, 3), 255, np.uint8)
    order = np.argsort(tokens, axis=None, kind="stable")
    uses = np.bincount(tokens.ravel(), minlength=num_tokens)
    starts = np.concatenate([[0], np.cumsum(uses)[:-1]])
    for token in np.flatnonzero(uses):
        image, position = divmod(int(order[starts[token] + uses[token] // 2]), tokens.shape[1])
        top, left = (position // grid) * cell, (position % grid) * cell
        patches[token] = padded[image, top : top + side, left : left + side]
    return patches


def cluster_sheet(patches: np.ndarray, partition: Partition, rows: int, columns: int, gap: int = 2) -> np.ndarray:
    """A sheet with one cluster in each row, as patches of its members: clusters of graded sizes, largest first.

    Returns an image (rows (side + gap), columns (side + gap), 3); members beyond `columns` are left out."""
    by_size = np.argsort(-partition.sizes, kind="stable")
    several = by_size[partition.sizes[by_size] > 1]
    chosen = several[np.unique(np.geomspace(1, len(several), rows).astype(int) - 1)] if len(several) else []
    side = patches.shape[1]
    sheet = np.full((max(1, len(chosen)) * (side + gap), columns * (side + gap), 3), 255, np.uint8)
    for row, cluster in enumerate(chosen):
        members = partition.members[partition.offsets[cluster] : partition.offsets[cluster + 1]][:columns]
        for column, token in enumerate(members):
            top, left = row * (side + gap), column * (side + gap)
            sheet[top : top + side, left : left + side] = patches[token]
    return sheet
