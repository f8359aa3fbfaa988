"""How scripts start and how they end: the config of a stage as its dataclass, errors with the command to type."""

import ast
import contextlib
import errno
import logging
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field, is_dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.core.config_store import ConfigStore
from messages import COMMANDS, command_for, explain
from stage import CONFIGS, SCHEMAS, load_config, run_stage
from tree import TreeStage, main
from user_errors import tells
from worker import EXIT_STOPPED, check_machine

from llamagen.runs import Run
from llamagen.sampling.plan import SampleConfig
from masc.build import TreeConfig
from masc.runtime.artifacts import Codebook
from masc.runtime.errors import InputError, MissingArtifact, Stopped

MAKEFILE = (CONFIGS.parent / "Makefile").read_text()


def test_every_schema_of_the_table_is_a_dataclass():
    for place in (place for schemas in SCHEMAS.values() for place in schemas.values()):
        module, _, name = place.partition(":")
        assert is_dataclass(getattr(import_module(module), name)), place


def test_every_schema_that_a_file_names_is_in_the_table():
    for file in CONFIGS.glob("*/*.yaml"):
        for name in re.findall(r"[a-z_-]+_schema", file.read_text()):
            assert name in SCHEMAS[file.parent.name], file


@pytest.fixture
def store(monkeypatch):
    """What Hydra has registered, without the groups that earlier tests used."""
    others = {name: node for name, node in ConfigStore.instance().repo.items() if name not in SCHEMAS}
    monkeypatch.setattr(ConfigStore.instance(), "repo", others)
    return ConfigStore.instance().repo


def test_a_stage_registers_the_groups_of_its_own_fields_only(store):
    load_config("tree", TreeStage, [])
    assert {name for name in store if name in SCHEMAS} == {"tree", "head"}


def test_groups_are_found_in_dictionaries_and_nested_fields(store):
    @dataclass(kw_only=True)
    class Inner:
        trees: dict[str, TreeConfig] = field(default_factory=dict)

    @dataclass(kw_only=True)
    class Outer:
        inner: Inner | None = None

    with pytest.raises(InputError):  # there is no such stage: only what is registered matters here
        load_config("nonesuch", Outer, [])
    assert {name for name in store if name in SCHEMAS} == {"tree"}


def test_a_group_that_a_stage_does_not_read_is_refused_by_name(store):
    with pytest.raises(InputError, match="the stage tree reads no group data"):
        load_config("tree", TreeStage, ["+data=twemoji"])


def test_a_release_that_does_not_exist_is_called_a_release():
    overrides = ["release=bogus", "sampling=bogus"]  # what make gives for RELEASE=bogus
    with pytest.raises(InputError, match=r"^there is no release called 'bogus'; RELEASE can be: c2i_3B_384, "):
        load_config("sample", SampleConfig, overrides)
    with pytest.raises(InputError, match=r"^there is no sampling called 'bogus'; PRESET can be: "):
        load_config("sample", SampleConfig, ["sampling=bogus"])


def targets() -> set[str]:
    """The targets of the Makefile that `make help` lists."""
    return set(re.findall(r"^([a-z-]+):.*## ", MAKEFILE, re.MULTILINE))


def test_every_command_is_a_target_and_its_variables_are_read_by_the_makefile():
    for target, *variables in COMMANDS.values():
        assert target in targets()
        for name in variables:
            assert re.search(rf"call (set|each),[a-z_.]+,{name}\)", MAKEFILE), name


def test_every_kind_that_the_code_names_has_a_command(root):
    named = {"codebook", "tree"}  # kinds of artefacts of one .npz file: load_npz names them by its argument
    for folder in ("masc", "tokenizers", "eval", "llamagen", "scripts"):
        for file in (root / folder).rglob("*.py"):
            named |= set(re.findall(r"(?:MissingArtifact|damaged_is_missing)\(\s*\"([a-z ]+)\"", file.read_text()))
    assert named == set(COMMANDS)


def test_an_error_is_told_with_the_command_that_makes_what_is_missing(tmp_path):
    codes = MissingArtifact("codes", Path("x"), data="twemoji", tokenizer="emoji32")
    assert explain(codes) == "no codes at x; type `make codes DATA=twemoji TOKENIZER=emoji32`"
    tree = MissingArtifact("tree", Path("y"), "bad", remove=True, tree="masc", k=None, overrides={"a": 1, "b": 2})
    assert explain(tree) == 'bad; type `rm -r y && make tree TREE=masc TOKENIZER=... ARGS="a=1 b=2"`'
    spaced = MissingArtifact("codes", Path("my codes/x"), "bad", remove=True, data="d", tokenizer="t")
    assert command_for(spaced).startswith("rm -r 'my codes/x' && ")
    both = MissingArtifact.all_of("none is there", [codes, codes, tree])
    assert command_for(both) == f"{command_for(codes)} && {command_for(tree)}"
    assert explain(InputError("k is 0")) == "k is 0"


