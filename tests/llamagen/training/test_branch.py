"""FROM: a new run begins at a checkpoint of another one, under other settings, and says so."""

import shutil

import pytest
from checkpoint_tools import poison
from run_rows import losses

from llamagen.runs import Run
from llamagen.train import check_run, train
from llamagen.training.checkpoint import checkpoint_path, last_checkpoint
from masc.runtime.errors import InputError


@pytest.fixture
def other(small_run, tmp_path):
    """Makes the config of a run that begins at step 8 of another one."""
    config = small_run("head=flat", f"run_dir={tmp_path / 'other'}", "keep_last=9")
    train(config)

    def branch(*changes, at=None):
        begin = at or checkpoint_path(config.directory, 8)
        return small_run("head=flat", f"from_checkpoint={begin}", *changes)

    return branch


def test_without_a_change_it_repeats_the_other_run(other, tmp_path):
    config = other()
    assert losses(train(config)) == losses(tmp_path / "other")
    found = Run(config.directory).provenance
    assert found.began_at["step"] == 8 and found.began_at["changed"] == {"keep_last": [9, 2]}
    assert "checkpoint it began at" in found.parents
    train(config)  # is trained already


def test_another_rate_and_more_steps_go_on_from_the_same_weights_and_are_recorded(other, tmp_path, dies):
    change = "optim.learning_rate=0.0001", "steps=16", "ema_decay=0.9", "micro_batches=2", "log_every=4"
    unbroken = losses(train(other(*change, f"run_dir={tmp_path / 'unbroken'}")))
    assert [row["step"] for row in unbroken] == [0, 2, 4, 6, 8, 12, 16]
    assert unbroken[4] == losses(tmp_path / "other")[4]
    config = other(*change)
    dies(config, 9)
    with pytest.raises(InputError, match="set FROM to that checkpoint again"):
        train(other(*change, "from_checkpoint=null"))
    dies(config, 13)
    shutil.rmtree(tmp_path / "other")
    assert losses(train(other(*change, "from_checkpoint=null"))) == unbroken  # its own checkpoint is all it needs
    assert Run(config.directory).provenance.began_at["changed"]["optim.learning_rate"][1] == 0.0001


def test_a_run_is_begun_at_its_last_checkpoint(other, tmp_path):
    config = other("steps=14", at=tmp_path / "other")
    train(config)
    assert Run(config.directory).provenance.began_at["step"] == 12


WRONG = [
    ("steps=8", "is at step 8, and the new run has 8; set steps higher"),
    ("batch_size=4", "batch_size: 8 there, 4 now"),
    ("optim=muon", "optim.kind: 'adamw' there, 'muon' now"),
    ("model.num_layers=1", "model.num_layers: 2 there, 1 now"),
    ("head=masc", "head.kind: 'flat' there, 'masc' now"),
    ("from_checkpoint=nowhere", "expected a checkpoint at nowhere.*found nothing; set FROM"),
]


@pytest.mark.parametrize(("change", "words"), WRONG)
def test_what_cannot_go_on_is_one_error_before_anything_is_written(other, change, words):
    config = other(change)
    for attempt in (train, lambda config: check_run(config, 1)):
        with pytest.raises(InputError, match=words):
            attempt(config)
    assert not config.directory.exists()


def test_a_directory_with_a_run_of_its_own_and_a_damaged_checkpoint_are_refused(other, tmp_path):
    config = other("steps=16", "optim.final_share=1", f"run_dir={tmp_path / 'other'}")
    with pytest.raises(InputError, match=r"holds a run at step 12, and FROM=.* begins a new one; .*RUN_DIR"):
        train(config)
    (last_checkpoint(tmp_path / "other") / "optimizer.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"optimizer.safetensors, found 0; set FROM to another checkpoint"):
        train(other("steps=14", at=last_checkpoint(tmp_path / "other")))


def test_another_checkpoint_than_the_one_it_began_at_is_refused_and_a_copy_of_one_is_taken(other, tmp_path, dies):
    there = tmp_path / "other" / "checkpoints"
    config = other("steps=16")
    dies(config, 13)
    with pytest.raises(InputError, match=r"holds a run at step 12, and FROM=.*step-00000004 begins a new one"):
        train(other("steps=16", at=there / "step-00000004"))
    train(other("steps=16"))  # the same command
    shutil.copytree(there / "step-00000008", there / "best")
    copied = train(other("steps=16", f"run_dir={tmp_path / 'copied'}", at=there / "best"))
    assert losses(copied) == losses(config.directory)


def test_bad_steps_are_counted_anew_and_its_first_checkpoint_is_named(small_run, tmp_path, monkeypatch):
    first = small_run("head=flat", "optim.skip_bad_steps=1", "keep_last=9", f"run_dir={tmp_path / 'first'}")
    poison(monkeypatch, 3, 10, 11)
    with pytest.raises(InputError, match="step 10 of"):
        train(first)
    begin = checkpoint_path(first.directory, 8)
    second = small_run("head=flat", "optim.skip_bad_steps=1", f"from_checkpoint={begin}")
    with pytest.raises(InputError, match=rf"step 11 of .*last good checkpoint is {begin}\. Continue from it"):
        train(second)
