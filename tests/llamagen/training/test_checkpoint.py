"""Checkpoints: the newest whole one is used, damaged ones are named and kept aside, and some stay."""

import json

import pytest
from checkpoint_tools import reseal
from run_rows import losses
from safetensors.torch import load_file, save_file

from llamagen.runs import Run
from llamagen.train import train
from llamagen.training.checkpoint import MANIFEST, Progress, list_checkpoints, weights_file
from llamagen.training.loop import Loop
from masc.runtime import reading
from masc.runtime.errors import InputError

EMA = ("head=flat", "ema_decay=0.9")
FILES = ("model.safetensors", "average.safetensors", "optimizer.safetensors", "progress.json", MANIFEST)


def names(run_dir):
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def flip(file):
    content = bytearray(file.read_bytes())
    content[-len(content) // 3] ^= 1
    file.write_bytes(content)


DAMAGES = {
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-7]),
    "empty": lambda file: file.write_bytes(b""),
    "missing": lambda file: file.unlink(),
    "flipped": flip,
}


@pytest.fixture(scope="module")
def whole(request):
    """Rows and weights of the unbroken run; made by the first test that asks."""
    return {}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_kept_aside_and_the_one_before_it_is_used(
    small_run, tmp_path, dies, caplog, whole, name, damage
):
    if not whole:
        unbroken = train(small_run(*EMA, f"run_dir={tmp_path / 'unbroken'}"))
        whole |= {"rows": losses(unbroken), "weights": weights_file(unbroken, True).read_bytes()}
    config = small_run(*EMA)
    dies(config, 9)
    assert names(config.directory) == ["step-00000004", "step-00000008"]
    DAMAGES[damage](config.directory / "checkpoints/step-00000008" / name)
    caplog.clear()
    assert losses(train(config)) == whole["rows"]
    assert weights_file(config.directory, True).read_bytes() == whole["weights"]
    assert names(config.directory) == ["damaged-step-00000008", "step-00000008", "step-00000012"]
    assert "damaged-step-00000008, and the run continues from" in caplog.text
    assert name in caplog.text or name == MANIFEST  # a changed SHA-256 accuses the file that it is of


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew(small_run, dies):
    config = small_run("head=flat")
    dies(config, 9)
    before = losses(config.directory)
    for path in list_checkpoints(config.directory):
        flip(path / "model.safetensors")
    with pytest.raises(InputError, match=r"no checkpoint that is whole .*copy the checkpoint back"):
        train(config)
    assert losses(config.directory) == before and names(config.directory) == ["step-00000004", "step-00000008"]


def test_weights_that_were_changed_are_not_sampled_from(small_run):
    directory = train(small_run("head=flat"))
    flip(weights_file(directory))
    for read in (lambda: Run(directory).load_model(), lambda: Run(directory).weights_sha256):
        with pytest.raises(InputError, match=r"with SHA-256 .*its bytes were changed; copy the checkpoint back"):
            read()


def test_a_config_that_was_edited_by_hand_does_not_go_on(small_run, dies):
    config = small_run("head=flat")
    dies(config, 9)
    file = config.directory / "config.yaml"
    file.write_text(file.read_text().replace("weight_decay: 0.05", "weight_decay: 0.5"))
    with pytest.raises(InputError, match=r"config.yaml was changed since .*step-00000008 was written.*FROM=.* RUN_DIR"):
        train(small_run("head=flat", "optim.weight_decay=0.5"))


def test_a_damaged_hash_of_the_config_is_not_taken_for_an_edited_config(small_run, dies, caplog):
    config = small_run("head=flat")
    dies(config, 9)
    manifest = config.directory / "checkpoints/step-00000008" / MANIFEST
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(content | {"config_sha256": f"{content['config_sha256'][:-1]}x"}))
    train(config)
    assert names(config.directory) == ["damaged-step-00000008", "step-00000008", "step-00000012"]
    assert "damaged-step-00000008, and the run continues from" in caplog.text


def test_the_newest_checkpoints_and_each_of_some_steps_stay(small_run, tmp_path):
    settings = "head=flat", "checkpoint_every=2", "evaluate_every=12"
    assert names(train(small_run(*settings))) == ["step-00000010", "step-00000012"]
    kept = train(small_run(*settings, "keep_last=1", "keep_every=6", f"run_dir={tmp_path / 'kept'}"))
    assert names(kept) == ["step-00000006", "step-00000012"]


