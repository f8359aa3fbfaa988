"""Files of data name things and choose no code: what each of them can hold is tried with an attempt to run a program.

An attempt that succeeds writes the file `marker`. A stage may end with an InputError or with a correct result."""

import io
import json
import pickle
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import stage
import torch
import yaml
from messages import explain
from PIL import Image
from script_runner import run_script

from llamagen.runs import Run
from llamagen.sampling.sets import SampleSet
from llamagen.train import train
from llamagen.training.config import TrainConfig
from llamagen.training.optimizer_state import load_optimizers
from masc.layout import Layout
from masc.runtime.artifacts import Codebook
from masc.runtime.errors import InputError
from masc.runtime.verify import verify_codes
from metrics.results import Results, row
from reports.overview import OverviewConfig, write_overview
from reports.runs import RunRecord
from vq.pretrained import load_decoder

MODULE = """
from pathlib import Path
from torch import nn
from llamagen.backbones.base import Backbone

Path({marker!r}).touch()

class Tokenizer(nn.Module):
    pass
"""
TARGETS = ("os:system", "builtins:eval", "subprocess:getoutput", "hostile:Tokenizer", "torch.nn:Linear", "hostile", 3)


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """The file that a successful attempt writes. The module `hostile`, which writes it, lies where imports look."""
    marker = tmp_path / "marker"
    (tmp_path / "hostile.py").write_text(MODULE.format(marker=str(marker)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("SECRET", "hunter2")
    yield marker
    sys.modules.pop("hostile", None)
    assert not marker.exists()


def options_of(marker):
    """Options that make each of the targets write the marker."""
    return {"command": f"touch {shlex.quote(str(marker))}", "cmd": f"touch {shlex.quote(str(marker))}"}


def refusal(function, *arguments):
    """The text that a script prints for the InputError of a call."""
    with pytest.raises((InputError, SystemExit)) as caught:
        function(*arguments)
    error = caught.value
    text = explain(error) if isinstance(error, InputError) else str(error.code)
    assert "hunter2" not in text and text.isprintable() | ("\n" in text)
    return text


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["emoji32", "hostile"])
def test_a_codebook_chooses_no_class(tmp_path, marker, target, name):
    layout = Layout(tmp_path / "artifacts", "emoji32")
    described = {"name": name, "target": target, "options": options_of(marker), "weights": None}
    codebook = Codebook.save(layout.codebook, np.eye(4, dtype=np.float32), described, {"tokenizer": "0" * 64})
    refused = "names the class" if name == "emoji32" else "configs/tokenizer has no config of that name"
    assert refused in refusal(load_decoder, codebook, layout)


@pytest.mark.parametrize("script", ["check_codes", "codes", "import_codes", "tree_report"])
def test_no_stage_calls_the_class_of_a_codebook(tmp_path, marker, script):
    layout = Layout(tmp_path / "artifacts", "emoji32")
    described = {"name": "emoji32", "target": "os:system", "options": options_of(marker), "weights": None}
    Codebook.save(layout.codebook, np.eye(4, dtype=np.float32), described, {"tokenizer": "0" * 64})
    text = refusal(run_script, script, "data=twemoji", f"artifacts={layout.root}")
    assert "'os:system'" in text or script == "tree_report"  # the report lacks trees first


def test_a_run_chooses_no_class(small_run, marker):
    config = small_run("head=flat")
    config.open_directory({})
    file = config.directory / "config.yaml"
    stored = yaml.safe_load(file.read_text())
    for target in TARGETS:
        stored["model"] = {"name": "llamagen-tiny", "target": target, "dim": 4, "options": options_of(marker)}
        file.write_text(yaml.safe_dump(stored))
        assert "names the class" in refusal(Run(config.directory).load_model)


class Trap:
    """Creates the marker when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def attempts(marker):
    """Contents of files that run something, or give a secret away, in a reader that trusts them; by kind."""
    trap, array, archive = Trap(marker), io.BytesIO(), io.BytesIO()
    np.save(array, np.array([trap], object), allow_pickle=True)
    np.savez(archive, header=np.array(trap, object), vectors=np.array([trap], object))
    checkpoint = io.BytesIO()
    torch.save({"model": trap, "state": {}, "param_groups": []}, checkpoint)
    command = f"touch {shlex.quote(str(marker))}"
    return {
        "pickle": pickle.dumps(trap, protocol=2),
        ".npy": array.getvalue(),
        ".npz": archive.getvalue(),
        ".pt": checkpoint.getvalue(),
        ".yaml": f"seed: !!python/object/apply:os.system [{json.dumps(command)}]".encode(),
        "secret": b"_target_: os.system\nseed: ${oc.env:SECRET}",
        ".json": json.dumps({"_target_": "os.system", "target": "hostile:Tokenizer", "args": [command]}).encode(),
        "empty": b"",
    }


@pytest.fixture(scope="module")
def finished(artifacts, tmp_path_factory):
    """A run of two steps with a file of each kind beside it, and the artifacts that it was trained on."""
    root = tmp_path_factory.mktemp("foreign")
    shutil.copytree(artifacts, root / "artifacts")
    small = [f"model.{size}" for size in ("dim=16", "num_layers=1", "num_heads=2", "multiple_of=16")]
    steps = ["steps=2", "batch_size=4", "log_every=1", "checkpoint_every=2", "evaluate_every=1", "ema_decay=0.5"]
    steps.append("tracking.mode=disabled")
    places = [f"artifacts={root / 'artifacts'}", f"run_dir={root / 'runs/a/masc/seed0'}"]
    chosen = ["model=llamagen-tiny", "data=twemoji", "head=masc", "precision=fp32"]
    config = stage.load_config("train", TrainConfig, [*chosen, *small, *steps, *places])
    train(config)
    Results([row("FD-lite0", 5.0, {"num_images": 10})]).save(config.directory / "eval" / "default.json")
    samples = config.directory / "samples" / "default"
    samples.mkdir(parents=True)
    settings = {"num_images": 2, "form": "tokens", "use_ema": False, "sampling": {}, "labels": "uniform", "seed": 0}
    settings |= {"precision": "fp32", "resolution": None, "release": None}
    sums = {"weights_sha256": "a" * 64, "tokenizer_sha256": "0" * 64}
    (samples / "manifest.json").write_text(json.dumps({"config": settings, **sums}))
    np.save(samples / "tokens.npy", np.zeros((2, 9), np.int64))
    np.save(samples / "labels.npy", np.zeros(2, np.int64))
    Image.new("RGB", (8, 8)).save(samples / "grid.png")
    return config


def readers(config):
    """Everything that a stage does with a run and its artifacts before it computes."""
    run, averaged = Run(config.directory), Run(config.directory, averaged=True)
    samples = SampleSet(run, "default")
    model = torch.nn.Linear(1, 1)
    optimizers = [torch.optim.AdamW(model.parameters())]
    yield from (run.load_model, averaged.load_model, run.evidence, run.label_population)
    yield lambda: load_optimizers(run.checkpoint, model, optimizers)
    yield lambda: run.is_trained(config)
    yield lambda: run.protocol(samples.manifest)
    yield from (samples.protocol, samples.label_evidence, lambda: samples.tokens, run.load_tokenizer)
    yield lambda: RunRecord.load(config.directory)
    yield lambda: verify_codes(config.layout.codes("twemoji", "train"))


@pytest.fixture
def each_file(finished):
    """The files of the run and of its artifacts, as they were before the test once it ends."""
    root = Path(finished.artifacts).parent
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and path.name != ".lock"]
    kept = {path: path.read_bytes() for path in files}
    yield kept
    for path, content in kept.items():
        path.write_bytes(content)


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_no_file_of_a_run_and_its_artifacts_runs_anything(finished, each_file, marker, caplog, every):
    kinds = {path.suffix for path in each_file}
    assert {".yaml", ".json", ".jsonl", ".npy", ".npz", ".safetensors", ".png"} <= kinds
    refused = set()
    for path, sound in each_file.items():
        for kind, content in attempts(marker).items():
            if not every and kind != (path.suffix if path.suffix in (".npy", ".npz", ".yaml", ".json") else "pickle"):
                continue
            path.write_bytes(content)
            for read in readers(finished):
                try:
                    read()
                except InputError as error:
                    refused.add(path)
                    assert "hunter2" not in explain(error)
            assert not marker.exists(), path
        path.write_bytes(sound)
    assert len(refused) > 0.7 * len(each_file) and "hunter2" not in caplog.text


def test_a_page_of_hostile_files_names_them_and_runs_nothing(finished, each_file, marker):
    for path in each_file:
        path.write_bytes(attempts(marker).get(path.suffix, b"${oc.env:SECRET}"))
    other = finished.directory.parents[1] / "b"
    shutil.copytree(finished.directory, other / "masc" / "seed0")
    for path, content in each_file.items():
        path.write_bytes(content)
    page = write_overview(OverviewConfig(runs=str(other.parent), output="report", metrics=["val/nats_per_token"]))
    assert len(json.loads(page.with_name("all.json").read_text())["skipped"]) == 1
    assert "hunter2" not in "".join(path.read_text() for path in page.parent.iterdir())
    shutil.rmtree(other)
