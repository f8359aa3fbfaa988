"""The search for a contender's values."""

import itertools

import numpy as np
from race_plan import RaceConfig
from stage import load_config
from tuning import best_point, next_points

GRID = {"a": [1, 2, 3], "b": [1, 2], "c": [1, 2]}


def search(grid, value, budget):
    """All points of a search, in the order of trial, with the number of rounds."""
    found, rounds = {}, 0
    while points := next_points(grid, found, budget):
        assert len(set(points)) == len(points) and not set(points) & set(found)
        found |= {point: value(point) for point in points}
        rounds += 1
    return found, rounds


def test_a_grid_that_fits_the_budget_is_tried_whole():
    found, rounds = search(GRID, sum, 12)
    assert set(found) == set(itertools.product(*GRID.values())) and rounds == 1


def test_every_search_uses_its_budget_and_no_more():
    for budget in range(1, 14):
        found, _ = search(GRID, lambda point: -sum(point), budget)
        assert len(found) == min(budget, 12)


def test_contenders_with_other_results_use_as_many_runs():
    config, rng = load_config("race", RaceConfig, ["race=embedded"]), np.random.default_rng(0)
    grids = [config.grid(name) for name in ("flat", "soft-codes")]
    for grid, budget, _ in itertools.product(grids, (5, 9, 20, 1000), range(20)):
        found, _ = search(grid, lambda point: rng.normal(), budget)
        assert len(found) == min(budget, np.prod([len(values) for values in grid.values()]))


def test_one_key_after_another_keeps_its_best_value():
    found, _ = search(GRID, lambda point: abs(point[0] - 3) + abs(point[1] - 2) + point[2], 11)
    assert list(found)[:5] == [(1, 1, 1), (2, 1, 1), (3, 1, 1), (3, 2, 1), (3, 2, 2)]
    assert list(found)[5:7] == [(1, 2, 1), (2, 2, 1)]  # now no neighbour of the best point is left
    assert list(found)[7:] == [(1, 2, 2), (2, 2, 2), (3, 1, 2), (1, 1, 2)]  # two keys differ from the best point, three
    assert best_point(found) == (3, 2, 1)


def test_what_is_left_of_the_budget_is_used_for_a_second_round_of_keys():
    """The best value of `a` is another once `b` is 2."""
    found, _ = search(GRID, lambda point: 9 if point[2] == 2 else {1: point[0], 2: -point[0]}[point[1]], 8)
    assert best_point(found) == (3, 2, 1) and list(found)[5:] == [(2, 2, 1), (3, 2, 1), (3, 2, 2)]


def test_a_search_goes_on_from_its_results_alone():
    value = lambda point: (point[0] - 2) ** 2 - point[1] * point[2]  # noqa: E731
    whole, _ = search(GRID, value, 8)
    for kept in range(len(whole)):
        found = dict(list(whole.items())[:kept])
        while points := next_points(GRID, found, 8):
            found |= {point: value(point) for point in points}
        assert set(found) == set(whole)


def test_equal_results_keep_the_earlier_point():
    found, _ = search(GRID, lambda point: 0, 6)
    assert best_point(found) == (1, 1, 1)


def test_nothing_to_tune_is_one_run():
    assert search({}, lambda point: 1.0, 1) == ({(): 1.0}, 1)
