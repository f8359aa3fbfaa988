"""The panels of the dashboard on wandb, as a saved view of each project that the runs log to (`wandb-workspaces`)."""

from typing import Any

from masc.runtime.errors import InputError
from masc.runtime.reading import reason
from reports.charts import LOGARITHMIC, by_section
from reports.curves import metric_words
from reports.runs import AXES
from reports.subjects import Subject

VIEW = "Convergence"
SAMPLES = "samples"  # name of the sample grids that a training logs


def save_workspaces(runs: list[Subject], metrics: list[str]) -> list[str]:
    """Write a view with the panels of `metrics` to every project of the runs on wandb; return the addresses.

    Raises InputError if the package is missing, no run names a project, or wandb refuses or cannot be reached."""
    try:
        import wandb
        import wandb_workspaces.workspaces  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"wandb=true needs the package wandb-workspaces ({error}); install it with "
            "`pip install wandb-workspaces`, or leave wandb=true out: the page is written"
        ) from error
    found = (((subject.run.config.get("tracking") or {}).get("project")) for subject in runs)
    projects = [name for name in dict.fromkeys(found) if isinstance(name, str)]
    if not projects:
        raise InputError("wandb=true expects runs whose config.yaml names tracking.project, found none")
    try:
        entity = wandb.Api(timeout=20).default_entity
        return [compose(entity, project, metrics).save().url for project in projects]
    except Exception as error:  # of a package that talks to a network: any type
        raise InputError(
            f"wandb does not take the panels of {', '.join(projects)} ({type(error).__name__}: {reason(error)}); log "
            "in with `wandb login`, or leave wandb=true out: the page is written"
        ) from error


def compose(entity: str, project: str, metrics: list[str]) -> Any:
    """The view of a project: a section for each heading of the page, a panel for each metric and axis, the grids."""
    import wandb_workspaces.reports.v2 as panels
    import wandb_workspaces.workspaces as workspaces

    def plot(metric: str, axis: str) -> Any:
        title = f"{metric_words(metric)} against {axis}"
        return panels.LinePlot(x=axis, y=[metric], title=title, log_y=bool(LOGARITHMIC.match(metric)))

    sections = [
        workspaces.Section(
            name=name,
            is_open=index == 0,
            # wandb's own axis of steps is `Step`.
            panels=[plot(m, "Step" if a == "step" else a) for m in those for a in (AXES if index == 0 else AXES[:1])],
        )
        for index, (name, those) in enumerate(by_section(metrics).items())
    ]
    grids = workspaces.Section(name="Sample grids", panels=[panels.MediaBrowser(media_keys=[SAMPLES])])
    return workspaces.Workspace(name=VIEW, entity=entity, project=project, sections=[*sections, grids])
