"""The data of the charts on a page: compact, thinned, and with every name as text."""

import json

import numpy as np
import pytest
from html_page import Page
from report_runs import MASC, make_run, measured

from reports.charts import SECTIONS, by_section, chart_data, section_of, thin
from reports.comparison import entries
from reports.curves import all_lines, draw
from reports.page import render_page
from reports.subjects import find_subjects

pytestmark = pytest.mark.usefixtures("elsewhere")


def charts_of(root, **options):
    subjects, _ = find_subjects(root, [])
    return chart_data(draw(all_lines(subjects, entries(subjects), []), {}, "flat"), **options)


@pytest.mark.parametrize("count", [3, 400, 401, 5000])
def test_a_thinned_line_keeps_its_ends_and_its_peaks(count):
    values = np.random.default_rng(count).normal(size=count)
    values[count // 2], values[count // 3] = 50.0, -50.0
    kept = thin(values, 400)
    assert len(kept) <= 400 and (np.diff(kept) > 0).all() and {0, count - 1} <= set(kept.tolist())
    assert {count // 2, count // 3} <= set(kept.tolist())
    assert len(kept) == count or len(kept) > 300


def test_a_stretch_without_numbers_is_thinned_away():
    values = np.full(1000, np.nan)
    values[[5, 900]] = 1.0
    assert thin(values, 10).tolist() == [0, 5, 900, 999]


def test_lines_with_equal_axes_share_them_and_hours_are_drawn(tmp_path):
    make_run(tmp_path, "flat", nats=(7, 6, 5), val_accuracy=(0.1, 0.2, 1 / 3))
    make_run(tmp_path, "masc", nats=(7, float("nan"), 4.5))
    data = charts_of(tmp_path)
    assert data["axes"] == [{"images": [0, 320, 640], "step": [0, 10, 20], "seconds": [0, 1, 2]}]
    (nats,) = [chart for chart in data["charts"] if chart["metric"] == "val/nats_per_token"]
    assert [line["y"] for line in nats["lines"]] == [[7, 6, 5], [7, None, 4.5]]
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    (accuracy,) = [chart for chart in data["charts"] if chart["metric"] == "val accuracy"]
    assert accuracy["lines"][0]["y"][-1] == 0.333333


def test_a_long_line_says_of_how_many_points_it_is(tmp_path):
    make_run(tmp_path, nats=tuple(7 - 0.001 * i for i in range(1000)))
    data = charts_of(tmp_path, points=50)
    (line,) = data["charts"][0]["lines"]
    assert line["of"] == 1000 and data["points"] == 50
    assert len(line["y"]) == len(data["axes"][line["axis"]]["step"]) <= 50


def test_time_to_flats_value_is_computed_from_all_points(tmp_path):
    make_run(tmp_path, "flat", nats=tuple(7 - 0.001 * i for i in range(1000)))
    make_run(tmp_path, "masc", nats=tuple(7 - 0.002 * i for i in range(1000)))
    _, masc = charts_of(tmp_path, points=10)["charts"][0]["times"]
    assert masc["axes"]["step"] == pytest.approx({"t0": 9990.0, "t": 4995.0, "saved": 0.5, "speedup": 2.0})


def test_metrics_stand_under_their_headings():
    metrics = ["speed/images_per_second", "val/nats_per_token", "val/fd_lite0_1k", "FID", "val/level_3_entropy", "odd"]
    assert by_section(metrics) == {
        "Likelihood": ["val/nats_per_token"],
        "Quality of samples": ["val/fd_lite0_1k", "FID"],
        "Decisions of the head": ["val/level_3_entropy"],
        "Speed": ["speed/images_per_second"],
        "Other metrics": ["odd"],
    }
    assert section_of("train/learning_rate") == "Training" and list(SECTIONS)[-1] == "Other metrics"


def test_sampled_metrics_with_several_settings_keep_their_subject(tmp_path):
    directory = make_run(tmp_path, "masc")
    for guidance in (1.0, 2.0):
        for step in (10, 20):
            measured(directory, f"{step}-{guidance}", 30 - step, MASC | {"step": step, "guidance": guidance})
    fid = next(chart for chart in charts_of(tmp_path)["charts"] if chart["metric"] == "FID")
    assert len({line["name"] for line in fid["lines"]}) == 2 and len({line["subject"] for line in fid["lines"]}) == 1


def test_nothing_in_the_data_ends_its_script_element():
    names = ["</script><script>alert(1)</script>", "<!--<script>", "\u2028", "]]>", "&lt;"]
    page = Page(render_page("charts.html.j2", data={"names": names}, plotly="", times=True))
    assert len(page.scripts) == 3 and page.charts == {"names": names} and not page.active


def test_the_code_of_the_charts_writes_text_only(root):
    code = (root / "eval" / "reports" / "charts.js").read_text(encoding="utf-8")
    assert not any(word in code for word in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval("))
    assert "fetch(" not in code and "XMLHttpRequest" not in code and "</script" not in code
