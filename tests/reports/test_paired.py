"""Paired differences over seeds: intervals, Holm's correction, power."""

import numpy as np
import pytest
from scipy import stats

from reports.paired import estimate, holm, paired_differences, power, seeds_needed

VALUES = [-0.07, -0.077, -0.122]


def test_the_interval_is_that_of_students_t():
    found = estimate(VALUES)
    expected = stats.t.interval(0.95, 2, np.mean(VALUES), stats.sem(VALUES))
    assert [found.low, found.high] == pytest.approx(expected)
    assert found.p == pytest.approx(stats.ttest_1samp(VALUES, 0).pvalue)
    assert found.excludes_zero and found.effect == pytest.approx(np.mean(VALUES) / np.std(VALUES, ddof=1))


def test_values_moved_by_a_constant_move_the_interval():
    here, moved = estimate(VALUES), estimate([value + 1 for value in VALUES])
    assert [moved.mean, moved.low, moved.high] == pytest.approx([here.mean + 1, here.low + 1, here.high + 1])
    assert moved.sd == pytest.approx(here.sd)


def test_one_seed_has_no_interval_and_equal_values_have_no_effect():
    one, same = estimate([-1.0]), estimate([0.0, 0.0, 0.0])
    assert (one.low, one.sd, one.p, one.effect, one.excludes_zero) == (None, None, None, None, False)
    assert (same.p, same.effect, same.excludes_zero) == (1.0, None, False)
    assert not estimate([float("nan"), 1.0]).excludes_zero


def test_pairs_have_both_seeds():
    assert paired_differences({0: 3.0, 2: 5.0}, {2: 4.0, 1: 1.0}) == [1.0]


def test_holms_correction_is_its_definition():
    values = np.random.default_rng(0).uniform(size=9) ** 3
    order = np.argsort(values)
    for place, index in enumerate(order):
        steps = [(len(values) - j) * values[order[j]] for j in range(place + 1)]
        assert holm(list(values))[index] == pytest.approx(min(1.0, max(steps)))
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # worked by hand
    assert holm([]) == []


@pytest.mark.parametrize(("effect", "count"), [(0.5, 34), (0.8, 15), (-1.0, 10), (50.0, 3), (0.01, None), (0.0, None)])
def test_the_seeds_needed_are_those_of_tables_of_power(effect, count):
    assert seeds_needed(effect) == count  # 34, 15 and 10: Cohen's d 0.5, 0.8 and 1 in the tables of G*Power


def test_one_seed_fewer_than_needed_has_less_power():
    for effect in np.geomspace(0.09, 3, 40):
        count = seeds_needed(effect)
        below, at = power(effect, count - 1), power(effect, count)
        assert at >= 0.8 and (below < 0.8 or count == 3)


def test_many_contenders_need_more_seeds_and_three_decide_almost_nothing():
    """The table of docs/race.md."""
    at = [[round(100 * power(effect, count, 0.05 / 5)) for count in (3, 5, 8)] for effect in (1, 2, 3)]
    assert at == [[4, 13, 35], [12, 55, 95], [24, 89, 100]]
    assert [seeds_needed(effect, 0.05 / 5) for effect in (1, 2, 3, 8)] == [16, 7, 5, 3]
    assert [seeds_needed(effect) for effect in (1, 2, 3)] == [10, 5, 4]


def test_power_is_the_share_of_samples_that_a_t_test_sees():
    """10,000 samples, so that 0.02 is four standard errors: one false alarm in 15,000."""
    draws = np.random.default_rng(0).normal(1.2, 1.0, (10_000, 6))
    seen = np.mean(stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05)
    assert power(1.2, 6) == pytest.approx(seen, abs=0.02)
