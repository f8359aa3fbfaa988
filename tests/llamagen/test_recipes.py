"""Every head and every size trains by the smoke recipe and resumes exactly."""

from dataclasses import replace

import pytest
from run_rows import losses
from stage import CONFIGS, load_config

from llamagen.train import train
from llamagen.training.config import TrainConfig

HEADS = sorted(file.stem for file in (CONFIGS / "head").glob("*.yaml"))
PUBLISHED = ["b", "l", "xl", "xxl", "3b"]
TEXT_SIZES = [pytest.param(f"llamagen-{size}", "flat", marks=pytest.mark.slow) for size in ("1b", "xxxl", "7b")]
CASES = [("llamagen-tiny", head) for head in HEADS] + [(f"llamagen-{size}", "flat") for size in PUBLISHED] + TEXT_SIZES


@pytest.mark.parametrize(("model", "head"), CASES)
def test_a_step_is_taken_and_the_run_resumed(artifacts, tmp_path, dies, model, head):
    given = ["steps=2", "batch_size=4", "log_every=1", "checkpoint_every=1", "evaluate_every=2", "diagnostics=false"]
    given += [f"artifacts={artifacts}", "tracking.mode=disabled", "precision=fp32", "model.multiple_of=16"]
    config = load_config("train", TrainConfig, [f"model={model}", f"head={head}", "recipe=smoke", *given])
    broken, unbroken = (replace(config, run_dir=str(tmp_path / name)) for name in ("broken", "unbroken"))
    dies(broken, 1)
    rows = losses(train(broken))
    assert [row["step"] for row in rows] == [0, 1, 2] and rows[2]["train/nats_per_token"] > 0
    assert rows == losses(train(unbroken))
