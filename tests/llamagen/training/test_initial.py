"""What a run may start from: weights of which every number means the same in the run."""

import json
import re
import shutil
from dataclasses import replace

import pytest
from run_rows import losses
from safetensors.torch import load_file, save_file
from tiny_artifacts import make_artifacts
from user_errors import tells

from llamagen.model import build_model
from llamagen.runs import Run
from llamagen.train import check_run, train
from llamagen.training.checkpoint import weights_file
from llamagen.training.initial import open_initial
from llamagen.training.inputs import load_inputs
from masc.runtime.errors import InputError
from masc.runtime.files import save_safetensors
from masc.runtime.targets import NAMED
from vq.readers.imagenet import wnids


@pytest.fixture
def untrained(small_run, tmp_path):
    """Makes a run of a head at its first weights, as another run can start from it."""

    def run(*settings):
        config = small_run(*settings, f"run_dir={tmp_path / 'there'}")
        inputs = load_inputs(config)
        config.open_directory(inputs.parents)
        model = build_model(config.model, config.head, inputs.shape, inputs.tree, 0, inputs.counts)
        (config.directory / "checkpoints/last").mkdir(parents=True)
        save_safetensors(config.directory / "checkpoints/last/model.safetensors", model.state_dict())
        return config

    return run


SMALL = "head.width=32", "head.num_heads=2"
REFINE, CTF = ("head=masc-refine", *SMALL), ("head=ctf", *SMALL, "head.num_layers=1")
SUBTOKEN = ("head=subtoken", *SMALL)


@pytest.mark.parametrize(
    ("there", "now"),
    [
        (("head=masc",), ("head=masc", "head.num_clusters=12")),
        (("head=masc",), ("head=masc-frequency",)),
        (("head=masc",), REFINE),
        (("head=masc",), CTF),
        (REFINE, (*REFINE, "head.dropout=0")),
        (("head=masc-tree", "head.levels=[5,12]"), ("head=masc-tree",)),
        (("head=tree-shared",), ("head=tree-shared",)),
        (("head=adaptive",), ("head=adaptive",)),
    ],
)
def test_a_head_starts_from_one_whose_parameters_mean_the_same(untrained, small_run, there, now):
    check_run(small_run(*now, f"init={untrained(*there).directory}"), 1)


@pytest.mark.parametrize(
    ("there", "now", "words"),
    [
        (
            ("head=masc-two-level",),
            ("head=masc-tree", "head.levels=[12]"),
            "head: 'masc-two-level' there, 'masc-tree' now",
        ),
        (("head=masc-tree", "head.levels=[12]"), ("head=masc-two-level",), "head: 'masc-tree' there, 'masc-two-l"),
        (
            ("head=masc", "head.num_clusters=6"),
            (*SUBTOKEN, "head.num_clusters=6", "head.context=cluster"),
            "head: 'masc' there, 'subtoken' now",
        ),
        (("head=masc",), ("head=masc-two-level", "head.context=cluster"), "head: 'masc' there, 'masc-two-level' now"),
        (("head=masc", "head.context=token"), REFINE, "head.context: 'token' there, 'cluster' now"),
        (("head=masc", "head.num_clusters=10"), CTF, r"head's cuts: \[10\] there, \[12\] now"),
        (REFINE, ("head=masc",), "head: 'masc-refine' there, 'masc' now"),
        (REFINE, CTF, "head: 'masc-refine' there, 'ctf' now"),
        (REFINE, (*REFINE, "head.num_heads=4"), "head.num_heads: 2 there, 4 now"),
        (("head=bits",), ("head=bits-chain",), "head.chain: False there, True now"),
        (("head=masc-binary",), ("head=masc-tree", "head.levels=[12]"), "head.balanced: True there, False now"),
        (("head=adaptive",), ("head=adaptive", "head.div_value=2"), "head.div_value: 4.0 there, 2.0 now"),
        (("head=tree-shared",), ("head=flat",), "head: 'tree-shared' there, 'flat' now"),
    ],
)
def test_a_head_whose_parameters_mean_something_else_is_refused(untrained, small_run, there, now, words):
    with tells(words):
        check_run(small_run(*now, f"init={untrained(*there).directory}"), 1)


