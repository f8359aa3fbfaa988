"""Make the statistics of any image source, in ADM's layout (`make reference DATA=...`)."""

from dataclasses import dataclass, field
from pathlib import Path

from stage import run_stage

from llamagen.evaluation.images import ExtractorConfig
from masc.layout import reference_file
from masc.runtime.device import patient_state
from metrics.reference import make_reference
from metrics.resize import RESIZES
from vq.data import DataConfig
from vq.readers import load_images


@dataclass(kw_only=True)
class ReferenceStage:
    data: DataConfig
    extractor: ExtractorConfig = field(default_factory=ExtractorConfig)
    split: str = "train"
    resize: str = "tf1-bilinear"
    num_kept: int = 10000  # images kept in the file, for precision and recall
    seed: int = 0  # of the choice of these images
    name: str | None = None  # None: <data>-<split>, with the resize if it is not TensorFlow's

    def __post_init__(self) -> None:
        if self.resize not in RESIZES:
            raise ValueError(f"resize must be one of {', '.join(RESIZES)}, not {self.resize!r}")
        if self.num_kept < 2:
            raise ValueError(f"num_kept must be at least 2, for precision and recall, found {self.num_kept}")

    @property
    def reference(self) -> str:
        suffix = "" if self.resize == "tf1-bilinear" else f"-{self.resize}"
        return self.name or f"{self.data.name}-{self.split}{suffix}"


def main(stage: ReferenceStage) -> None:
    """Write artifacts/references/<name>.npz: mu, sigma, mu_s, sigma_s of all images, and some of the images."""
    state = patient_state()
    source = load_images(stage.data.source, stage.split, stage.data.resolution, stage.data.path)
    path = reference_file(Path(stage.extractor.artifacts), stage.reference)
    model = stage.extractor.load(state)
    make_reference(path, source, model, stage.resize, stage.num_kept, stage.seed, stage.extractor.batch_size, state)
    if state.is_main_process:
        print(path)


if __name__ == "__main__":
    run_stage("reference", ReferenceStage, main)
