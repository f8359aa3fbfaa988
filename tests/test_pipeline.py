"""The main job end to end on a tiny model and few emojis: all eight stages, each done once."""

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jobs
import numpy as np
import pipeline
import pytest
from checkpoint_tools import reseal
from inception_weights import StandIn
from jobs import Job, run_jobs
from pipeline import ReproduceConfig, reproduce
from reproduce import plan
from script_runner import run_script
from stage import load_config
from user_errors import tells

from llamagen.evaluation.fid import evaluate_fid
from llamagen.evaluation.images import EvalFidConfig, ExtractorConfig
from llamagen.evaluation.lite import EvalLiteConfig, evaluate_lite, unmeasured
from llamagen.sampling.draw import is_sampled, sample
from llamagen.sampling.plan import SampleConfig
from llamagen.training.checkpoint import weights_file
from masc.runtime.errors import InputError
from metrics.protocol import ProtocolConfig
from metrics.results import Results
from vq.readers import twemoji


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def config(workplace):
    small = ["model.dim=32", "model.num_layers=1", "model.num_heads=4", "model.multiple_of=16", "steps=6"]
    every = ["evaluate_every=3", "log_every=3", "checkpoint_every=3", "batch_size=8", "tracking.mode=disabled"]
    return load_config(
        "reproduce",
        ReproduceConfig,
        [
            "heads=[flat,masc-on-kmeans]",
            "num_samples=24",
            "train_overrides=[" + ",".join(f"'{override}'" for override in small + every) + "]",
            *[f"{name}={workplace / name}" for name in ("artifacts", "runs", "report")],
        ],
    )


@pytest.fixture(scope="module")
def planned(config):
    return [plan(config, head, 0) for head in config.heads]


def take_few_emojis(patch):
    """Every twelfth emoji, in this process, stands for all of them."""
    few = twemoji._images()[::12]
    patch.setattr(twemoji, "_images", lambda: few)


def run_most_in_process(jobs, *arguments):
    """Training runs in processes of its own, as ever; the other scripts run here, where emojis are few."""
    run_jobs([job for job in jobs if Path(job.command[1]).stem == "train"], *arguments)
    for job in jobs:
        if not job.is_done():
            run_script(Path(job.command[1]).stem, *job.command[2:])
            assert job.is_done(), job.name


@pytest.fixture(scope="module")
def page(config, planned):
    with pytest.MonkeyPatch.context() as patch:
        take_few_emojis(patch)
        patch.setattr(pipeline, "run_jobs", run_most_in_process)
        return reproduce(config, planned)


def test_the_report_holds_every_part(page, config):
    html = page.read_text()
    assert "<script" not in html and "http://" not in html.replace("http://www.w3.org/", "")  # self-contained
    assert html.count("data:image/png") >= 8 and html.count("<svg") >= 2
    for words in ("flat", "masc-on-kmeans", "FD-lite0", "CC-BY 4.0", "1 &minus; t/t0", "replacement"):
        assert words in html
    found = json.loads((page.parent / "report.json").read_text())
    assert [row["label"] for row in found["table"]] == config.heads
    assert found["table"][0]["samples"]["guidance-2"]["FD-lite0"]["mean"] > 0
    assert len(found["tokenizer"]["replacement"]) == 9
    for rows in (found["tokenizer"]["reconstruction"], found["tokenizer"]["reconstructions"]):
        assert all(row["protocol"] for row in rows)
    assert "| masc-on-kmeans |" in (page.parent / "report.md").read_text()


def test_geometry_keeps_images_and_random_clusters_do_not(page):
    found = json.loads((page.parent / "report.json").read_text())["tokenizer"]["replacement"]
    psnr = {(case["tree"], case["K"]): case["metrics"][0]["value"] for case in found}
    assert psnr["masc", 512] - psnr["random", 512] > 8
    assert psnr["kmeans", 512] - psnr["random", 512] > 8
    assert psnr["masc", 512] > psnr["masc", 256] > psnr["masc", 128]


