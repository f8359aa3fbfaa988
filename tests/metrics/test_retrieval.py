"""Recall at k: chance for scores that say nothing, 1 for an oracle, ties by their chance."""

import numpy as np
import pytest
from scipy import stats

from metrics.retrieval import hits, recall_row


@pytest.mark.parametrize("k", [1, 5])
def test_scores_that_are_equal_but_for_rounding_rank_at_chance(k):
    rounding = np.random.default_rng(0).uniform(-1e-5, 1e-5, (50, 50))
    assert hits(np.full((50, 50), -230.25) + rounding, k).tolist() == [k / 50] * 50


def test_random_scores_rank_at_chance():
    rng = np.random.default_rng(0)
    found = np.concatenate([hits(rng.standard_normal((50, 50)), 5) for _ in range(40)])
    assert stats.binomtest(int(found.sum()), found.size, 0.1).pvalue > 0.01


def test_an_oracle_ranks_first_and_its_opposite_last():
    oracle = -np.abs(np.arange(50)[:, None] - np.arange(50)).astype(float)
    assert hits(oracle, 1).all() and not hits(-np.eye(50), 49).any()


def test_ties_count_by_the_chance_of_their_places():
    scores = np.array([[1.0, 2, 1, 0], [0, 3, 3, 3], [5, 0, 5, 0], [0, 0, 0, 1]])
    assert hits(scores, 1).tolist() == pytest.approx([0, 1 / 3, 1 / 2, 1])
    assert hits(scores, 2).tolist() == pytest.approx([1 / 2, 2 / 3, 1, 1])


def test_a_row_holds_the_recall_over_all_galleries_with_wilsons_interval():
    found = recall_row(1, "captions by image", [np.eye(4), -np.eye(4)], {"candidates": 4})
    assert (found["metric"], found["value"]) == ("recall@1 of captions by image", 0.5)
    assert found["protocol"] == {"candidates": 4, "num_images": 8}
    low, high = stats.binomtest(4, 8).proportion_ci(method="wilson")
    assert (found["interval"]["low"], found["interval"]["high"]) == (low, high)
