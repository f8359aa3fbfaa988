"""The convergence dashboard: one self-contained page, with the grids of each step, that needs no network."""

import sys

import pytest
import yaml
from html_page import Page
from PIL import Image
from report_runs import HOSTILE, make_run
from stage import load_config

from masc.runtime.errors import InputError
from reports.dashboard import STEPS, DashboardConfig, write_dashboard
from reports.runs import NATS

pytestmark = pytest.mark.usefixtures("elsewhere")


def page_of(tmp_path, **options):
    options = {"runs": str(tmp_path / "runs"), "output": str(tmp_path / "report")} | options
    return write_dashboard(DashboardConfig(**options)).read_text()


def draw_grids(directory, *steps):
    (directory / "samples").mkdir(exist_ok=True)
    for step in steps:
        Image.new("RGB", (8, 8), (step % 256, 0, 0)).save(directory / "samples" / f"step-{step:08d}.png")


def test_the_dashboard_needs_no_other_file_and_no_network(tmp_path):
    draw_grids(make_run(tmp_path / "runs"), 10, 20)
    make_run(tmp_path / "runs", "masc", seed=1, train_loss=(3, 2, 1))
    text = page_of(tmp_path)
    page = Page(text)
    assert not page.active and "default-src 'none'" in text and "plotly.js v" in text
    assert [kind for kind, _ in page.scripts] == ["application/json", "", "", ""]
    assert [path.name for path in (tmp_path / "report").iterdir()] == ["dashboard.html"]
    (nats,) = [chart for chart in page.charts["charts"] if chart["metric"] == NATS]
    assert [(line["subject"], line["seed"]) for line in nats["lines"]] == [
        ("llamagen-b flat", 0),
        ("llamagen-b masc", 1),
    ]


def test_grids_of_many_steps_are_thinned_and_the_last_stays(tmp_path):
    steps = range(10, 10 * 3 * STEPS, 10)
    draw_grids(make_run(tmp_path / "runs"), *steps)
    text = page_of(tmp_path)
    assert text.count('class="by-step"') <= STEPS and f'data-step="{steps[-1]}"' in text


def test_a_broken_grid_is_named_and_the_rest_is_shown(tmp_path):
    directory = make_run(tmp_path / "runs")
    draw_grids(directory, 10)
    (directory / "samples" / "step-00000020.png").write_bytes(b"\x89PNG")
    (directory / "samples" / "step-x.png").write_bytes(b"")
    text = page_of(tmp_path)
    assert text.count('class="by-step"') == 1 and "step-00000020.png" in text and "step-x" not in text


@pytest.mark.parametrize("name", ["script", "image", "template", "terminal"])
def test_what_files_name_is_text_on_the_dashboard(tmp_path, monkeypatch, name):
    monkeypatch.setenv("SECRET", "hunter2")
    hostile = HOSTILE[name]
    make_run(tmp_path / "runs", "masc")
    plain_page = Page(page_of(tmp_path))
    directory = make_run(tmp_path / "runs", model="m")
    draw_grids(directory, 10)
    config = yaml.safe_load((directory / "config.yaml").read_text())
    named = {"name": hostile}
    (directory / "config.yaml").write_text(yaml.safe_dump(config | {"model": named, "data": named, "head": named}))
    text = page_of(tmp_path)
    page = Page(text)
    assert "hunter2" not in text and not page.active
    assert len(page.scripts) == len(plain_page.scripts) + 1  # that of the grids
    assert [line["name"] for line in page.charts["charts"][-1]["lines"]] == [f"{hostile} {hostile}"]


def test_no_run_is_an_error_that_says_where_it_looked(tmp_path):
    with pytest.raises(InputError, match="no run and no results in"):
        page_of(tmp_path)


def test_the_stage_reads_its_config(tmp_path):
    words = [f"runs={tmp_path}", "metrics=[val/nats_per_token]", "+targets={val/nats_per_token: 5.5}"]
    config = load_config("dashboard", DashboardConfig, words)
    assert config == DashboardConfig(runs=str(tmp_path), metrics=[NATS], targets={NATS: 5.5})


def test_wandb_without_its_package_is_one_message_and_the_page_is_there(tmp_path, monkeypatch):
    make_run(tmp_path / "runs")
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    with pytest.raises(InputError, match=r"needs the package wandb-workspaces.*pip install"):
        page_of(tmp_path, wandb=True)
    assert (tmp_path / "report" / "dashboard.html").exists()