def test_finished_stages_are_not_repeated(page, config, planned, monkeypatch):
    before = page.read_bytes()
    take_few_emojis(monkeypatch)

    def refuse(*arguments, **options):
        raise AssertionError(f"launched again: {arguments}")

    monkeypatch.setattr(jobs.subprocess, "Popen", refuse)
    for name in ("masc.build.build_tree", "vq.codes.extract.save_codes", "metrics.tokenizer.load_extractor"):
        monkeypatch.setattr(name, refuse)
    assert reproduce(config, planned).read_bytes() == before


@pytest.mark.slow
def test_the_main_job_on_all_emojis_gives_the_same_numbers_twice(config, tmp_path):
    pages = []
    for turn in ("first", "second"):
        places = {name: str(tmp_path / turn / name) for name in ("artifacts", "runs", "report")}
        own = replace(config, **places)
        pages.append(reproduce(own, [plan(own, head, 0) for head in own.heads]))

    def numbers(path):
        found = json.loads((path.parent / "report.json").read_text())
        for row in found["table"]:
            row.pop("seconds")
            row["time_to_flat"].pop("seconds")
        return found["table"], found["tokenizer"], found["claims"]

    assert numbers(pages[0]) == numbers(pages[1])


def test_samples_of_other_weights_or_settings_are_not_taken_for_done(page, planned):
    directory = planned[0].config.directory
    settings = json.loads((directory / "samples/guidance-2/manifest.json").read_text())["config"]
    config = SampleConfig(run=str(directory), **{k: v for k, v in settings.items() if k != "sampling"})
    assert not is_sampled(config)  # guidance 1, not 2
    assert unmeasured(EvalLiteConfig(run=str(directory), samples=["guidance-2"])) == []
    with tells("make sample RUN="):
        unmeasured(EvalLiteConfig(run=str(directory), samples=["nonesuch"]))
    manifest = directory / "samples/guidance-2/manifest.json"
    manifest.write_text(manifest.read_text().replace('"use_ema": false', '"use_ema": true'))
    assert unmeasured(EvalLiteConfig(run=str(directory), samples=["guidance-2"])) == ["guidance-2"]
    manifest.write_text(manifest.read_text().replace('"use_ema": true', '"use_ema": false'))
    weights = weights_file(directory)
    weights.write_bytes(weights.read_bytes() + b" ")
    reseal(weights.parent)
    assert unmeasured(EvalLiteConfig(run=str(directory), samples=["guidance-2"])) == ["likelihood"]


def test_samples_do_not_depend_on_batch_or_on_how_many_are_drawn(page, planned):
    directory = planned[1].config.directory
    tokens = []
    for name, count, batch in (("a", 20, 7), ("b", 12, 12)):
        samples = sample(SampleConfig(run=str(directory), num_images=count, batch_size=batch, name=name, seed=1))
        where = samples.directory
        tokens.append(samples.tokens)
        assert (where / "grid.png").stat().st_size > 100
        with np.load(where / "images.npz") as archive:
            assert archive["arr_0"].shape == (count, 32, 32, 3) and archive["arr_0"].dtype == np.uint8
    assert np.array_equal(tokens[0][:12], tokens[1])


