"""All experiments with published number, cost, and what is missing here (`make experiments`)."""

from dataclasses import dataclass

from experiment_page import columns, markdown, published_text
from experiment_plan import ExperimentConfig, experiment_names, load_experiment, missing_here
from stage import run_stage
from tqdm import tqdm
from words import override

HEADINGS = ["NAME", "what", "FID", "GPU hours", "GB"]


@dataclass(kw_only=True)
class ExperimentsStage:
    data_path: str | None = None  # the folder of the images
    markdown: bool = False  # the table of docs/experiments.md, without this machine
    artifacts: str = "artifacts"
    folder: str = "weights"


def cost_of(config: ExperimentConfig) -> list[str]:
    """GPU hours of the training, and gigabytes of codes and checkpoints at once."""
    if config.needs:
        return ["", ""]
    plan = config.plan()
    disk = (plan.codes or 0) + plan.most_checkpoints * plan.checkpoint
    return [f"{plan.hours(plan.step_flops * plan.config.steps):,.0f}", f"{disk / 1e9:.0f}"]


def main(stage: ExperimentsStage) -> None:
    """Print every experiment: GPU hours of its training on one H100 by `make plan`, disk of codes and checkpoints, and
    what this machine lacks."""
    places = [override(key, getattr(stage, key)) for key in ("data_path", "artifacts", "folder")]
    here = [] if stage.markdown else ["missing here"]
    lines = [[*HEADINGS, *(here or ["needs"])]]
    for name in tqdm(experiment_names(), unit="experiment", leave=False):
        config = load_experiment(name, *places)
        lacks = "; ".join(missing_here(config) if here else config.needs)
        lines.append([name, config.about, published_text(config), *cost_of(config), lacks])
    print("\n".join((markdown if stage.markdown else columns)(lines)))


if __name__ == "__main__":
    run_stage("experiments", ExperimentsStage, main)
