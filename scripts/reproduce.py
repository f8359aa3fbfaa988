"""The main job, images to report (`make reproduce`)."""

from pipeline import PlannedRun, ReproduceConfig, RunsConfig, reproduce
from stage import load_config, run_stage
from words import override

from llamagen.training.config import TrainConfig
from masc.runtime.run import split_label


def has_one_cut(head: str) -> bool:
    """Whether a head of configs/head takes the number of clusters K."""
    config = load_config("train", TrainConfig, [override("head", head)]).head
    return hasattr(config, "num_clusters")


def plan(config: RunsConfig, head: str, seed: int, *more: str) -> PlannedRun:
    """The run of HEAD[-on-TREE][-with-LOSS] at a seed; `more` are further overrides."""
    name, tree, loss = split_label(head)
    k = config.num_clusters
    cut = [override("head.num_clusters", k)] if k is not None and has_one_cut(name) else []
    overrides = [
        override("model", config.model),
        override("data", config.data),
        override("head", name),
        override("tree", tree),
        override("loss", loss),
        override("seed", seed),
        override("tokenizer_name", config.tokenizer.name),
        override("artifacts", config.artifacts),
        override("run_dir", f"{config.runs}/{config.model}/{head}/seed{seed}"),
        *cut,
        *more,
        *config.train_overrides,
    ]
    return PlannedRun(load_config("train", TrainConfig, overrides), overrides)


def main(config: ReproduceConfig) -> None:
    """Run the eight stages from images to the report; finished stages are skipped."""
    planned = [plan(config, head, seed) for seed in config.seeds for head in config.heads]
    print(f"\nThe report: {reproduce(config, planned).resolve()}")


if __name__ == "__main__":
    run_stage("reproduce", ReproduceConfig, main)
