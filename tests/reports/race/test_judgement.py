"""The rules of a race: laws first, then worked examples."""

import numpy as np
import pytest
from race_rows import make_curve, make_rows

from masc.runtime.errors import InputError
from reports.race.judgement import compare, judge

FLAT = [4.156, 4.154, 4.150, 4.152, 4.158]
BETTER = [4.086, 4.077, 4.032, 4.075, 4.071]


def verdict(mine, flat=FLAT, value="last"):
    (found,) = compare(make_rows({"flat": flat, "mine": mine}), value).verdicts
    return found


def words(judgement, value="last"):
    """The words of all contenders by a value, cell by cell."""
    return [each.word for table in judgement.tables if table.value == value for each in table.verdicts]


def test_a_contender_equal_to_flat_is_undecided():
    found = verdict(FLAT)
    assert (found.word, found.difference.mean, found.p, found.needed) == ("undecided", 0, 1.0, None)


@pytest.mark.parametrize("value", ["last", "best", "fitted"])
def test_a_difference_that_every_seed_shows_decides(value):
    assert verdict(BETTER, value=value).word == "better" and verdict(FLAT, BETTER, value).word == "worse"
    assert verdict(BETTER, value=value).reason == ""


def test_differences_moved_by_a_constant_move_the_interval():
    here, moved = verdict(BETTER).difference, verdict([value + 0.3 for value in BETTER]).difference
    assert [moved.low, moved.high] == pytest.approx([here.low + 0.3, here.high + 0.3])


def test_the_order_of_rows_decides_nothing():
    rows = make_rows({"flat": FLAT, "mine": BETTER, "other": FLAT[::-1]})
    by_name = {each.contender: each for each in compare(rows, "last").verdicts}
    for each in compare(rows[::-1], "last").verdicts:
        assert each.word == by_name[each.contender].word
        assert each.difference.mean == pytest.approx(by_name[each.contender].difference.mean)


@pytest.mark.parametrize("count", [1, 2])
def test_fewer_than_three_seeds_decide_nothing_and_say_so(count):
    found = verdict(BETTER[:count], FLAT[:count])
    assert (
        found.word == "undecided" and found.reason.startswith(f"{count} paired seed") and "3 are needed" in found.reason
    )


def test_seeds_without_a_pair_are_left_out():
    rows = [row for row in make_rows({"flat": FLAT, "mine": BETTER}) if (row.contender, row.seed) != ("flat", 0)]
    (found,) = compare(rows, "last").verdicts
    assert found.difference.count == 4 and found.own.count == 5
    apart = [row for row in rows if (row.contender == "flat") == (row.seed > 2)]
    (found,) = compare(apart, "last").verdicts
    assert found.difference is None and found.word == "undecided"


def test_below_the_spread_of_retraining_nothing_is_decided():
    wide = [4.0, 4.1, 4.2, 4.3, 4.4]
    close = [value - 0.01 - 0.0001 * seed for seed, value in enumerate(wide)]  # p is tiny: all seeds move alike
    found = verdict(close, wide)
    assert found.p < 1e-4 and found.word == "undecided" and "spread of retraining, 0.158" in found.reason
    assert verdict([value - 0.2 - 0.0001 * seed for seed, value in enumerate(wide)], wide).word == "better"


def test_more_contenders_need_a_smaller_p():
    weak = [flat + shift for flat, shift in zip(FLAT, [-0.02, -0.03, -0.012, -0.045, -0.06], strict=True)]
    assert 0.01 < verdict(weak).p < 0.05 and verdict(weak).word == "better"
    many = {"flat": FLAT, "mine": weak} | {f"other{index}": FLAT[index:] + FLAT[:index] for index in range(1, 5)}
    found = {each.contender: each for each in compare(make_rows(many), "last").verdicts}
    assert found["mine"].p == pytest.approx(5 * verdict(weak).p)
    assert found["mine"].word == "undecided" and "Holm" in found["mine"].reason
    assert found["mine"].needed > verdict(weak).needed


def test_a_race_without_a_difference_calls_one_in_at_most_one_of_twenty():
    """200 races of 4 contenders and 5 seeds without a difference: a rate of 5% gives over 20 with chance 0.1%."""
    rng = np.random.default_rng(0)
    calls = 0
    for _ in range(200):
        values = {name: list(rng.normal(4, 0.02, 5)) for name in ("flat", "a", "b", "c", "d")}
        calls += any(each.word != "undecided" for each in compare(make_rows(values), "last").verdicts)
    assert calls <= 20


def test_each_share_and_length_is_judged_on_its_own():
    rows = make_rows({"flat": FLAT, "mine": BETTER}, share=0.25) + make_rows(
        {"flat": BETTER, "mine": FLAT}, length=2000
    )
    found = judge(rows)
    assert words(found) == ["better", "worse"]
    assert [table.cell.words for table in found.tables if table.value == "last"] == [
        "25% of the training data, 600 steps",
        "100% of the training data, 2,000 steps",
    ]


def test_samples_are_judged_beside_the_likelihood():
    fd = {"flat": [300.0, 310.0, 305.0, 290.0, 300.0], "mine": [299.0, 312.0, 301.0, 295.0, 298.0]}
    found = judge(make_rows({"flat": FLAT, "mine": BETTER}, fd=fd))
    assert words(found, "fd_lite0") == ["undecided"] and words(found) == ["better"]


def test_a_race_without_its_baseline_is_refused():
    with pytest.raises(InputError, match="no run of flat at 100%"):
        judge(make_rows({"mine": BETTER}))


def test_times_to_flats_value_are_paired_by_seed():
    flat = [make_curve("flat", seed, [6, 5, 4.5, 4.0 + seed]) for seed in range(2)]
    fast = [make_curve("fast", seed, [5, 4.0 + seed, 3.5, 3.4], seconds=20.0) for seed in range(2)]
    never = [make_curve("never", seed, [6, 5.5, 5.2, 4.5]) for seed in range(2)]
    rows = make_rows({name: [4.0, 5.0] for name in ("flat", "fast", "never")})
    found = {(time.contender, time.axis): time for time in judge(rows, [*flat, *fast, *never]).times}
    steps, seconds = found["fast", "step"], found["fast", "seconds"]
    assert (steps.reached, steps.of) == (2, 2)
    # Flat reaches 4.0 at step 400 and 5.0 at step 200; fast at 200 and 100.
    assert steps.saved.mean == pytest.approx(0.5) and steps.speedup.mean == pytest.approx(2)
    assert seconds.saved.mean == pytest.approx(0) and seconds.speedup.mean == pytest.approx(1)
    assert (found["never", "step"].reached, found["never", "step"].saved) == (1, None)


def test_replacement_is_compared_with_the_likelihood_by_ranks():
    rows = make_rows({"flat": [4.0] * 3, "a": [4.1] * 3, "b": [4.2] * 3, "c": [4.9] * 3})
    (found,) = judge(rows, replacement={"a": 30.0, "b": 20.0, "c": 10.0}).predictions
    assert (found.trees, found.spearman) == (3, pytest.approx(-1))
    assert judge(rows, replacement={"a": 30.0, "b": 20.0}).predictions == []
