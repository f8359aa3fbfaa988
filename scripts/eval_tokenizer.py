"""Measure a tokenizer and the semantic replacement of its tokens (`make eval-tokenizer`, `make eval-replacement`)."""

from dataclasses import dataclass, field
from pathlib import Path

from stage import run_stage

from llamagen.evaluation.lite import reference_path
from masc.build import TreeConfig
from masc.layout import Layout
from metrics.perceptual import BACKBONES
from metrics.tokenizer import EMBEDDED, TokenizerTest, evaluate_tokenizer
from vq.data import DataConfig
from vq.interface import TokenizerConfig, tokenizer_path
from vq.pretrained import load_decoder
from vq.readers import load_images


@dataclass(kw_only=True)
class EvalTokenizerStage:
    tokenizer: TokenizerConfig
    data: DataConfig
    trees: dict[str, TreeConfig] = field(default_factory=dict)  # of the replacement test; empty: no replacement test
    num_clusters: list[int] = field(default_factory=lambda: [512])  # numbers of clusters to cut the trees at
    num_images: int = 1000  # at most, of each split
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])  # of the replacement test
    reconstruction: bool = True  # false: the replacement test only
    folder: str = "weights"  # of `make weights`; Inception and LPIPS are used if they are there
    lpips: str = "alex"  # its backbone: alex, the usual one, or vgg
    artifacts: str = "artifacts"
    out: str | None = None  # folder of the results; None: artifacts/<tokenizer>/eval, where they replace older results

    def __post_init__(self) -> None:
        if self.num_images < 2:
            raise ValueError(f"num_images must be at least 2, found {self.num_images}")
        if not self.seeds or not self.num_clusters:
            raise ValueError("name at least one seed and one K, as in ARGS=seeds=[0] K=512")
        if self.lpips not in BACKBONES:
            raise ValueError(f"lpips must be one of {', '.join(BACKBONES)}, not {self.lpips!r}")
        if not self.reconstruction and not self.trees:
            raise ValueError("the replacement test needs a tree, as in ARGS=+tree@trees.ward=ward")


def main(stage: EvalTokenizerStage) -> None:
    """Write artifacts/<tokenizer>/eval: tokenizer.json, replacement.json and replacement.png."""
    layout, data = Layout(stage.artifacts, stage.tokenizer.name), stage.data
    codebook = layout.load_codebook()
    cuts = {
        name: {k: layout.load_partition(tree, k, codebook)[0] for k in stage.num_clusters}
        for name, tree in stage.trees.items()
    }
    splits = ("train", "val") if data.source == EMBEDDED else ("val",)
    images = {split: load_images(data.source, split, data.resolution, data.path) for split in splits}
    test = TokenizerTest(
        name=stage.tokenizer.name,
        weights=tokenizer_path(stage.tokenizer, layout.root),
        train=images.get("train"),
        held_out=images["val"],
        partitions=cuts,
        num_images=stage.num_images,
        seeds=tuple(stage.seeds),
        reconstruction=stage.reconstruction,
        folder=Path(stage.folder),
        backbone=stage.lpips,
    )
    model = load_decoder(codebook, layout, stage.tokenizer)
    directory = Path(stage.out) if stage.out else layout.evaluation
    evaluate_tokenizer(model, test, directory, data.name, reference_path(stage.artifacts, data.name))
    print(*sorted(directory.glob("*.json")), *sorted(directory.glob("*.png")), sep="\n")


if __name__ == "__main__":
    run_stage("eval_tokenizer", EvalTokenizerStage, main)