@pytest.mark.parametrize("background", ["on", "off"])
def test_a_checkpoint_written_in_the_background_is_the_same(small_run, tmp_path, background):
    found = train(small_run(*EMA, f"compute.background_save={background}"))
    auto = train(small_run(*EMA, f"run_dir={tmp_path / 'auto'}"))
    assert (weights_file(found).parent / MANIFEST).read_text() != ""
    for name in FILES[:3]:
        assert (weights_file(found).parent / name).read_bytes() == (weights_file(auto).parent / name).read_bytes()


def test_a_failed_write_in_the_background_ends_the_run_with_its_cause(small_run, monkeypatch):
    def refused(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("llamagen.training.saving.save_safetensors", refused)
    with pytest.raises(InputError, match=r"no space left.*step-00000004"):
        train(small_run("head=flat", "compute.background_save=on"))


def test_optimizer_state_of_another_model_is_refused(small_run, dies):
    config = small_run("head=flat")
    dies(config, 5)
    path = list_checkpoints(config.directory)[0]
    state = load_file(path / "optimizer.safetensors")
    save_file({name: value for name, value in state.items() if "norm" not in name}, path / "optimizer.safetensors")
    reseal(path)
    with pytest.raises(InputError, match=r"optimizer.safetensors is not the state of this run's optimizer: .*norm"):
        train(config)


def test_a_save_is_timed(small_run):
    rows = [json.loads(line) for line in (train(small_run("head=flat")) / "metrics.jsonl").read_text().splitlines()]
    assert {row["step"] for row in rows if "speed/save_seconds" in row} == {4, 8, 12}


@pytest.mark.parametrize("step", [8, 12])
def test_a_run_that_dies_after_a_checkpoint_writes_the_row_of_its_step_when_it_is_resumed(
    small_run, tmp_path, monkeypatch, step
):
    settings = "head=flat", "evaluate_every=4"
    unbroken = losses(train(small_run(*settings, f"run_dir={tmp_path / 'unbroken'}")))
    config, log = small_run(*settings), Loop.log

    def dies(self, *arguments):
        if self.progress.step == step:
            raise ZeroDivisionError
        log(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(Loop, "log", dies)
        train(config)
    assert names(config.directory)[-1] == f"step-{step:08d}" and not Run(config.directory).is_trained(config)
    assert losses(train(config)) == unbroken and Run(config.directory).is_trained(config)


def test_an_error_of_the_disk_is_not_taken_for_damage(small_run, dies, monkeypatch):
    config = small_run("head=flat")
    dies(config, 9)
    kept, open_at_once = names(config.directory), reading._open_at_once

    def refuses(path, flags):
        if str(path).endswith("step-00000008/model.safetensors"):
            raise OSError(116, "Stale file handle")
        return open_at_once(path, flags)

    monkeypatch.setattr(reading, "_open_at_once", refuses)
    with pytest.raises(InputError, match=r"cannot read .*step-00000008/model.safetensors \(Stale file handle\)"):
        train(config)
    assert names(config.directory) == kept


def test_a_manifest_or_a_state_that_lacks_a_part_makes_a_damaged_checkpoint(small_run, tmp_path, dies, caplog):
    unbroken = losses(train(small_run(*EMA, f"run_dir={tmp_path / 'unbroken'}")))
    for name in FILES[:4]:
        config = small_run(*EMA, f"run_dir={tmp_path / name}")
        dies(config, 9)
        path = list_checkpoints(config.directory)[0]
        (path / name).unlink()
        manifest = json.loads((path / MANIFEST).read_text())
        for part in ("bytes", "sha256"):
            del manifest[part][name]
        (path / MANIFEST).write_text(json.dumps(manifest))
        assert losses(train(config)) == unbroken
    config = small_run("head=flat")
    dies(config, 9)
    path = list_checkpoints(config.directory)[0]
    state = load_file(path / "optimizer.safetensors")
    save_file(
        {name: value for name, value in state.items() if "exp_avg_sq" not in name}, path / "optimizer.safetensors"
    )
    reseal(path)
    with pytest.raises(InputError, match=r"holds exp_avg, step of .*, and AdamW needs exp_avg, exp_avg_sq, step"):
        train(config)


@pytest.mark.parametrize("wrong", [{"seconds": -1.0}, {"seconds": float("inf")}, {"window": [[float("nan"), 1.0]]}])
def test_impossible_progress_is_refused(wrong):
    with pytest.raises(ValueError, match="no progress of a run"):
        Progress(**wrong)
