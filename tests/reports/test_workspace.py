"""The panels of the dashboard on wandb are composed without a network, and a refusal is one message."""

import json

import pytest
import yaml
from report_runs import make_run

from masc.runtime.errors import InputError
from reports.subjects import find_subjects
from reports.workspace import compose, save_workspaces

pytestmark = pytest.mark.usefixtures("elsewhere")
METRICS = ["val/nats_per_token", "train/nats_per_token", "val/fd_lite0_1k", "val/entropy", "speed/images_per_second"]


def test_every_metric_has_a_panel_under_its_heading():
    pytest.importorskip("wandb_workspaces")
    view = compose("group", "masc", METRICS)
    sections = {section.name: section.panels for section in view.sections}
    assert list(sections) == [
        *("Likelihood", "Quality of samples", "Decisions of the head", "Speed", "Sample grids"),
    ]
    assert [(panel.x, panel.y) for panel in sections["Likelihood"][:3]] == [
        (axis, [METRICS[0]]) for axis in ("images", "Step", "seconds")
    ]
    assert [panel.y for panel in sections["Speed"]] == [["speed/images_per_second"]]
    sent = view._to_model().model_dump_json()  # what `save` would send
    assert all(metric in sent for metric in METRICS) and json.loads(sent)["project"] == "masc"


def runs_of(root, project):
    directory = make_run(root)
    config = yaml.safe_load((directory / "config.yaml").read_text())
    (directory / "config.yaml").write_text(yaml.safe_dump(config | {"tracking": {"project": project}}))
    return find_subjects(root, [])[0]


def test_wandb_out_of_reach_is_one_message(tmp_path, monkeypatch):
    pytest.importorskip("wandb_workspaces")
    import wandb

    def unreachable(**options):
        raise ConnectionError("no route")

    monkeypatch.setattr(wandb, "Api", unreachable)
    with pytest.raises(InputError, match=r"wandb does not take the panels of masc \(ConnectionError: no route\)"):
        save_workspaces(runs_of(tmp_path, "masc"), METRICS)


def test_runs_that_name_no_project_are_refused(tmp_path):
    pytest.importorskip("wandb_workspaces")
    make_run(tmp_path)
    with pytest.raises(InputError, match=r"names tracking\.project, found none"):
        save_workspaces(find_subjects(tmp_path, [])[0], METRICS)
