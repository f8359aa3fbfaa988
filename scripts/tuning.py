"""The search for the values of a contender in a race, the same for all contenders.

The grid has a few values of a few keys. Of a grid that fits the budget every point is tried. A larger one is searched
by coordinates: from the first value of every key, one key after another takes the best of its values, the others stay;
this is repeated until the budget is used or no neighbour of the best point is left. What is then left of the budget
goes to the points with the fewest keys that differ from the best one, so every search of a grid takes as many points.
A sweeper of a library (such as Hydra's for Optuna) is not used: the points here follow from the results alone, so they
are the same for contenders with the same results, an interrupted race goes on from its run directories, and the points
of all contenders share the cores."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

Grid = Mapping[str, Sequence[Any]]  # config key -> its values; the first one is where the search starts
Point = tuple[Any, ...]  # a value for each key of a grid, in its order


def next_points(grid: Grid, found: Mapping[Point, float], budget: int) -> list[Point]:
    """The points to try next; empty if the search is at its end.

    `found` holds the results so far, lower is better; `budget` is the number of points to try in all."""
    if math.prod(map(len, grid.values())) <= budget:
        return [point for point in itertools.product(*grid.values()) if point not in found]
    best = tuple(values[0] for values in grid.values())
    if best not in found:
        return [best]
    tried = {best}
    while True:
        before = len(tried)
        for place, values in enumerate(grid.values()):
            line = [(*best[:place], value, *best[place + 1 :]) for value in values]
            new = [point for point in line if point not in tried][: budget - len(tried)]
            if missing := [point for point in new if point not in found]:
                return missing
            tried.update(new)
            best = min((point for point in line if point in tried), key=lambda point: (found[point], point != best))
        if len(tried) in (before, budget):
            break
    rest = [point for point in itertools.product(*grid.values()) if point not in tried]
    rest.sort(key=lambda point: sum(mine != its for mine, its in zip(point, best, strict=True)))  # stable: grid's order
    return [point for point in rest[: budget - len(tried)] if point not in found]


def best_point(found: Mapping[Point, float]) -> Point:
    """The point with the lowest result, of equal ones the first that was tried."""
    return min(found, key=found.__getitem__)
