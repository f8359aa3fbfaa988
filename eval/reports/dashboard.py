"""The convergence dashboard (`make dashboard`): the curves and sample grids of all runs as one page to look at.

It is one self-contained HTML file, made from local files without a network. `wandb=true` also writes the same panels
to wandb."""

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from masc.runtime.files import write_text
from reports.charts import chart_data, plotly_script
from reports.comparison import entries
from reports.curves import CurvesConfig, all_lines, draw
from reports.page import embed, render_page
from reports.subjects import Subject, find_subjects, is_image
from reports.workspace import save_workspaces

logger = logging.getLogger(__name__)
STEPS = 12  # maximum of the sample grids of a run on the page, evenly spread
GRID_PIXELS = 512  # maximum of the longer side of a sample grid on the page


@dataclass(kw_only=True)
class DashboardConfig(CurvesConfig):
    """Inputs and choices of the dashboard."""

    wandb: bool = False  # also write the panels to wandb; needs its key and the network


def write_dashboard(config: DashboardConfig) -> Path:
    """Write dashboard.html to the output folder, and the panels to wandb if asked; return the page's path.

    Raises InputError if there are no runs, and if wandb is asked for and cannot be reached."""
    subjects, skipped = find_subjects(Path(config.runs), [])
    runs = [subject for subject in subjects if subject.run is not None]
    charts = draw(all_lines(subjects, entries(subjects), config.metrics), config.targets, config.baseline)
    grids = grids_by_step(runs, skipped)
    for each in skipped:
        logger.warning("skipped %s: %s", each["place"], each["reason"])
    page = render_page(
        "dashboard.html.j2",
        place=config.runs,
        num_runs=len(runs),
        baseline=config.baseline,
        skipped=skipped,
        data=chart_data(charts),
        plotly=plotly_script(),
        times=True,
        grids=grids,
    )
    path = Path(config.output) / "dashboard.html"
    write_text(path, page)
    if config.wandb:
        for address in save_workspaces(runs, [chart["metric"] for chart in charts]):
            logger.info("the panels on wandb: %s", address)
    return path


def grids_by_step(runs: list[Subject], skipped: list[dict[str, str]]) -> list[dict[str, Any]]:
    """The sample grids of each run that has any, at STEPS steps at most; a broken image is added to `skipped`."""
    found = []
    for subject in runs:
        steps = {step: path for step, path in subject.step_grids.items() if is_image(path, skipped)}
        chosen = sorted(steps)[:: -max(1, math.ceil(len(steps) / STEPS))][::-1]  # with the last
        sets = [{"text": name, "image": embed(path, GRID_PIXELS)} for name, path in subject.grids.items()]
        grids = [{"step": step, "image": embed(steps[step], GRID_PIXELS)} for step in chosen]
        if grids or sets:
            about = {"name": subject.name, "seed": subject.seed, "place": str(subject.place)}
            found.append({**about, "grids": grids, "sets": sets})
    return found