@pytest.mark.parametrize("are_there", [True, False])
def test_a_run_over_other_grids_or_tokens_is_refused(untrained, small_run, tmp_path, are_there):
    other = f"artifacts={make_artifacts(tmp_path / 'other', grid=4)}", "data.resolution=64"
    there = untrained("head=adaptive", *other)
    words = "sha256 of the train codes: '.*' there, '.*' now"
    if are_there:
        words += "\n  tokens an image: 16 there, 9 now"
    else:
        shutil.rmtree(tmp_path / "other")
        words = f"data.resolution: 64 there, 32 now\n  {words}"
    with tells(words):
        check_run(small_run("head=adaptive", f"init={there.directory}"), 1)


@pytest.mark.parametrize(
    ("name", "are_there", "words"),
    [
        ("class", True, None),
        ("kind", True, "copied by number; 9 of 9 have other names, as 'kind 0' there and 'class 0' now"),
        ("kind", False, "copied by number; the names of the classes of .*there are not known"),
    ],
)
def test_classes_of_other_names_are_said_to_be_copied_by_number(
    untrained, small_run, tmp_path, caplog, name, are_there, words
):
    there = untrained("head=flat", f"artifacts={make_artifacts(tmp_path / 'other', class_name=name)}")
    if not are_there:
        shutil.rmtree(tmp_path / "other")
    directory = train(small_run("head=flat", f"init={there.directory}", "steps=1", "diagnostics=false"))
    said = json.loads((directory / "init.json").read_text())["classes"]
    assert said is None if words is None else re.fullmatch(words, said) and said in caplog.text
    assert ("classes are" in caplog.text) == (words is not None)


def test_a_warm_run_is_resumed_without_its_initial_weights_and_not_with_others(
    warm, trained, tmp_path, monkeypatch, elsewhere, dies
):
    def at(name, *more):
        return warm("masc", "flat", "diagnostics=false", f"run_dir={tmp_path / name}", *more)

    unbroken = train(at("unbroken"))
    dies(at("same"), 7, KeyboardInterrupt)
    for name in ("null", "gone"):
        shutil.copytree(tmp_path / "same", tmp_path / name)
    again = {"same": at("same"), "null": at("null", "init=null"), "gone": at("gone", "init=runs/gone")}
    other = at("same", f"init={trained['masc']}")
    for attempt in (train, lambda config: check_run(config, 1)):
        with pytest.raises(InputError, match=r"sha256 of the initial weights: '.*' there, .* now"):
            attempt(other)
    monkeypatch.setattr("llamagen.train.start_warm", None)  # would fail
    for name, config in again.items():
        check_run(config, 1)
        assert losses(train(config)) == losses(unbroken)
        assert Run(tmp_path / name).is_trained(config)
    with pytest.raises(InputError, match="sha256 of the initial weights"):
        Run(tmp_path / "same").is_trained(other)


def test_initial_weights_are_asked_for_where_a_run_would_read_them_or_never_had_them(small_run, warm, elsewhere, dies):
    dies(warm("masc", "flat", "diagnostics=false"), 3, KeyboardInterrupt)  # before the first checkpoint
    with pytest.raises(InputError, match=r"sha256 of the initial weights: '.*' there, None now"):
        train(warm("masc", "flat", "diagnostics=false", "init=null"))
    with pytest.raises(InputError, match="init=runs/gone names neither"):
        train(warm("masc", "flat", "diagnostics=false", "init=runs/gone"))
    cold = train(small_run("head=flat", "steps=2", "log_every=1", "checkpoint_every=2", "diagnostics=false"))
    with pytest.raises(InputError, match="init=runs/gone names neither"):
        Run(cold).is_trained(small_run("head=flat", "steps=2", "init=runs/gone"))


