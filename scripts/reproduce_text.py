"""Text to image on the embedded data: captions, features, training, samples, likelihood and retrieval, a page
(`make reproduce-text`, docs/text.md)."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import start  # noqa: F401  # isort: skip
import numpy as np
from jobs import Job, default_workers, run_jobs
from pipeline import PlannedRun, RunsConfig, make_inputs, make_tree, sample_job, script, train_job
from reproduce import plan
from stage import run_stage
from text_features import open_encoder
from words import override

from llamagen.conditions.captions import Captions, clean_caption, read_captions
from llamagen.conditions.encoders import TextEncoder
from llamagen.conditions.features import extract_text_features
from llamagen.evaluation.text import EvalTextConfig, is_evaluated
from masc.layout import Layout, text_features_folder
from masc.runtime.captions import load_captions
from masc.runtime.errors import InputError
from reports.runs import RunRecord
from reports.text import Shown, write_text_page
from vq.readers import load_images


@dataclass(kw_only=True)
class ReproduceTextConfig(RunsConfig):
    """The config of `make reproduce-text`."""

    encoder: str = "wordllama"  # as `make text-features` takes it
    weights: str = "weights"
    captions: list[str] = field(default_factory=list)  # shown beside those of held-out images
    num_held_out: int = 10  # images whose captions are shown
    guidance: float = 2.0
    candidates: int = 50  # of a gallery of the retrieval


def check_captions(captions: list[str]) -> None:
    """Raise InputError for a caption of which the cleaning leaves nothing: its samples would show no text."""
    for number, text in enumerate(captions, 1):
        if not clean_caption(text):
            raise InputError(
                f"expected a caption with words, found {text!r} as number {number} of captions=[...], of which "
                "LlamaGen's cleaning leaves nothing; write another, or leave it out"
            )


def make_features(config: ReproduceTextConfig, layout: Layout, encoder: TextEncoder) -> Path:
    """Encode the captions of both splits, unless that is done; return the folder of both."""
    folder = text_features_folder(Path(config.artifacts), Path(f"{config.data}-{encoder.name}"))
    for split in ("train", "val"):
        captions = read_captions(layout.codes(config.data, split) / "captions.json")
        extract_text_features(captions, encoder, folder / split)
    return folder


def evaluate_job(directory: Path, candidates: int) -> Job:
    """The measuring of a run's likelihood and retrieval as a job."""
    settings = EvalTextConfig(run=str(directory), candidates=candidates)
    command = script("eval_text", override("run", str(directory)), override("candidates", candidates))
    return Job(f"measuring {directory}", command, directory / "eval_text.log", lambda: is_evaluated(settings))


def reproduce_text(config: ReproduceTextConfig) -> Path:
    """Run all stages that are not done; return the path of the page."""
    check_captions(config.captions)
    if not config.heads or not config.seeds:
        raise InputError("nothing to run: name at least one head and one seed, as in SEEDS=0")
    encoder, layout = (
        open_encoder(config.encoder, Path(config.weights)),
        Layout(Path(config.artifacts), config.tokenizer.name),
    )
    make_inputs(config.tokenizer.name, config.data, config.artifacts, Path(config.report) / "inputs.log")
    features = make_features(config, layout, encoder)
    planned = [
        plan(config, head, seed, override("captions", str(features))) for seed in config.seeds for head in config.heads
    ]
    for run in planned:
        make_tree(run.config)
    workers = config.num_workers or default_workers()
    run_jobs([train_job(run.config, run.overrides) for run in planned], workers, "[1/3] train", "step")

    shown = choose_shown(config, layout, planned[0])
    key = hashlib.sha256(json.dumps(shown.captions).encode()).hexdigest()[:8]
    extract_text_features(Captions(shown.captions), encoder, features / f"shown-{key}")
    places, sample_set = [run.config.directory for run in planned], f"captions-{key}"
    count, source = len(shown.captions), features / f"shown-{key}"
    jobs = [sample_job(place, sample_set, config.guidance, count, source) for place in places]
    run_jobs(jobs, workers, "[2/3] sample", "image")
    run_jobs([evaluate_job(place, config.candidates) for place in places], workers, "[3/3] measure", "run")
    return write_text_page([RunRecord.load(place) for place in places], sample_set, shown, Path(config.report))


def choose_shown(config: ReproduceTextConfig, layout: Layout, run: PlannedRun) -> Shown:
    """Captions of held-out images, evenly spaced over their order, with these images; then those of the config."""
    data = run.config.data
    source = load_images(data.source, "val", data.resolution, data.path)
    texts = load_captions(layout.codes(data.name, "val"))
    rows = np.linspace(0, len(texts) - 1, min(config.num_held_out, len(texts))).astype(int)
    captions = [texts[row][0] for row in rows] + config.captions
    return Shown(captions, [source.pixels[row] for row in rows], source.attribution)


def main(config: ReproduceTextConfig) -> None:
    """Run all stages from captions to the page; finished stages are skipped."""
    print(f"\nThe page: {reproduce_text(config).resolve()}")


if __name__ == "__main__":
    run_stage("reproduce_text", ReproduceTextConfig, main)
