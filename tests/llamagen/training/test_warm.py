"""Runs that start from the weights of another run or of a release, and runs that train a part of their parameters."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from run_rows import losses
from safetensors.torch import load_file

from llamagen.model import build_model
from llamagen.release import Release
from llamagen.runs import Run
from llamagen.train import train
from llamagen.training.checkpoint import weights_file
from llamagen.training.warm import STATES
from masc.build import TreeConfig, make_tree
from masc.layout import Layout
from masc.runtime.artifacts import Codebook
from masc.runtime.codes import save_codes
from masc.runtime.errors import InputError
from masc.runtime.targets import NAMED


@pytest.fixture(autouse=True)
def few_states(monkeypatch):
    monkeypatch.setattr("llamagen.training.warm.STATES", 576)


def weights(run_dir):
    return load_file(weights_file(run_dir))


def first_nats(run_dir):
    return losses(run_dir)[0]["val/nats_per_token"]


def made_of(run_dir):
    return json.loads((run_dir / "init.json").read_text())


@pytest.mark.parametrize(("head", "more"), [("flat", ()), ("tree-shared", ()), ("masc", ("head.num_clusters=24",))])
def test_a_head_that_can_be_the_flat_model_starts_as_it(warm, trained, head, more):
    directory = train(warm(head, "flat", "steps=2", *more))
    assert first_nats(directory) == pytest.approx(losses(trained["flat"])[-1]["val/nats_per_token"], abs=1e-5)
    record = made_of(directory)
    assert record["left out"] == [] and set(record["parameters"].values()) <= {"copied", "new"}
    assert {name for name, how in record["parameters"].items() if how == "new"} <= {
        "head.shared",
        "backbone.tok_embeddings.shared",
    }


@pytest.mark.parametrize(
    "head",
    [
        "masc",
        "masc-two-level",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("masc-tree", "masc-frequency")),
    ],
)
def test_a_warm_run_starts_below_a_cold_one(warm, small_run, tmp_path, head, caplog):
    caplog.set_level("INFO")
    settings = "steps=2", "diagnostics=false", *(("head.levels=[5,12]",) if head == "masc-tree" else ())
    config = warm(head, "flat", *settings)
    cold = train(small_run(f"head={head}", *settings, f"run_dir={tmp_path / 'cold'}"))
    directory = train(config)
    assert first_nats(directory) < first_nats(cold) - 0.1
    assert "fitted" in made_of(directory)["parameters"]["head.output.weight"]
    assert "  copied " in caplog.text and "backbone.layers" in caplog.text and "initial weights" not in caplog.text
    assert Run(directory).provenance.parents["initial weights"] == made_of(directory)["sha256"]


def test_what_a_head_does_not_take_is_said(warm, caplog):
    caplog.set_level("INFO")
    record = made_of(train(warm("adaptive", "flat", "steps=2")))
    assert record["left out"] == ["head.output.weight"] and record["parameters"]["head.output.head.weight"] == "new"
    assert "left out  head.output.weight" in caplog.text


def test_clusters_in_the_context_start_as_the_mean_of_their_tokens(warm, trained):
    directory = train(warm("masc", "flat", "steps=2", "frozen=[backbone]"))
    tables = [weights(path)["backbone.tok_embeddings.weight"] for path in (trained["flat"], directory)]
    cluster_of = Run(directory).inputs.tree.cut(12).cluster_of
    for cluster in range(12):
        torch.testing.assert_close(tables[0][np.flatnonzero(cluster_of == cluster)].mean(0), tables[1][cluster])


def test_a_run_can_be_sampled_where_its_initial_weights_are_gone(warm, trained, tmp_path):
    directory = train(warm("masc", "flat", "steps=2"))
    file = directory / "config.yaml"
    file.write_text(file.read_text().replace(str(trained["flat"]), str(tmp_path / "gone")))
    assert Run(directory).config.init == str(tmp_path / "gone")
    Run(directory).load_model()


def test_a_release_starts_a_run_on_other_classes_from_its_null_class(small_run, tiny_release, tmp_path, monkeypatch):
    layout, rng = Layout(tmp_path / "artifacts", "vq"), np.random.default_rng(0)
    codebook = Codebook.save(layout.codebook, rng.standard_normal((256, 4)).astype(np.float32), {}, {})
    for split in ("train", "val"):
        tokens, labels = rng.integers(0, 256, (20, 2, 16)), np.arange(20) % 3
        where, names = layout.codes("twemoji", split), ["a", "b", "c"]
        save_codes(where, tokens, labels, np.arange(20), names, [], 256, codebook.meta.sha256, {})
    tree = TreeConfig(name="masc", method="linkage")
    make_tree(tree, codebook, 128, layout.tree(tree, 128))
    monkeypatch.setitem(NAMED, "release", {"c2i_tiny": tiny_release}.get)
    settings = ["head=masc", "init=c2i_tiny", "tokenizer_name=vq", f"artifacts={tmp_path / 'artifacts'}", "steps=2"]
    config = small_run(*settings, "frozen=[backbone]", "diagnostics=false")
    config.model = tiny_release.model
    directory, name = train(config), "backbone.cls_embedding.embedding_table.weight"
    table = Release(tiny_release, tmp_path).load_model().state_dict()[name]
    assert torch.equal(weights(directory)[name], table[-1:].expand(4, -1))
    assert made_of(directory)["parameters"][name] == "row of the null class"
    assert made_of(directory)["parameters"]["head.output.weight"] == "fitted"


def test_a_refinement_is_trained_on_a_frozen_masc_run(warm, trained):
    small = "head.width=16", "head.num_heads=2"
    directory = train(warm("masc-refine", "masc", "frozen=[backbone,head.output]", "ema_decay=0.9", *small))
    there, here = weights(trained["masc"]), weights(directory)
    assert all(torch.equal(value, here[name]) for name, value in there.items())
    averaged = load_file(weights_file(directory, averaged=True))
    assert all(torch.equal(there[name], averaged[name]) for name in there if name in averaged)
    assert not torch.equal(here["head.member_rows.weight"], torch.zeros_like(here["head.member_rows.weight"]))
    first, *_, last = losses(directory)
    assert first["val/level_0_nats"] == last["val/level_0_nats"]
    assert first["val/level_0_nats"] == pytest.approx(losses(trained["masc"])[-1]["val/level_0_nats"], abs=1e-5)
    assert last["val/level_1_nats"] < first["val/level_1_nats"]


def test_a_partly_frozen_run_resumes_as_the_unbroken_one(small_run, tmp_path, dies):
    settings = "head=masc", "frozen=[backbone.layers.0,backbone.tok_embeddings]", "ema_decay=0.9"
    unbroken = train(small_run(*settings, f"run_dir={tmp_path / 'a'}"))
    config = small_run(*settings, f"run_dir={tmp_path / 'b'}")
    dies(config, 7, KeyboardInterrupt)
    train(config)
    assert losses(unbroken) == losses(tmp_path / "b")
    inputs = Run(unbroken).inputs
    first = build_model(config.model, config.head, inputs.shape, inputs.tree, config.seed).state_dict()
    kept = {name for name, value in weights(unbroken).items() if torch.equal(value, first[name])}
    assert kept == {name for name in first if name.startswith(("backbone.layers.0.", "backbone.tok_embeddings."))}
    with pytest.raises(InputError, match=r"frozen: \['backbone.layers.0', 'backbone.tok_embeddings'\] there, \[\] now"):
        train(small_run("head=masc", "ema_decay=0.9", f"run_dir={tmp_path / 'b'}"))


@pytest.mark.parametrize(
    ("frozen", "words"),
    [
        ("[backbone.layer]", r"frozen=backbone.layer is the name of no parameter; .*backbone.layers, .*head.output"),
        ("[backbone.layers.0,backbone.layers.7]", "frozen=backbone.layers.7 is the name of no"),
        ("[backbone,head]", r"frozen=\['backbone', 'head'\] leaves nothing to train"),
    ],
)
def test_frozen_names_are_checked_before_anything_is_written(small_run, frozen, words):
    config = small_run("head=masc", f"frozen={frozen}")
    with pytest.raises(InputError, match=words):
        train(config)
    assert not config.directory.exists()


@pytest.mark.slow
def test_two_processes_start_warm_as_one(warm, overrides, trained, tmp_path, root, monkeypatch):
    monkeypatch.setattr("llamagen.training.warm.STATES", STATES)  # as the processes have it
    one = losses(train(warm("masc", "flat", "micro_batches=2")))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    settings = f"init={trained['flat']}", "diagnostics=false", f"run_dir={tmp_path / 'two'}"
    done = subprocess.run(
        [*launch, "scripts/train.py", *overrides, "head=masc", *settings],
        cwd=root,
        env=os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for a, b in zip(one, losses(tmp_path / "two"), strict=True):
        for key in ("val/nats_per_token", "train/nats_per_token"):
            assert a.get(key) == pytest.approx(b.get(key), abs=2e-4), key