@pytest.mark.parametrize(
    ("source", "head", "more", "words"),
    [
        ("flat", "masc", ["model.num_heads=2"], r"model.num_heads: 4 there, 2 now"),
        (
            "flat",
            "masc",
            ["model.dim=64", "model.num_layers=3"],
            r"model.dim: 32 there, 64 now\n  model.num_layers: 2 t",
        ),
        ("flat", "masc", ["model.class_dropout=0"], r"model has a null condition: True there, False now"),
        ("masc", "masc", ["tree=random"], r"sha256 of the tree: '.*' there, '.*' now"),
        ("masc", "masc", ["head.context=token"], r"head.context: 'cluster' there, 'token' now"),
        ("masc", "masc", ["head.num_clusters=10"], r"head's cuts: \[12\] there, \[10\] now"),
        ("masc", "flat", [], r"head: 'masc' there, 'flat' now"),
        ("flat", "masc", ["init=nonesuch"], r"init=nonesuch names neither a release .* nor a run .*c2i_B_256"),
        ("flat", "masc", ["init=runs/m/flat/seed7"], r"names neither .*make train MODEL=m HEAD=flat SEED=7"),
        ("flat", "masc", ["init=."], r"init=. names neither a release"),
        ("flat", "masc", ["init=''"], r"init= names neither a release"),
        ("flat", "masc", ["init=c2i_B_256"], r"no weights of c2i_B_256 at .*make weights NAME=c2i_B_256"),
    ],
)
def test_weights_that_do_not_fit_are_one_error_before_anything_is_written(warm, elsewhere, source, head, more, words):
    config = warm(head, source, *more)
    for attempt in (train, lambda config: check_run(config, 1)):
        with tells(words):
            attempt(config)
    assert not config.directory.exists()


def test_weights_of_another_codebook_and_damaged_weights_are_refused(warm, trained, tmp_path):
    other = tmp_path / "other"
    (other / "checkpoints/last").mkdir(parents=True)
    for name in ("config.yaml", "provenance.json"):
        shutil.copy(trained["flat"] / name, other / name)
    shutil.copy(weights_file(trained["flat"]), other / "checkpoints/last/model.safetensors")
    provenance = json.loads((other / "provenance.json").read_text())
    provenance["parents"]["codebook"] = "e" * 64
    (other / "provenance.json").write_text(json.dumps(provenance))
    with pytest.raises(InputError, match=r"sha256 of the codebook: 'eeeeeeeeeeee' there, '.*' now"):
        train(warm("masc", "flat", f"init={other}"))
    (other / "provenance.json").write_bytes((trained["flat"] / "provenance.json").read_bytes())
    for name in ("backbone.cls_embedding.embedding_table.weight", "backbone.norm.weight", "head.output.weight"):
        state = load_file(weights_file(trained["flat"]))
        del state[name]
        save_file(state, other / "checkpoints/last/model.safetensors")
        with pytest.raises(InputError, match=rf"model.safetensors has {name} \(missing\), and a run of masc needs \("):
            train(warm("masc", "flat", f"init={other}"))
    (other / "checkpoints/last/model.safetensors").write_bytes(b"\0" * 99)
    with pytest.raises(InputError, match=r"model.safetensors is truncated"):
        train(warm("masc", "flat", f"init={other}"))
    (other / "checkpoints/last/model.safetensors").unlink()
    with pytest.raises(InputError, match="no checkpoint in"):
        train(warm("masc", "flat", f"init={other}"))
    assert not warm("masc", "flat").directory.exists()


def test_a_damaged_provenance_is_told_with_what_to_do(small_run, untrained, warm, trained, tmp_path):
    there = untrained("head=flat").directory
    (there / "provenance.json").write_text("{")
    with tells(r"there/provenance.json.*; copy it back from where the run was trained$"):
        check_run(small_run("head=masc", f"init={there}"), 1)
    shutil.copytree(trained["masc"], tmp_path / "begun")
    (tmp_path / "begun/provenance.json").write_text("{")
    with tells(r"begun/provenance.json.*; copy it back, or choose another directory with RUN_DIR=...$"):
        check_run(warm("masc", "flat", f"run_dir={tmp_path / 'begun'}", "steps=20"), 1)


def test_the_classes_of_a_release_of_a_thousand_are_those_of_imagenet(tiny_release, monkeypatch):
    thousand = replace(tiny_release, num_classes=1000)
    monkeypatch.setitem(NAMED, "release", {"c2i_tiny": tiny_release, "c2i_1000": thousand}.get)
    assert open_initial("c2i_tiny").class_names is None
    assert open_initial("c2i_1000").class_names == list(wnids())


def test_a_release_is_taken_for_its_own_tokenizer_and_size_only(warm, tiny_release, monkeypatch):
    monkeypatch.setitem(NAMED, "release", {"c2i_tiny": tiny_release}.get)
    with pytest.raises(
        InputError,
        match=r"tokenizer: 'vq' there, 'emoji32' now\n  tokens: 256 there, 24 now\n  tokens an image: 16 there, 9 now",
    ):
        train(warm("masc", "flat", "init=c2i_tiny"))
