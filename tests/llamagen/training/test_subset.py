"""Shares of the training images, and images held out of them for tuning."""

import itertools

import numpy as np
import pytest
from run_rows import losses

from llamagen.train import train
from llamagen.training.inputs import load_inputs
from llamagen.training.stream import CodeStream
from llamagen.training.subset import divide_groups
from masc.runtime.errors import InputError


@pytest.mark.parametrize("tuning", [0.0, 0.1, 0.4])
def test_smaller_shares_lie_in_larger_ones_and_tuning_in_none(tuning):
    shares = [divide_groups(200, share, tuning) for share in (0.25, 0.5, 1.0)]
    for smaller, larger in itertools.pairwise(shares):
        assert set(smaller[0]) < set(larger[0]) and np.array_equal(smaller[1], larger[1])
    trained, held = shares[-1]
    assert sorted([*trained, *held]) == list(range(200)) and len(held) == 200 * tuning
    assert [len(each) for each, _ in shares] == [round(share * (200 - len(held))) for share in (0.25, 0.5, 1.0)]


def test_a_share_of_no_group_is_refused():
    for given in ((0.01, 0.0), (1.0, 0.01)):
        with pytest.raises(InputError, match=r"of 10 groups leave .* set larger shares"):
            divide_groups(10, *given)


def test_a_run_reads_its_share_alone_and_tunes_on_images_that_it_never_reads(small_run):
    config = small_run("head=flat", "train_share=0.5", "tuning_share=0.25")
    inputs = load_inputs(config)
    trained, held = divide_groups(40, 0.5, 0.25)
    stream = CodeStream(inputs.train, 0, 15, inputs.groups)
    seen = np.concatenate([stream.images(step) for step in range(4)])
    assert np.array_equal(np.sort(seen), np.repeat(trained, 4)) and np.array_equal(inputs.seen, trained)  # 4 epochs
    assert np.array_equal(inputs.held_out.tokens[:, 0], inputs.train.tokens[held, 0])
    labels, mask = inputs.conditions["val"].batch(np.arange(len(held)))
    assert np.array_equal(labels, inputs.train.labels[held]) and mask is None


def test_tokens_are_counted_on_the_images_of_the_run(small_run):
    inputs = load_inputs(small_run("head=masc-frequency", "train_share=0.5"))
    rows = inputs.seen
    assert len(rows) == 20
    expected = np.bincount(inputs.train.tokens[rows, rows % 2].ravel(), minlength=24)
    assert np.array_equal(inputs.counts, expected)


def test_tuning_judges_by_other_images_than_the_report(small_run, tmp_path):
    rows = [
        losses(train(small_run("head=flat", *more, f"run_dir={tmp_path / name}")))
        for name, more in (("all", []), ("tuning", ["tuning_share=0.25"]))
    ]
    assert rows[0][0]["val/nats_per_token"] == pytest.approx(rows[1][0]["val/nats_per_token"])  # ln N of either
    assert rows[0][-1]["val/nats_per_token"] != pytest.approx(rows[1][-1]["val/nats_per_token"], abs=1e-4)


@pytest.mark.parametrize("bad", ["train_share=0", "train_share=1.5", "tuning_share=1", "tuning_share=-0.1"])
def test_a_share_outside_its_range_is_refused(small_run, bad):
    with pytest.raises(InputError, match="train_share must lie in"):
        small_run("head=flat", bad)
