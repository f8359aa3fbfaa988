"""Tokenize the images of a data set into packed codes (`make codes`)."""

from dataclasses import dataclass, field
from pathlib import Path

from stage import run_stage

from masc.layout import Layout
from masc.runtime.codes import read_meta
from masc.runtime.device import patient_state
from masc.runtime.errors import InputError, naming
from vq.codes.extract import check_images, extract_codes
from vq.codes.shards import ExtractConfig
from vq.data import DataConfig
from vq.interface import TokenizerConfig
from vq.pretrained import load_decoder
from vq.readers import load_images


@dataclass(kw_only=True)
class CodesStage:
    tokenizer: TokenizerConfig
    data: DataConfig
    extraction: ExtractConfig = field(default_factory=ExtractConfig)
    splits: list[str] = field(default_factory=lambda: ["train", "val"])
    # Near codes of each token to store, for soft targets of the encoder's output: those nearest before quantization.
    near: int = 0
    artifacts: str = "artifacts"


def main(stage: CodesStage) -> None:
    """Write artifacts/<tokenizer>/codes/<data>/{train,val}: packed tokens, labels, groups."""
    if not set(stage.splits) <= {"train", "val"}:
        raise InputError(f"splits can be train and val, found {', '.join(stage.splits)}")
    layout, state = Layout(Path(stage.artifacts), stage.tokenizer.name), patient_state()
    codebook = layout.load_codebook()
    model = load_decoder(codebook, layout, stage.tokenizer).to(state.device)
    sources = {}
    for split in stage.splits:
        with state.main_process_first():  # the others find the index of tars that it made
            sources[split] = load_images(stage.data.source, split, stage.data.resolution, stage.data.path)
        check_images(sources[split], model)
    for split, images in sources.items():
        path = layout.codes(stage.data.name, split)
        with naming(data=stage.data.name, tokenizer=stage.tokenizer.name):
            extract_codes(model, images, stage.data.views(split), codebook, path, stage.extraction, stage.near)
        if state.is_main_process:
            meta = read_meta(path)
            failed = f", {meta.num_failures} not readable: {path}/failures.txt" if meta.num_failures else ""
            near = f", {meta.near.count} near codes of each" if meta.near else ""
            print(f"{path}: {meta.shape[0]} images, {meta.shape[1]} view(s) of {meta.shape[2]} tokens{near}{failed}")


if __name__ == "__main__":
    run_stage("codes", CodesStage, main)
