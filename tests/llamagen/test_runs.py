"""Runs opened again from their directories."""

import contextlib
import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from user_errors import tells

from llamagen.runs import Run
from llamagen.sampling.draw import sample
from llamagen.sampling.plan import SampleConfig
from llamagen.train import train
from masc.runtime.errors import InputError


@pytest.fixture
def trained(small_run):
    """The config of a run of two steps with averaged weights."""
    config = small_run("head=masc", "steps=2", "evaluate_every=2", "ema_decay=0.5")
    train(config)
    return config


def manifest_of(run: Run, **changes):
    return {"weights_sha256": run.weights_sha256, "config": {"use_ema": run.averaged}, **changes}


def test_what_a_run_has_read_is_kept(trained, tmp_path):
    directory = Path(shutil.copytree(trained.directory, tmp_path / "copy"))
    run = Run(directory)
    found = run.protocol(manifest_of(run))
    weights = run.load_model().state_dict()
    assert run.config.label == "masc" and run.provenance.parents["codebook"] == run.codebook.meta.sha256
    shutil.rmtree(directory / "checkpoints")
    for name in ("config.yaml", "provenance.json"):
        (directory / name).unlink()
    assert run.protocol(manifest_of(run)) == found and found["step"] == 2 and found["images_seen"] == 16
    assert found["K"] == 12 and found["seconds"] > 0
    again = Run(trained.directory).load_model().state_dict()
    assert all(torch.equal(again[name], weights[name]) for name in weights)
    with tells(r"no run at .*make train"):
        _ = Run(directory).config


@pytest.mark.parametrize("place", ["runs/m/masc/seed0", "../elsewhere/run"])
def test_a_run_with_relative_paths_is_read_from_another_directory(small_run, artifacts, tmp_path, monkeypatch, place):
    project = tmp_path / "project"
    project.mkdir()
    (project / "artifacts").symlink_to(artifacts)
    monkeypatch.chdir(project)
    train(small_run("head=masc", "steps=2", "evaluate_every=2", "artifacts=artifacts", f"run_dir={place}"))
    directory = Path(place).resolve()
    monkeypatch.chdir(tmp_path)
    Run(directory).load_model()
    assert Run(directory).config.artifacts == str(project / "artifacts")


def test_averaged_weights_are_another_run_object(trained):
    last, average = Run(trained.directory), Run(trained.directory, averaged=True)
    assert last.weights_sha256 != average.weights_sha256
    # A set says itself which of the two it was drawn with.
    assert last.protocol(manifest_of(average)) == average.protocol(manifest_of(average))
    assert last.evidence() == {"average_kept": True, "tree_tokenizer_sha256": "0" * 64}


def test_samples_of_a_run_that_was_trained_on_have_no_step(trained, caplog):
    run = Run(trained.directory)
    found = run.protocol(manifest_of(run, weights_sha256="a" * 64))
    assert "step" not in found and found["model"] == "llamagen-tiny"
    assert "drawn from other weights (aaaaaaaaaaaa) than it has now" in caplog.text


def test_a_run_is_trained_at_the_last_step_of_the_same_config(trained, small_run):
    same = ("head=masc", "evaluate_every=2", "ema_decay=0.5")
    assert Run(trained.directory).is_trained(trained)
    assert not Run(trained.directory).is_trained(small_run(*same, "steps=4"))
    with pytest.raises(InputError, match="seed: 0 there, 1 now"):
        Run(trained.directory).is_trained(small_run(*same, "steps=2", "seed=1"))
    assert not Run(trained.directory / "elsewhere").is_trained(trained)


def test_inputs_remade_after_training_are_refused(trained, artifacts, tmp_path):
    moved = Path(shutil.copytree(artifacts, tmp_path / "artifacts"))
    directory = Path(shutil.copytree(trained.directory, tmp_path / "copy"))
    config = (directory / "config.yaml").read_text()
    (directory / "config.yaml").write_text(config.replace(f"artifacts: {artifacts}", f"artifacts: {moved}"))
    run = Run(directory)
    assert len(run.label_population()) and run.num_classes == len(run.class_names) > 0
    provenance = (directory / "provenance.json").read_text()
    (directory / "provenance.json").write_text(provenance.replace(run.inputs.train.sha256, "f" * 64))
    with pytest.raises(InputError, match=r"trained on other inputs .*\n  train codes: 'f{12}' there, "):
        Run(directory).load_model()
    shutil.rmtree(moved / trained.tokenizer_name / "codes")
    gone = Run(directory)
    assert gone.class_names == [] and "label_map" not in gone.evidence()
    assert np.array_equal(gone.codebook.vectors, run.codebook.vectors)