def test_a_run_is_measured_under_a_protocol_as_its_samples_are_drawn(page, planned, workplace, monkeypatch):
    monkeypatch.setattr(ExtractorConfig, "load", lambda self, state: StandIn())
    run = planned[1].config.directory
    reference = workplace / "reference.npz"
    np.savez(reference, np.random.default_rng(0).integers(0, 256, (30, 32, 32, 3), dtype=np.uint8))
    adm = ProtocolConfig(
        name="adm", evaluator="adm", reference=str(reference), metrics=["FID", "IS", "precision", "recall"]
    )
    extractor = ExtractorConfig(artifacts=str(workplace / "artifacts"))
    settings = {"protocols": {"adm": adm}, "extractor": extractor, "bootstrap": 0, "num_images": 20}
    (file,) = evaluate_fid(EvalFidConfig(run=str(run), samples="fresh", **settings))
    assert file == run / "eval" / "fresh-adm.json" and not (run / "samples" / "fresh" / "images.npz").exists()
    results = Results.load(file)
    about = results["FID"]["protocol"]
    wanted = {"model": "llamagen-tiny", "tree": "kmeans", "K": 512, "step": 6, "images_seen": 48, "drawn_at": 32}
    assert {key: about[key] for key in wanted} == wanted
    assert about["seconds"] > 0 and about["labels"] == "training" and about["file_type"] == "tokens"
    assert results.evidence["tree_tokenizer_sha256"] == about["tokenizer_sha256"]
    assert results.evidence["average_kept"] is False and results.evidence["labels"]["classes"] == 9
    (stored,) = evaluate_fid(EvalFidConfig(run=str(run), samples="guidance-2", **settings))
    assert Results.load(stored)["FID"]["protocol"]["file_type"] == "npz"
    lite = evaluate_lite(EvalLiteConfig(run=str(run), samples=["fresh"])) / "fresh.json"
    assert Results.load(lite)["FD-lite0"]["protocol"]["num_images"] == 20  # decoded from the tokens there too


def test_a_failed_job_shows_the_end_of_its_log_and_stops_the_others(tmp_path, monkeypatch):
    started, popen = {}, subprocess.Popen

    def start(command, **options):
        return started.setdefault(command[0], popen(command, **options))

    monkeypatch.setattr(jobs.subprocess, "Popen", start)
    bad = Job("bad", [sys.executable, "-c", "import sys; sys.exit('it broke')"], tmp_path / "bad.log", lambda: False)
    slow = Job("slow", ["sleep", "600"], tmp_path / "slow.log", lambda: False)
    with pytest.raises(InputError, match=r"bad stopped with exit status 1.*\n.*it broke"):
        run_jobs([bad, slow], 2, "jobs", "job")
    assert started["sleep"].poll() == -signal.SIGTERM


def test_each_worker_sees_one_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "visible_gpus", lambda: ["3", "5"])
    code = "import os, pathlib, sys; pathlib.Path(sys.argv[1]).write_text(os.environ['CUDA_VISIBLE_DEVICES'])"
    files = [tmp_path / f"{number}" for number in range(2)]
    work = [Job(file.name, [sys.executable, "-c", code, str(file)], tmp_path / "log", lambda: False) for file in files]
    assert jobs.default_workers() == 2
    run_jobs(work, 2, "jobs", "job")
    assert sorted(file.read_text() for file in files) == ["3", "5"]


def test_a_job_that_is_done_is_not_started(tmp_path):
    job = Job("done", ["/nonexistent"], tmp_path / "x.log", lambda: True, total=5)
    run_jobs([job], 1, "jobs", "job")
    assert not (tmp_path / "x.log").exists()


@pytest.mark.parametrize(
    "script",
    [
        "train",
        "tree",
        "sample",
        "reproduce",
        "eval_lite",
        "codes",
        "check_codes",
        "import_codes",
        "codebook",
        "export",
        "parameters",
        "weights",
        "text_features",
        "reference",
        "eval_fid",
        "eval_coco",
        "coco_captions",
        "eval_tokenizer",
        "tree_report",
        "tokenizer",
        "doctor",
        "report",
    ],
)
def test_every_script_explains_itself(script, capsys):
    arguments = ["run=x"] if script in ("sample", "eval_lite", "export", "doctor", "eval_fid", "eval_coco") else []
    arguments += ["+protocol@protocols.adm=adm"] * (script == "eval_fid")
    run_script(script, "--help", *arguments)
    assert "KEY=VALUE" in capsys.readouterr().out


def test_a_script_is_a_program(root):
    done = subprocess.run(
        [sys.executable, "scripts/weights.py", "--help"], cwd=root, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and "KEY=VALUE" in done.stdout, done.stderr
