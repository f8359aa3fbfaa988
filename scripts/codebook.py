"""Write the effective codebook of a tokenizer (`make codebook`)."""

from dataclasses import dataclass
from pathlib import Path

from stage import run_stage

from masc.layout import Layout
from vq.codebook import make_codebook
from vq.interface import TokenizerConfig, tokenizer_path


@dataclass(kw_only=True)
class CodebookStage:
    tokenizer: TokenizerConfig
    artifacts: str = "artifacts"


def main(stage: CodebookStage) -> None:
    """Write artifacts/<tokenizer>/codebook.npz: the vectors as the quantizer compares them."""
    path = Layout(Path(stage.artifacts), stage.tokenizer.name).codebook
    weights = tokenizer_path(stage.tokenizer, Path(stage.artifacts))
    codebook = make_codebook(stage.tokenizer, weights, path)
    print(f"{path}: {codebook.num_tokens} vectors of {codebook.vectors.shape[1]} dimensions")


if __name__ == "__main__":
    run_stage("codebook", CodebookStage, main)