@pytest.mark.parametrize("content", [None, b"", b"[]", b"{}", b'{"parents": {"codebook": 3}}', b'{"parents"', b"\xff"])
def test_a_damaged_provenance_is_one_error_that_names_it(trained, tmp_path, content):
    directory = Path(shutil.copytree(trained.directory, tmp_path / "copy"))
    file = directory / "provenance.json"
    file.unlink() if content is None else file.write_bytes(content)
    for read in (Run(directory).load_model, Run(directory).evidence):
        with tells(r"provenance\.json.*copy it back"):
            read()


READERS = [
    lambda run: run.load_model(),
    lambda run: run.weights_sha256,
    lambda run: run.progress.step,
    lambda run: replace(run, averaged=True).load_model(),
    lambda run: run.protocol(manifest_of(run)),
    lambda run: run.evidence(),
    lambda run: run.class_names,
    lambda run: run.label_population(),
]


@pytest.fixture
def interrupt(trained, artifacts, tmp_path):
    """Renames a run's checkpoint and codes as a kill between the two renames of a write leaves them."""
    moved = Path(shutil.copytree(artifacts, tmp_path / "artifacts"))
    config = (trained.directory / "config.yaml").read_text()
    (trained.directory / "config.yaml").write_text(config.replace(f"artifacts: {artifacts}", f"artifacts: {moved}"))
    places = [
        trained.directory / "checkpoints" / "last",
        *(file.parent for file in moved.glob("*/codes/*/*/meta.json")),
    ]

    def rename():
        for path in places:
            if path.exists():
                path.rename(path.with_name(f".{path.name}.old"))

    return rename


def test_what_a_killed_process_had_renamed_is_found_by_every_reader(trained, interrupt):
    for read in READERS:
        interrupt()
        read(Run(trained.directory))
    assert Run(trained.directory).progress.step == 2


@contextlib.contextmanager
def read_only(monkeypatch):
    """A disk on which nothing can be written."""

    def refuse(path, *arguments, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    def opened(path, flags, *arguments, **options):
        return refuse(path) if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) else real(path, flags, *arguments)

    real = os.open
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", opened)
        for name in ("rename", "replace", "mkdir", "unlink", "touch"):
            patch.setattr(Path, name, refuse)
        yield


def test_a_run_on_a_read_only_disk_is_read(trained, interrupt, monkeypatch):
    interrupt()
    with read_only(monkeypatch):
        for read in READERS:
            read(Run(trained.directory))
        assert Run(trained.directory).progress.step == 2 and len(Run(trained.directory).class_names) > 0


def test_a_run_on_a_read_only_disk_says_what_cannot_be_written(trained, monkeypatch):
    with (
        read_only(monkeypatch),
        pytest.raises(InputError, match=r"^the file system is read-only while writing .*run/\.lock; "),
    ):
        train(trained)
    settings = SampleConfig(run=str(trained.directory), num_images=1)
    with read_only(monkeypatch), pytest.raises(InputError, match=r"read-only.*unfinished.*copy .*run$"):
        sample(settings)


@pytest.mark.parametrize("change", [{"dim": 2**30}, {"num_layers": 10**9}, {"multiple_of": 10**12}])
def test_a_config_of_a_larger_model_than_the_checkpoint_is_refused_before_it_is_built(trained, tmp_path, change):
    directory = Path(shutil.copytree(trained.directory, tmp_path / "copy"))
    stored = yaml.safe_load((directory / "config.yaml").read_text())
    stored["model"] |= change
    (directory / "config.yaml").write_text(yaml.safe_dump(stored))
    with pytest.raises(InputError, match=r"config\.yaml describes a model of more than \d+ parameters"):
        Run(directory).load_model()
