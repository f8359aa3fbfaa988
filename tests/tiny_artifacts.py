"""A tiny data set of codes with its codebook and trees."""

import numpy as np

from masc.build import TreeConfig, make_tree
from masc.layout import Layout
from masc.runtime.artifacts import Codebook
from masc.runtime.codes import save_codes

NUM_TOKENS, GRID, NUM_IMAGES = 24, 3, 40


def make_artifacts(root, grid=GRID, class_name="class"):
    """codebook.npz, codes and trees below `root`, as the stages write them; tokens that follow the label."""
    rng = np.random.default_rng(0)
    layout = Layout(root, "emoji32")
    vectors = rng.standard_normal((NUM_TOKENS, 4)).astype(np.float32)
    codebook = Codebook.save(layout.codebook, vectors, {}, {"tokenizer": "0" * 64})
    for split, count in (("train", NUM_IMAGES), ("val", 10)):
        labels = np.arange(count) % 9
        tokens = (labels[:, None, None] * 2 + rng.integers(0, 6, (count, 2, grid * grid))) % NUM_TOKENS
        names = [f"{class_name} {index}" for index in range(9)]
        save_codes(
            layout.codes("twemoji", split),
            tokens,
            labels,
            np.arange(count),
            names,
            [],
            NUM_TOKENS,
            codebook.meta.sha256,
            {},
        )
    for name, method in (("masc", "linkage"), ("random", "random"), ("kmeans", "kmeans")):
        tree = TreeConfig(name=name, method=method)
        make_tree(tree, codebook, NUM_TOKENS // 2, layout.tree(tree, NUM_TOKENS // 2))
    return root
