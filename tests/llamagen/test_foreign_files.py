"""Files of data name things and choose no code: what each of them can hold is tried with an attempt to run a program.

An attempt that succeeds writes the file `marker`. A stage may end with an InputError or with a correct result."""

import shlex
import sys

import numpy as np
import pytest
import yaml
from messages import explain
from script_runner import run_script

from llamagen.runs import Run
from masc.layout import Layout
from masc.runtime.artifacts import Codebook
from masc.runtime.errors import InputError
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


@pytest.mark.parametrize("target", TARGETS)
def test_a_run_chooses_no_class(small_run, marker, target):
    config = small_run("head=flat")
    config.open_directory({})
    file = config.directory / "config.yaml"
    stored = yaml.safe_load(file.read_text())
    stored["model"] = {"name": "llamagen-tiny", "target": target, "dim": 4, "options": options_of(marker)}
    file.write_text(yaml.safe_dump(stored))
    assert "names the class" in refusal(Run(config.directory).load_model)
