"""Tokenize the images of a data set into packed codes (`make codes`)."""

from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator
from stage import run_stage

from masc.layout import Layout
from vq.autoencoder import ConvVQConfig
from vq.data import DataConfig
from vq.extract import extract_codes
from vq.images import load_images
from vq.pretrained import load_decoder


@dataclass(kw_only=True)
class CodesStage:
    tokenizer: ConvVQConfig
    data: DataConfig
    artifacts: str = "artifacts"


def main(stage: CodesStage) -> None:
    """Write artifacts/<tokenizer>/codes/<data>/{train,val}: packed tokens, labels, groups."""
    layout = Layout(Path(stage.artifacts), stage.tokenizer.name)
    codebook = layout.load_codebook()
    model = load_decoder(codebook, stage.tokenizer.name, layout.root).to(Accelerator().device)
    for split in ("train", "val"):
        source = load_images(stage.data.source, split, stage.data.resolution)
        path = layout.codes(stage.data.name, split)
        extract_codes(model, source, stage.data.flip, codebook, path)
        print(f"{path}: {len(source)} images")


if __name__ == "__main__":
    run_stage("codes", CodesStage, main)
