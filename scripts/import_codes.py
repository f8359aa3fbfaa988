"""Convert the codes of LlamaGen's own scripts to packed codes (`make import-codes`)."""

from dataclasses import dataclass, field
from pathlib import Path

from stage import run_stage

from masc.layout import Layout
from vq.codes.import_codes import import_codes
from vq.data import DataConfig
from vq.interface import TokenizerConfig


@dataclass(kw_only=True)
class ImportStage:
    tokenizer: TokenizerConfig
    data: DataConfig
    # The folders given to LlamaGen's --code-path; for ten-crop one for each of data.crop_ranges, in their order.
    folders: list[str] = field(default_factory=list)
    split: str = "train"
    num_images: int | None = None  # None: ILSVRC's number for ImageNet, otherwise the number of files
    artifacts: str = "artifacts"

    def __post_init__(self) -> None:
        if self.split not in ("train", "val") or (self.num_images is not None and self.num_images < 1):
            raise ValueError(
                f"split must be train or val and num_images positive, found {self.split!r}, {self.num_images}"
            )


def main(stage: ImportStage) -> None:
    """Write artifacts/<tokenizer>/codes/<data>/<split> from the .npy files of LlamaGen's layout."""
    layout = Layout(Path(stage.artifacts), stage.tokenizer.name)
    folders, path = [Path(folder) for folder in stage.folders], layout.codes(stage.data.name, stage.split)
    codebook = layout.load_codebook()
    stage.tokenizer.check_described(codebook.meta.config, layout.codebook)
    count = import_codes(folders, stage.data, stage.split, codebook, path, stage.num_images, stage.tokenizer)
    print(f"{path}: {count} images")


if __name__ == "__main__":
    run_stage("import_codes", ImportStage, main)
