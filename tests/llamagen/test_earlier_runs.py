"""A run of an earlier version, with its codebook, codes and tree: it is sampled from, and resumed."""

import shutil
from pathlib import Path

import pytest
from run_rows import losses
from stage import load_config
from written_files import names

from llamagen.runs import Run
from llamagen.train import train
from llamagen.training.config import TrainConfig
from masc.runtime.run import read_metrics


@pytest.fixture
def earlier(root, tmp_path, monkeypatch):
    """The working directory is a copy of tests/data/earlier: a masc run of 12 steps that died after step 8."""
    shutil.copytree(root / "tests" / "data" / "earlier", tmp_path / "earlier")
    monkeypatch.chdir(tmp_path / "earlier")


@pytest.mark.usefixtures("earlier")
def test_a_run_of_an_earlier_version_continues_as_it_would_have():
    given = ["model=llamagen-tiny", "data=twemoji", "head=masc", "model.dim=8", "model.num_layers=1"]
    given += ["model.num_heads=2", "model.multiple_of=8", "model.token_dropout=0", "model.residual_dropout=0"]
    given += ["model.ffn_dropout=0", "steps=12", "batch_size=8", "evaluate_every=6", "log_every=2"]
    given += ["checkpoint_every=4", "ema_decay=0.9", "tracking.mode=disabled", "diagnostics=false"]
    config = load_config("train", TrainConfig, [*given, "run_dir=run"])
    assert Run(config.directory).progress.step == 8
    train(config)
    expected, found = read_metrics(Path("unbroken.jsonl")), losses(config.directory)
    assert [row["step"] for row in found] == [0, 2, 4, 6, 8, 10, 12]
    for there, here in zip(expected, found, strict=True):
        for key in here.keys() & there.keys():
            assert here[key] == pytest.approx(there[key], abs=1e-5), key
    assert {"train/nats_per_token", "val/nats_per_token"} <= found[-1].keys()
    assert names(config.directory / "checkpoints")[-1] == "step-00000012"


@pytest.mark.usefixtures("earlier")
def test_a_run_of_an_earlier_version_is_sampled_from():
    run = Run(Path("run"))
    assert run.load_model().backbone.config.dim == 8
    assert run.config.head.members == "uniform"
