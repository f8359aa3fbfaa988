"""Tokenize the images of a data set into packed codes (`make codes`)."""

from dataclasses import dataclass
from pathlib import Path

from stage import run_stage

from masc.artifacts import InputError
from masc.layout import Layout
from vq.autoencoder import ConvVQConfig
from vq.data import DataConfig
from vq.extract import extract_codes
from vq.images import load_images
from vq.pretrained import load_tokenizer, tokenizer_path


@dataclass(kw_only=True)
class CodesStage:
    tokenizer: ConvVQConfig
    data: DataConfig
    artifacts: str = "artifacts"


def main(stage: CodesStage) -> None:
    """Write artifacts/<tokenizer>/codes/<data>/{train,val}: packed tokens, labels, groups."""
    if stage.data.resolution != stage.tokenizer.resolution:
        raise InputError(
            f"the images of {stage.data.name} have {stage.data.resolution} pixels a side, the tokenizer "
            f"{stage.tokenizer.name} takes {stage.tokenizer.resolution}; try TOKENIZER={stage.data.tokenizer}"
        )
    layout = Layout(Path(stage.artifacts), stage.tokenizer.name)
    codebook = layout.load_codebook()
    model = load_tokenizer(tokenizer_path(stage.tokenizer.name, Path(stage.artifacts)), stage.tokenizer)
    for split in ("train", "val"):
        source = load_images(stage.data.source, split, stage.data.resolution)
        path = layout.codes(stage.data.name, split)
        extract_codes(model, source, stage.data.flip, codebook, path)
        print(f"{path}: {len(source)} images")


if __name__ == "__main__":
    run_stage("codes", CodesStage, main)