@pytest.mark.parametrize(
    ("place", "command"),
    [
        ("runs/llamagen-b/flat/seed3", "make train MODEL=llamagen-b HEAD=flat SEED=3"),
        ("runs/t/masc-on-kmeans/seed0", "make train MODEL=t HEAD=masc TREE=kmeans SEED=0"),
        ("elsewhere", "make train MODEL=... HEAD=... LOSS=... TREE=... SEED=..."),
    ],
)
def test_a_missing_run_is_told_with_the_command_that_trains_it(place, command):
    with tells(f"no run at {place} .*`{re.escape(command)}`"):
        _ = Run(Path(place)).config


def test_a_stage_ends_with_the_command_and_without_a_traceback(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["tree.py", f"artifacts={tmp_path}", "tokenizer_name=mine"])
    with pytest.raises(SystemExit) as caught:
        run_stage("tree", TreeStage, main)
    path = tmp_path / "mine" / "codebook.npz"
    assert caught.value.code == f"error: no codebook at {path}; type `make codebook TOKENIZER=mine`"


@pytest.mark.parametrize(
    ("code", "words"), [(errno.EROFS, "read-only"), (errno.EACCES, "permission denied"), (errno.EDQUOT, "quota")]
)
def test_an_answer_of_the_system_is_told_without_a_traceback(monkeypatch, tmp_path, code, words):
    def refuse(stage):
        raise OSError(code, os.strerror(code), "there")

    monkeypatch.setattr(sys, "argv", ["tree.py", f"artifacts={tmp_path}", "tokenizer_name=mine"])
    with pytest.raises(SystemExit, match=rf"^error: .*{words}.* \(there\); "):
        run_stage("tree", TreeStage, refuse)


@dataclass(kw_only=True)
class Empty:
    """A config without keys, composed from a file that holds none."""


@pytest.fixture
def ended(monkeypatch, capsys):
    """Runs a stage whose function raises an error; returns how the process ends."""

    def end(error: BaseException):
        monkeypatch.setattr(sys, "argv", ["stage.py"])
        monkeypatch.setattr("stage.load_config", lambda *arguments: Empty())

        def fail(config):
            raise error

        with pytest.raises(SystemExit) as caught:
            run_stage("empty", Empty, fail)
        return caught.value.code

    return end


@pytest.mark.parametrize("number", sorted(set(errno.errorcode) - {errno.EPIPE, errno.ESHUTDOWN}))
def test_every_error_of_the_system_is_one_line_with_its_path(ended, number):
    said = ended(OSError(number, os.strerror(number), "/some/place"))
    assert said.startswith("error: ") and "\n" not in said
    assert "/some/place" in said or number == errno.EFBIG


def test_a_full_memory_is_one_line(ended):
    assert ended(MemoryError("Unable to allocate 2 TiB")).startswith("error: the memory is full (Unable to allocate")
    assert ended(torch.OutOfMemoryError("CUDA out of memory.\nTried 2 GiB")).count("\n") == 0


def test_an_interrupt_and_a_closed_pipe_are_no_tracebacks(ended, monkeypatch):
    monkeypatch.setattr("os.dup2", lambda *arguments: None)
    assert "interrupted; the same command continues" in ended(KeyboardInterrupt())
    assert ended(BrokenPipeError(errno.EPIPE, "Broken pipe")) == 1


def test_a_training_that_saved_and_stopped_has_a_status_of_its_own(ended, capsys):
    assert ended(Stopped("stopped at step 5")) == EXIT_STOPPED
    assert capsys.readouterr().err == "stopped at step 5\n"


