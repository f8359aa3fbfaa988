"""Steps whose gradient is not finite, or too large: they change no weight, and are skipped or end the run."""

import math
from itertools import pairwise

import pytest
import torch
from checkpoint_tools import poison
from run_rows import losses
from safetensors.torch import load_file

from llamagen.train import train
from llamagen.training.checkpoint import last_checkpoint, list_checkpoints, load_progress
from llamagen.training.inputs import load_inputs
from llamagen.training.loop import Loop
from llamagen.training.stream import CodeStream
from masc.runtime.errors import InputError


def is_finite(run_dir):
    folder = last_checkpoint(run_dir)
    return all(value.isfinite().all() for file in folder.glob("*.safetensors") for value in load_file(file).values())


@pytest.mark.parametrize(("step", "kept"), [(5, 4), (7, 4), (8, 4), (12, 8)], ids=["first", "within", "save", "last"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_bad_step_ends_the_run_and_leaves_the_last_checkpoint(small_run, tmp_path, monkeypatch, step, kept, value):
    config = small_run("head=flat", "ema_decay=0.9")
    images = CodeStream(load_inputs(config).train, config.seed, 8).images(step - 1)
    bad = rf"step {step} of .* gradient norm of (nan|inf) \(images {', '.join(map(str, images))} of the codes\)"
    with monkeypatch.context() as patch:
        poison(patch, step, value=value)
        with pytest.raises(InputError, match=rf"{bad}.*good checkpoint is .*step-0000000{kept}\. .*FROM=.*RUN_DIR"):
            train(config)
    assert load_progress(last_checkpoint(config.directory)).step == kept and is_finite(config.directory)
    unbroken = train(small_run("head=flat", "ema_decay=0.9", f"run_dir={tmp_path / 'unbroken'}"))
    assert losses(train(config)) == losses(unbroken)  # the machine was at fault


def test_bad_steps_are_left_out_and_counted_up_to_a_number(small_run, tmp_path, monkeypatch, caplog):
    settings = "head=flat", "optim.skip_bad_steps=2", "ema_decay=0.9"
    poison(monkeypatch, 3, 8)
    config = small_run(*settings)
    rows = losses(train(config))
    assert [row["train/skipped_steps"] for row in rows[1:]] == [0, 1, 1, 2, 2, 2] and is_finite(config.directory)
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert "step 8 of" in caplog.text and "its update is left out: 2 of at most 2" in caplog.text
    with pytest.raises(InputError, match=r"step 8 of .*1 bad steps before it were skipped \(optim.skip_bad_steps=1\)"):
        train(small_run("head=flat", "optim.skip_bad_steps=1", f"run_dir={tmp_path / 'one'}"))
    # The run may go on with a larger number.
    train(small_run("head=flat", "optim.skip_bad_steps=2", f"run_dir={tmp_path / 'one'}"))


def test_a_bad_last_step_is_left_out_and_the_run_is_trained(small_run, monkeypatch):
    poison(monkeypatch, 12)
    config = small_run("head=flat", "optim.skip_bad_steps=1")
    rows = losses(train(config))
    assert rows[-1]["step"] == 12 and all(math.isfinite(value) for value in rows[-1].values())
    assert load_progress(last_checkpoint(config.directory)).step == 12 and is_finite(config.directory)


def test_a_skipped_step_changes_neither_weights_nor_the_optimizer(small_run, monkeypatch):
    seen, update = [], Loop.update

    def watched(self):
        norm = update(self)
        state = self.optimizers[0].state_dict()["state"][0].values()
        seen.append([value.clone() for value in (*self.model.own.parameters(), *state)])
        return norm

    monkeypatch.setattr(Loop, "update", watched)
    poison(monkeypatch, 6)
    train(small_run("head=flat", "optim.skip_bad_steps=1"))
    same = [all(torch.equal(*pair) for pair in zip(*both, strict=True)) for both in pairwise(seen)]
    assert same == [step == 6 for step in range(2, 13)]


def test_a_gradient_above_the_ceiling_is_a_bad_step(small_run, tmp_path, caplog):
    norms = [row["train/gradient_norm"] for row in losses(train(small_run("head=flat", "log_every=1")))[1:]]
    ceiling = sorted(norms)[-2]
    run = f"run_dir={tmp_path / 'other'}", f"optim.norm_ceiling={ceiling}"
    step = norms.index(max(norms)) + 1
    with pytest.raises(InputError, match=rf"step {step} of .* gradient norm of {max(norms):.3g}"):
        train(small_run("head=flat", *run))
    train(small_run("head=flat", *run, "optim.skip_bad_steps=12"))
    assert "its update is left out" in caplog.text


def test_weights_that_are_not_finite_are_not_saved(small_run):
    config = small_run("head=flat", "optim.learning_rate=1e38", "checkpoint_every=1", "optim.skip_bad_steps=99")
    with pytest.raises(InputError, match=r"is not finite at step 1 .*nothing was saved.*no checkpoint yet"):
        train(config)
    assert not list_checkpoints(config.directory)


@pytest.mark.parametrize("wrong", ["skip_bad_steps=-1", "norm_ceiling=0"])
def test_impossible_settings_are_refused(small_run, wrong):
    with pytest.raises(InputError, match=r"skip_bad_steps >= 0 and norm_ceiling > 0"):
        small_run(f"optim.{wrong}")
