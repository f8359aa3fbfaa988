"""Text to image by one command: runs on captions, features once, what is shown, and all stages to the page."""

import json
from pathlib import Path

import jobs
import pipeline
import pytest
import reproduce_text as stage
from reproduce_text import ReproduceTextConfig, check_captions, reproduce_text
from script_runner import run_script
from stage import load_config
from user_errors import tells

from masc.runtime.errors import InputError
from metrics.results import Results
from vq.readers import twemoji


def test_the_command_composes_runs_of_a_text_model_that_fits_its_encoder():
    config = load_config("reproduce_text", ReproduceTextConfig, ["seeds=[0,1]"])
    encoder = stage.open_encoder(config.encoder, Path("weights"))
    runs = [stage.plan(config, head, 1, "captions=somewhere").config for head in config.heads]
    for run in runs:
        assert run.model.condition == "text" and run.captions == "somewhere" and run.seed == 1
        assert (run.model.caption_tokens, run.model.caption_dim) == (encoder.max_tokens, encoder.dim)
        assert (run.steps, run.optim.learning_rate, run.optim.table_scale) == (600, 1e-3, 4.0)
    assert [str(run.directory) for run in runs] == [
        "runs/llamagen-tiny-text/flat/seed1",
        "runs/llamagen-tiny-text/masc-two-level/seed1",
    ]
    check_captions(config.captions)


def test_a_caption_without_words_or_a_job_without_runs_is_refused():
    with tells(r"expected a caption with words, found '@apple' as number 2 of captions=\[...\]"):
        check_captions(["red apple", "@apple"])
    config = load_config("reproduce_text", ReproduceTextConfig, ["heads=[]"])
    with pytest.raises(InputError, match="nothing to run"):
        reproduce_text(config)


@pytest.mark.slow
def test_all_stages_run_once_to_a_page_with_captions_under_images(tmp_path, monkeypatch):
    few = twemoji._images()[::12]
    monkeypatch.setattr(twemoji, "_images", lambda: few)

    def in_process(waiting, *_):
        for job in waiting:
            if not job.is_done():
                run_script(Path(job.command[1]).stem, *job.command[2:])
                assert job.is_done(), job.name

    for module in (pipeline, stage):
        monkeypatch.setattr(module, "run_jobs", in_process)
    small = ["model.dim=32", "model.num_layers=1", "model.num_heads=4", "model.multiple_of=16", "steps=6"]
    every = ["evaluate_every=3", "log_every=3", "checkpoint_every=3", "batch_size=8", "tracking.mode=disabled"]
    config = load_config(
        "reproduce_text",
        ReproduceTextConfig,
        [
            "candidates=8",
            "num_held_out=3",
            "captions=['red apple']",
            "train_overrides=[" + ",".join(f"'{override}'" for override in small + every) + "]",
            *[f"{name}={tmp_path / name}" for name in ("artifacts", "runs", "report")],
        ],
    )
    page = reproduce_text(config)
    html, text = page.read_text(), (page.parent / "text.md").read_text()
    for words in ("red apple", "CC-BY 4.0", "Captions of held-out images", "masc-two-level, seed 0", "recall@5"):
        assert words in html
    assert html.count("data:image/png") == 4 * 2 + 3  # two heads, three originals
    assert text.count("recall@") >= 6 and (page.parent / "text.png").stat().st_size < 300_000
    found = Results.load(tmp_path / "runs" / "llamagen-tiny-text" / "flat" / "seed0" / "eval" / "text.json")
    assert found["recall@1 of captions by image"]["protocol"]["candidates"] == 8
    shown = next((tmp_path / "runs").glob("*/flat/seed0/samples/captions-*/captions.json"))
    assert json.loads(shown.read_text())[3] == "red apple"

    before = page.read_bytes()
    monkeypatch.setattr(jobs.subprocess, "Popen", lambda *_, **__: pytest.fail("launched again"))
    for module in (pipeline, stage):
        monkeypatch.setattr(module, "run_jobs", jobs.run_jobs)
    assert reproduce_text(config).read_bytes() == before
