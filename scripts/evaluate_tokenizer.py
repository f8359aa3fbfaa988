"""Measure a tokenizer and the semantic replacement of its tokens (`make eval-tokenizer`)."""

from dataclasses import dataclass, field

from stage import run_stage

from llamagen.evaluate import reference_path
from masc.build import TreeConfig
from masc.layout import Layout
from metrics.tokenizer import TokenizerTest, evaluate_tokenizer
from vq.data import DataConfig
from vq.images import load_images
from vq.interface import TokenizerConfig
from vq.pretrained import load_decoder, tokenizer_path


@dataclass(kw_only=True)
class EvaluateTokenizerStage:
    tokenizer: TokenizerConfig
    data: DataConfig
    trees: dict[str, TreeConfig] = field(default_factory=dict)
    num_clusters: list[int] = field(default_factory=lambda: [512])  # every K to cut the trees at
    num_images: int = 1000
    artifacts: str = "artifacts"


def main(stage: EvaluateTokenizerStage) -> None:
    """Write artifacts/<tokenizer>/eval: PSNR, usage, the metrics of reconstructions, the replacement test."""
    layout, name = Layout(stage.artifacts, stage.tokenizer.name), stage.tokenizer.name
    codebook = layout.load_codebook()
    cuts = {
        tree_name: {k: layout.load_partition(tree, k, codebook)[0] for k in stage.num_clusters}
        for tree_name, tree in stage.trees.items()
    }
    images = [
        load_images(stage.data.source, split, stage.data.resolution, stage.data.path) for split in ("train", "val")
    ]
    test = TokenizerTest(name, tokenizer_path(stage.tokenizer, layout.root), *images, cuts, stage.num_images)
    model = load_decoder(codebook, layout.root)
    reference = reference_path(stage.artifacts, stage.data.name)
    print(evaluate_tokenizer(model, test, layout.evaluation, stage.data.name, reference))


if __name__ == "__main__":
    run_stage("evaluate_tokenizer", EvaluateTokenizerStage, main)
