"""Curves over all runs: times to target, their baselines, and the lines that share a figure."""

import json
from pathlib import Path

import numpy as np
import pytest
from report_runs import curves_of, make_run, measured

from masc.runtime.errors import InputError
from reports.comparison import entries
from reports.curves import all_lines, draw
from reports.overview import OverviewConfig, write_overview
from reports.runs import NATS, TimeToTarget, is_better_high, reached_at
from reports.subjects import find_subjects

pytestmark = pytest.mark.usefixtures("elsewhere")


@pytest.mark.parametrize(
    ("better_high", "target", "expected"),
    [(False, 5.5, 15.0), (True, 5.5, 25.0), (True, 9.0, None), (False, 1.0, None)],
)
def test_a_target_is_reached_from_the_worse_side(better_high, target, expected):
    x, y = np.array([0.0, 10, 20, 30]), np.array([3.0, 4, 5, 6]) if better_high else np.array([8.0, 6, 5, 4])
    assert reached_at(x, y, target, better_high) == expected


def test_points_that_are_not_finite_are_passed_over():
    assert reached_at(np.array([0.0, 10, 20]), np.array([8.0, np.nan, 4]), 6.0) == 10.0


def test_directions_follow_the_metrics_name():
    assert [is_better_high(name) for name in ("FID", "sFID", NATS, "train/nats_per_token", "FD-lite0")] == [False] * 5
    assert all(is_better_high(name) for name in ("IS", "precision", "recall", "CLIP score", "IS-lite0"))
    neither = ("speed/images_per_second", "train/learning_rate", "val/entropy", "val/gradient_variance")
    assert all(is_better_high(name) is None for name in neither)


