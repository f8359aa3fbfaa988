"""The order of reading is a function of (seed, step) alone."""

import numpy as np
import pytest
import torch

from llamagen.training.stream import CodeStream, dropped_conditions, group_labels
from masc.runtime.codes import Codes


@pytest.fixture
def codes():
    # Image i of group g has tokens (g, i, view): 4 groups of 1, 2, 3 and 4 images.
    groups = np.repeat(np.arange(4), np.arange(1, 5))
    tokens = np.stack([[[g, i, view, 0] for view in range(2)] for i, g in enumerate(groups)]).astype(np.uint16)
    return Codes(tokens, groups * 10, groups, [str(i) for i in range(40)], 64, "", "", {})


def test_an_epoch_visits_every_group_once_whatever_the_batch_size(codes):
    for batch_size in (1, 2, 4, 8):
        stream = CodeStream(codes, seed=0, batch_size=batch_size)
        seen = torch.cat([stream.tokens(step)[:, 0] for step in range(8 // batch_size)]).reshape(-1, 4)
        assert (seen.sort(dim=1).values == torch.arange(4)).all()
    stream = CodeStream(codes, seed=0, batch_size=4)
    assert len({tuple(stream.tokens(epoch)[:, 0].tolist()) for epoch in range(12)}) > 4  # of 24 orders


def test_a_step_is_the_same_when_read_in_parts_or_again(codes):
    stream = CodeStream(codes, seed=3, batch_size=6)
    tokens, images = stream.tokens(7), stream.images(7)
    again, parts = CodeStream(codes, seed=3, batch_size=6), [slice(start, start + 2) for start in (0, 2, 4)]
    assert torch.equal(tokens, torch.cat([again.tokens(7, part) for part in parts]))
    assert np.array_equal(images, np.concatenate([again.images(7, part) for part in parts]))
    assert np.array_equal(codes.labels[images], tokens[:, 0] * 10)
    assert not torch.equal(tokens, CodeStream(codes, seed=4, batch_size=6).tokens(7))


def test_variants_and_views_are_drawn_uniformly_within_a_group(codes):
    # 4,000 draws of the group of 4 images x 2 views: chi-square with 7 degrees of freedom, 1e-4 at 29.9.
    stream = CodeStream(codes, seed=0, batch_size=4)
    rows = torch.cat([stream.tokens(step) for step in range(4000)])
    rows = rows[rows[:, 0] == 3]
    counts = np.bincount((rows[:, 1] - 6).numpy() * 2 + rows[:, 2].numpy(), minlength=8)
    assert (np.square(counts - 500) / 500).sum() < 29.9


def test_conditions_are_dropped_at_the_rate_and_by_place_in_the_batch():
    dropped = dropped_conditions(0.1, seed=0, step=5, part=slice(None), batch_size=1000)
    assert abs(dropped.float().mean() - 0.1) < 0.04  # 4 standard deviations: false alarms 6e-5
    assert torch.equal(dropped_conditions(0.1, 0, 5, slice(200, 500), 1000), dropped[200:500])
    assert not dropped_conditions(0.0, 0, 5, slice(None), 1000).any()


def test_labels_of_groups_weigh_each_group_once(codes):
    assert group_labels(codes).tolist() == [0, 10, 20, 30]
