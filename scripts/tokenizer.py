"""Train the small tokenizer of the embedded experiment (`make tokenizer`)."""

from dataclasses import dataclass, field
from pathlib import Path

from stage import run_stage

from masc.layout import Layout
from vq.data import DataConfig
from vq.interface import TokenizerConfig
from vq.readers import load_images
from vq.train import TokenizerTraining, train_tokenizer


@dataclass(kw_only=True)
class TokenizerStage:
    tokenizer: TokenizerConfig
    data: DataConfig
    training: TokenizerTraining = field(default_factory=TokenizerTraining)
    artifacts: str = "artifacts"


def main(stage: TokenizerStage) -> None:
    """Train a tokenizer on the images of DATA and write artifacts/<tokenizer>/tokenizer.safetensors."""
    path = Layout(Path(stage.artifacts), stage.tokenizer.name).weights
    train, held_out = (
        load_images(stage.data.source, split, stage.data.resolution, stage.data.path) for split in ("train", "val")
    )
    results = train_tokenizer(stage.tokenizer, stage.training, train, held_out, path)
    print(
        f"{path}: held-out PSNR {results['psnr_db']:.2f} dB, codebook usage {results['usage']:.1%}, "
        f"perplexity {results['perplexity']:.0f}, {results['seconds']:.0f} s"
    )


if __name__ == "__main__":
    run_stage("tokenizer", TokenizerStage, main)
