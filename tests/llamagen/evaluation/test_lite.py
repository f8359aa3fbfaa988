"""Results of `make eval-lite` stand for the images and settings that they were measured with."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from llamagen.evaluation.lite import EvalLiteConfig, evaluate_lite, unmeasured
from llamagen.runs import Run
from llamagen.sampling.filters import SamplingConfig
from llamagen.sampling.sets import SampleSet
from llamagen.train import train
from metrics.results import FITTED_NATS, Results, row

CPU = "cpu"


@pytest.fixture
def samples(small_run):
    """A sample set of a trained run, put there by hand."""
    run = Run(train(small_run("head=flat", "steps=2", "evaluate_every=2")))
    directory = run.directory / "samples" / "default"
    directory.mkdir(parents=True)
    np.save(directory / "tokens.npy", np.zeros((6, 9), np.uint16))
    np.save(directory / "labels.npy", np.zeros(6, np.int64))
    np.savez(directory / "images.npz", arr_0=np.zeros((6, 12, 12, 3), np.uint8))
    settings = {
        "num_images": 6,
        "form": "npz",
        "use_ema": False,
        "labels": "balanced",
        "seed": 0,
        "precision": "fp32",
        "resolution": None,
        "release": None,
        "sampling": asdict(SamplingConfig()),
    }
    manifest = {"config": settings, "weights_sha256": run.weights_sha256, "tokenizer_sha256": run.tokenizer_sha256}
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return SampleSet(run, "default")


@pytest.fixture
def config(samples):
    """The config whose results are all there."""
    images = samples.open_images(CPU)
    run, interval = samples.source, {"low": 0.0, "high": 2.0, "level": 0.95, "method": "bootstrap", "replicates": 10}
    about = samples.protocol() | {"images_sha256": images.sha256}
    Results([row("FD-lite0", 1.0, about, interval)]).save(run.directory / "eval" / "default.json")
    about = {"weights_sha256": run.weights_sha256, "codes_sha256": run.inputs.held_out.sha256}
    rows = [row("held-out nats per token", 1.0, about), row(FITTED_NATS, 0.9, about)]
    Results(rows).save(run.directory / "eval" / "likelihood.json")
    return EvalLiteConfig(run=str(run.directory))


def test_results_of_the_present_images_are_kept(config):
    assert unmeasured(config) == []


def test_results_of_images_that_were_replaced_are_measured_again(config, samples):
    np.savez(samples.directory / "images.npz", arr_0=np.ones((6, 12, 12, 3), np.uint8))
    assert unmeasured(config) == ["default"]


def test_results_with_other_intervals_are_measured_again(config):
    config.bootstrap = 20
    assert unmeasured(config) == ["default"]


def test_a_likelihood_of_other_codes_is_measured_again(config, samples):
    file = samples.source.directory / "eval" / "likelihood.json"
    found = Results.load(file).rows
    for each in found:
        each["protocol"]["codes_sha256"] = "0" * 64
    Results(found).save(file)
    assert unmeasured(config) == ["likelihood"]


def test_results_that_are_damaged_are_measured_again(config, samples):
    (samples.source.directory / "eval" / "likelihood.json").write_text("{")
    assert unmeasured(config) == ["likelihood"]


def test_a_likelihood_without_that_at_a_fitted_temperature_is_measured_again(config, samples):
    file = samples.source.directory / "eval" / "likelihood.json"
    Results(Results.load(file).rows[:1]).save(file)
    assert unmeasured(config) == ["likelihood"]


def test_a_tuning_run_says_which_images_judge_it_and_is_measured_once(small_run):
    run = Run(train(small_run("head=flat", "steps=2", "evaluate_every=2", "tuning_share=0.25")))
    settings = EvalLiteConfig(run=str(run.directory), samples=[])
    assert unmeasured(settings) == ["likelihood"]
    found = Results.load(evaluate_lite(settings) / "likelihood.json").rows[0]["protocol"]
    assert found["images"] == "twemoji train, 25% held out for tuning, first view" and found["num_images"] == 10
    assert unmeasured(settings) == []
