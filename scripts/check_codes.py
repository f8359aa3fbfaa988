"""Verify packed codes and show some of them as images (`make check-codes`)."""

from dataclasses import dataclass, field
from pathlib import Path

from stage import run_stage

from masc.layout import Layout
from masc.runtime.device import build_accelerator
from masc.runtime.errors import naming
from vq.codes.check_codes import check_codes
from vq.data import DataConfig
from vq.interface import TokenizerConfig
from vq.pretrained import load_decoder


@dataclass(kw_only=True)
class CheckStage:
    tokenizer: TokenizerConfig
    data: DataConfig
    splits: list[str] = field(default_factory=lambda: ["train", "val"])
    num_shown: int = 32  # random entries of each split
    seed: int = 0
    artifacts: str = "artifacts"

    def __post_init__(self) -> None:
        if self.num_shown < 1:
            raise ValueError(f"num_shown must be positive, found {self.num_shown}")


def main(stage: CheckStage) -> None:
    """Compare codes with their checksums, and write artifacts/<tokenizer>/codes/<data>/check-{train,val}.png."""
    layout = Layout(Path(stage.artifacts), stage.tokenizer.name)
    codebook = layout.load_codebook()
    model = load_decoder(codebook, layout, stage.tokenizer).to(build_accelerator().device)
    for split in stage.splits:
        path = layout.codes(stage.data.name, split)
        image = path.with_name(f"check-{split}.png")
        with naming(data=stage.data.name, tokenizer=stage.tokenizer.name):
            checked = check_codes(model, codebook, path, image, stage.num_shown, stage.seed)
        print(f"{path}: {checked}: {image}")


if __name__ == "__main__":
    run_stage("check_codes", CheckStage, main)
