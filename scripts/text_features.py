"""Encode captions once with a text encoder (`make text-features`)."""

from dataclasses import dataclass
from pathlib import Path

from stage import run_stage

from llamagen.conditions.captions import read_captions
from llamagen.conditions.encoders import T5Encoder, TextEncoder, WordLlama
from llamagen.conditions.features import TextFeatures, extract_text_features
from masc.layout import text_features_folder
from masc.runtime.errors import InputError
from vq.hub.fetch import weights_path


@dataclass(kw_only=True)
class TextFeaturesStage:
    captions: str = ""
    out: str | None = None
    encoder: str = "flan-t5-xl"
    weights: str = "weights"
    first_only: bool = False
    column: int = 0
    first_sentence: bool = False
    batch_size: int = 32
    dtype: str = "bfloat16"


def open_encoder(name: str, weights: Path) -> TextEncoder:
    """The encoder of a name: a directory, `wordllama`, or one that was downloaded to the folder `weights`."""
    if Path(name).is_dir():
        return T5Encoder(Path(name))
    return WordLlama() if name == WordLlama.name else T5Encoder(weights_path(name, weights))


def main(stage: TextFeaturesStage) -> None:
    """Write artifacts/text/<name of the captions>: features, captions and image names, to be loaded as TextFeatures."""
    if not stage.captions:
        raise InputError("say which captions: make text-features CAPTIONS=captions_val2014.json")
    out = Path(stage.out or text_features_folder(Path("artifacts"), Path(stage.captions)))
    captions = read_captions(Path(stage.captions), stage.first_only, stage.column, stage.first_sentence)
    extract_text_features(
        captions, open_encoder(stage.encoder, Path(stage.weights)), out, stage.batch_size, stage.dtype
    )
    features = TextFeatures.load(out)
    print(f"{out}: {len(features)} captions, {len(features.bits)} tokens of {features.dim} numbers")


if __name__ == "__main__":
    run_stage("text_features", TextFeaturesStage, main)
