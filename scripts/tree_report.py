"""Compare a tree with other clusterings of its codebook on one page (`make tree-report`)."""

from dataclasses import dataclass, field
from pathlib import Path

from messages import command_for, explain
from stage import run_stage

from masc.build import TreeConfig
from masc.layout import Layout
from masc.runtime.device import build_accelerator
from masc.runtime.errors import InputError
from reports.tree.report import TreeReportInputs, load_clusterings, write_tree_report
from vq.data import DataConfig
from vq.interface import TokenizerConfig
from vq.pretrained import load_decoder
from vq.readers.twemoji import ATTRIBUTION


@dataclass(kw_only=True)
class TreeReportStage:
    tokenizer: TokenizerConfig
    data: DataConfig  # its codes show the tokens as image patches, if they are there
    trees: dict[str, TreeConfig] = field(default_factory=dict)
    num_clusters: int | None = None  # None: N // 2
    num_images: int = 1500  # decoded to show the tokens as image patches
    artifacts: str = "artifacts"
    output: str | None = None  # None: artifacts/<tokenizer>/tree-report

    def __post_init__(self) -> None:
        if self.num_images < 1:
            raise ValueError(f"num_images must be positive, found {self.num_images}")


def main(stage: TreeReportStage) -> None:
    """Write artifacts/<tokenizer>/tree-report: one page, and its numbers as JSON."""
    layout = Layout(Path(stage.artifacts), stage.tokenizer.name)
    codebook = layout.load_codebook()
    num_clusters = codebook.num_tokens // 2 if stage.num_clusters is None else stage.num_clusters
    clusterings, missing = load_clusterings(layout, stage.trees, num_clusters, codebook)
    how_to_make = {name: command_for(error) for name, error in missing.items()}
    inputs = TreeReportInputs(
        layout.tokenizer, codebook, num_clusters, clusterings, how_to_make, num_images=stage.num_images
    )
    if layout.codes(stage.data.name, "train").exists():
        inputs.codes = layout.load_codes(stage.data.name, "train", codebook)
        inputs.attribution = ATTRIBUTION if stage.data.source == "twemoji" else ""
        try:
            inputs.tokenizer = load_decoder(codebook, layout, stage.tokenizer).to(build_accelerator().device)
        except InputError as error:
            inputs.no_patches = explain(error)
    else:
        inputs.no_patches = explain(layout.missing_codes(stage.data.name, "train"))
    print(write_tree_report(inputs, Path(stage.output or layout.tree_report)))


if __name__ == "__main__":
    run_stage("tree_report", TreeReportStage, main)