@pytest.mark.parametrize(
    ("words", "place", "called"),
    [
        ([], {}, ["prepare", "function"]),
        (["--check"], {"LOCAL_WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "1"}, ["prepare", "check"]),
        ([], {"LOCAL_RANK": "1"}, ["function"]),
        (["tree=bogus"], {}, []),
    ],
)
def test_inputs_are_prepared_once_and_only_for_a_sound_config(monkeypatch, words, place, called):
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["tree.py", *words])
    found, names = [], ("function", "prepare", "check")
    with contextlib.suppress(SystemExit):
        run_stage("tree", TreeStage, *(lambda _, name=name: found.append(name) for name in names))
    assert found == called


def test_a_machine_without_a_gpu_for_each_process_is_named(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    with pytest.raises(InputError, match=r"GPUS=64, but this machine has .*LAUNCH_DEVICE=--cpu to start 64 processes"):
        check_machine()


def test_gpus_that_cannot_send_to_each_other_are_told_before_accelerate_refuses_them(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("accelerate.utils.check_cuda_p2p_ib_support", lambda: False)
    with pytest.raises(InputError, match="set NCCL_P2P_DISABLE=1 and NCCL_IB_DISABLE=1"):
        check_machine()
    for name in ("NCCL_P2P_DISABLE", "NCCL_IB_DISABLE"):
        monkeypatch.setenv(name, "1")
    check_machine()


def test_a_bug_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["stage.py"])
    monkeypatch.setattr("stage.load_config", lambda *arguments: Empty())
    with pytest.raises(KeyError):
        run_stage("empty", Empty, lambda config: {}["missing"])


def scripts_and_what_they_import(root):
    for file in (root / "scripts").glob("*.py"):
        tree = ast.parse(file.read_text())
        yield file, [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]


def test_each_script_first_imports_what_pins_the_environment(root):
    """Directly, or through another script: before torch, and before the packages that PYTHONPATH could hide."""
    names = {file.stem for file in (root / "scripts").glob("*.py")}
    for file, nodes in scripts_and_what_they_import(root):
        modules = [getattr(node, "module", None) or node.names[0].name for node in nodes]
        others = [name for name in modules if name.partition(".")[0] not in sys.stdlib_module_names]
        assert not others or others[0] in names or file.stem == "start", file


def test_a_package_on_pythonpath_replaces_none(root, tmp_path):
    for name in ("masc", "vq", "metrics", "llamagen", "reports", "numpy", "hydra", "stage"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('a foreign package')")
    (tmp_path / "my_tokenizer.py").touch()
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    code = (
        "import sys; sys.path[0] = 'scripts'; import jobs, stage, vq, metrics, llamagen, reports, numpy, my_tokenizer"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_tree_that_is_kept_although_a_coarser_end_was_asked_for_says_so(tmp_path, capsys):
    vectors = np.random.default_rng(0).normal(size=(16, 2)).astype(np.float32)
    Codebook.save(tmp_path / "emoji32" / "codebook.npz", vectors, {}, {})
    for more in ([], ["tree.coarsest=4"]):
        main(load_config("tree", TreeStage, [f"artifacts={tmp_path}", "head.num_clusters=8", *more]))
        kept = (
            "kept, because it reaches 1 cluster(s) and so holds what tree.coarsest asks for" in capsys.readouterr().out
        )
        assert kept == bool(more)


def test_target_script_and_config_of_a_stage_have_one_name(root):
    stages = {}
    for file in (root / "scripts").glob("*.py"):
        found = re.search(r'run_stage\("([a-z_]+)"', file.read_text())
        stages |= {file.stem: found[1]} if found else {}
    assert stages.pop("plan") == "train"  # a plan is made for the config of a training
    assert all(name == stage for name, stage in stages.items())
    assert {file.stem for file in CONFIGS.glob("*.yaml")} == set(stages)
    recipes = re.findall(r"^([a-z-]+):.*## .*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    started = {target: set(re.findall(r"scripts/([a-z_]+)\.py", recipe)) for target, recipe in recipes}
    assert started.pop("plan") == {"plan"}
    assert started.pop("setup") == {"install"}  # it makes what the others import
    # The replacement test is one part of what eval_tokenizer measures.
    assert started.pop("eval-replacement") == {"eval_tokenizer"}
    assert {target: names for target, names in started.items() if names} == {
        name.replace("_", "-"): {name} for name in stages
    }


def test_what_a_file_holds_cannot_command_the_terminal(monkeypatch, capsys):
    def stage(config):
        logging.getLogger("hostile").warning("skipped %s", "a\x1b[2J")
        raise InputError("found '\x1b]0;title\x07' and \u202e and \udcff\nin a file")

    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(sys, "argv", ["tree.py"])
    with pytest.raises(SystemExit) as caught:
        run_stage("tree", TreeStage, stage)
    assert caught.value.code == "error: found '\\x1b]0;title\\x07' and \\u202e and \\udcff\nin a file"
    assert "skipped a\\x1b[2J\n" in capsys.readouterr().err