def test_heads_do_not_race_in_metrics_of_one_decision(tmp_path):
    # flat decides about tokens, masc about clusters: to choose right among fewer is no lead.
    names = "val/accuracy", "val/level_0_accuracy", "val/level_1_nats"
    for label, value in (("flat", 0.4), ("masc", 0.6)):
        directory = make_run(tmp_path, label)
        rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
        rows = [row | dict.fromkeys(names, row["step"] / 20 * value) for row in rows]
        (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    curves = curves_of(tmp_path, metrics=list(names))
    assert all(len(curves[name]["points"]) == 2 and not curves[name]["times"] for name in names)
    assert [curves[name]["words"] for name in names] == [
        "accuracy of the first decision",
        "held-out accuracy of decision 0",
        "held-out nats of decision 1",
    ]


def test_two_names_of_one_metric_share_a_chart(tmp_path):
    make_run(tmp_path, **{"val/level_0_entropy": (0, 1, 2), "val/entropy": (0, 1, 2), "val/level_1_entropy": (2, 1, 0)})
    make_run(tmp_path, seed=1, **{"val/level_0_accuracy": (0, 1, 2)})  # without the other name
    assert set(curves_of(tmp_path)) == {NATS, "val/entropy", "val/level_1_entropy", "val/level_0_accuracy"}


def test_a_target_that_was_there_from_the_start_gives_no_ratio():
    assert TimeToTarget(baseline=0.0, reached=0.0).saved is None
    assert TimeToTarget(baseline=None, reached=4.0).speedup is None


def test_time_to_target_in_both_forms_and_directions(tmp_path):
    make_run(tmp_path, "flat", nats=(7, 6, 5, 4), val_accuracy=(0.1, 0.2, 0.3, 0.4))
    make_run(tmp_path, "masc", nats=(7, 4, 3, 2), val_accuracy=(0.1, 0.25, 0.4, 0.5))
    make_run(tmp_path, "masc-on-random", nats=(7, 6, 5, 4.5), val_accuracy=(0.1, 0.1, 0.2, 0.3))
    curves = curves_of(tmp_path)

    def ratios(metric):
        return {
            each["name"].removeprefix("llamagen-b "): tuple(each["axes"][axis]["speedup"] for axis in each["axes"])
            for each in curves[metric]["times"]
        }

    assert ratios(NATS) == {"flat": (1,) * 3, "masc": pytest.approx((3,) * 3), "masc-on-random": (None,) * 3}
    assert ratios("val accuracy")["masc"] == pytest.approx((1.5,) * 3)
    assert ratios("val accuracy")["masc-on-random"] == (None,) * 3
    masc = next(each for each in curves[NATS]["times"] if each["name"].endswith("masc"))
    assert masc["axes"]["seconds"] == {"t0": 10800.0, "t": 3600.0, "saved": pytest.approx(2 / 3), "speedup": 3.0}
    page = write_overview(OverviewConfig(runs=str(tmp_path), output=str(tmp_path / "report"))).read_text()
    assert "<td>320</td><td>3.00</td><td>67%</td>" in page and '<td colspan="3">not reached</td>' in page


def test_a_name_is_never_read_as_mathematics(tmp_path):
    make_run(tmp_path / "one$^$")
    make_run(tmp_path / "two", nats=(7, 6, 4), seed=1, num_clusters=3)
    page = write_overview(OverviewConfig(runs=str(tmp_path), output=str(tmp_path / "report"))).read_text()
    assert page.count("one$^$") > 1


def test_a_stated_target_replaces_the_baselines_final_value(tmp_path):
    make_run(tmp_path, "flat", nats=(7, 6, 5, 4))
    make_run(tmp_path, "masc", nats=(7, 5, 3, 2))
    flat, masc = curves_of(tmp_path, {NATS: 6.0})[NATS]["times"]
    assert (flat["target"], flat["axes"]["images"]["t"]) == (6.0, 320.0)
    assert masc["axes"]["images"]["speedup"] == pytest.approx(2.0)
    never = curves_of(tmp_path, {NATS: 3.0})[NATS]["times"][1]["axes"]["images"]
    assert never == {"t0": None, "t": 640.0, "saved": None, "speedup": None}
    with pytest.raises(InputError, match=r"targets names FID.*it can name: val/nats_per_token"):
        curves_of(tmp_path, {"FID": 3.0})


def test_a_baseline_is_of_the_same_model_and_seed(tmp_path):
    make_run(tmp_path, "flat", seed=0, nats=(7, 6, 5))
    make_run(tmp_path, "flat", seed=0, nats=(7, 6, 4), model="llamagen-l")
    make_run(tmp_path, "masc", seed=1)
    make_run(tmp_path, "masc", seed=0, model="llamagen-l")
    times = curves_of(tmp_path)[NATS]["times"]
    targets = {(Path(each["place"]).relative_to(tmp_path).parts[:2], each["seed"]): each["target"] for each in times}
    assert targets == {
        (("llamagen-b", "flat"), 0): 5.0,
        (("llamagen-l", "flat"), 0): 4.0,
        (("llamagen-l", "masc"), 0): 4.0,
    }


def test_sample_sets_of_several_steps_make_a_curve_of_their_protocol(tmp_path):
    for label, fids in (("flat", (30, 20, 10)), ("masc", (20, 10, 5))):
        directory = make_run(tmp_path, label)
        for step, fid in zip((10, 20, 30), fids, strict=True):
            timed = {"step": step, "images_seen": 320 * step, "seconds": 60.0 * step, "head": label}
            measured(directory, f"step{step}-adm", fid, timed)
            measured(directory, f"step{step}-few", fid + 5, timed | {"num_images": 5000})
    subjects, _ = find_subjects(tmp_path, [])
    drawn = draw(all_lines(subjects, entries(subjects), ["FID"]), {}, "flat")
    assert {each["words"]: each["title"].split(", against")[0] for each in drawn} == {
        "FID": "adm, 50,000 images",
        "FID (5,000)": "adm, 5,000 images",
    }
    for each in drawn:
        assert [len(points["FID"]) for points in each["points"]] == [3, 3]
        assert each["times"][1]["axes"]["step"] == {
            "t0": 30.0,
            "t": 20.0,
            "saved": pytest.approx(1 / 3),
            "speedup": 1.5,
        }


def test_lines_of_one_run_with_other_settings_are_apart_and_have_their_own_baseline(tmp_path):
    for label, fids in (("flat", (30, 10)), ("masc", (20, 5))):
        directory = make_run(tmp_path, label)
        for guidance in (1.0, 2.0):
            for step, fid in zip((10, 20), fids, strict=True):
                timed = {"step": step, "head": label, "guidance": guidance}
                measured(directory, f"step{step}-{guidance}", fid - guidance, timed)
    subjects, _ = find_subjects(tmp_path, [])
    (drawn,) = draw(all_lines(subjects, entries(subjects), ["FID"]), {}, "flat")
    targets = {each["name"]: each["target"] for each in drawn["times"]}
    targets_of = [("guidance 1, drawn at 256 px", 9.0), ("guidance 2, drawn at 256 px", 8.0)]
    assert targets == {
        f"llamagen-b {label}, {text}": target for label in ("flat", "masc") for text, target in targets_of
    }
    assert np.isnan(drawn["points"][0]["images"]).all() and drawn["points"][0]["step"] == [10.0, 20.0]


def test_curves_on_other_held_out_codes_are_other_charts(tmp_path):
    make_run(tmp_path, "flat")
    other = make_run(tmp_path, "masc")
    (other / "provenance.json").write_text(json.dumps({"parents": {"val codes": "d" * 64}}))
    subjects, _ = find_subjects(tmp_path, [])
    drawn = draw(all_lines(subjects, [], []), {}, "flat")
    assert len(drawn) == 2 and sum(len(each["times"]) for each in drawn) == 1
