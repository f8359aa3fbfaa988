"""Each head of configs/head against tests/data/heads: its parameters, and its losses in 20 steps on real codes.

    PYTHONPATH=scripts:tests .venv/bin/python tests/llamagen/test_head_records.py

writes both records again, when a change of names, shapes or numbers is meant.

Losses are compared to one part in ten thousand. Other CPUs round differently: with the instructions of older ones
(ATEN_CPU_CAPABILITY, MKL_CBWR, ONEDNN_MAX_CPU_ISA) and with two threads the losses moved by at most two parts in a
million. First weights that are 5% larger move them by 1.2 to 9 parts in ten thousand, a learning rate that is 1% higher
by 5."""

import json
from dataclasses import fields, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from stage import CONFIGS, named_config

from llamagen.backbones.base import DataShape
from llamagen.backbones.config import ModelConfig
from llamagen.model import build_model
from llamagen.training.optim import OptimConfig, build_optimizers
from masc.linkage import average_linkage
from masc.runtime.files import write_json
from masc.tree import Tree

RECORDS = Path(__file__).resolve().parents[1] / "data" / "heads"
HEADS = sorted(file.stem for file in (CONFIGS / "head").glob("*.yaml"))
STEPS, BATCH = 20, 16
SMALL = ModelConfig(
    name="small", dim=32, num_layers=2, num_heads=4, token_dropout=0.0, residual_dropout=0.0, ffn_dropout=0.0
)
config_of = cache(named_config)
NARROW = {"width": 32, "num_heads": 4, "num_layers": 2, "dropout": 0.0}


def load_data():
    """Codes (96, 64) and labels of training images, MASC's tree, and counts of the tokens."""
    with np.load(RECORDS / "emoji32.npz") as file:
        codes, labels = file["codes"].astype(np.int64), file["labels"].astype(np.int64)
        tree = Tree(average_linkage(file["codebook"]).merges)
    counts = np.bincount(codes.flatten(), minlength=tree.num_tokens)
    return torch.from_numpy(codes), torch.from_numpy(labels), tree, counts


@pytest.fixture(scope="module")
def data():
    return load_data()


def model_of(name, model, data, **changes):
    """The model of a head; `changes` are for the settings that the head has."""
    codes, _, tree, counts = data
    head = config_of("head", name)
    own = {field.name for field in fields(head)}
    head = replace(head, **{key: value for key, value in changes.items() if key in own})
    return build_model(model, head, DataShape(tree.num_tokens, 9, codes.shape[1]), tree, 0, counts)


def parameters(name, data):
    """Shapes by name of a head on llamagen-tiny, nothing allocated."""
    with torch.device("meta"):
        model = model_of(name, config_of("model", "llamagen-tiny"), data)
    return {key: " x ".join(map(str, parameter.shape)) for key, parameter in model.named_parameters()}


def losses(name, data):
    """Nats per token of each step."""
    codes, labels, *_ = data
    model = model_of(name, SMALL, data, **NARROW)
    (optimizer,) = build_optimizers(model, OptimConfig(learning_rate=2e-3), fused=False)
    found = []
    for step in range(STEPS):
        images = torch.arange(step * BATCH, (step + 1) * BATCH) % len(codes)
        loss = -model(codes[images], labels[images]).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(round(loss.item(), 5))
    return found


def read(name):
    return json.loads((RECORDS / f"{name}.json").read_text())


def test_every_head_has_its_records():
    assert sorted(read("losses")) == HEADS
    assert sorted(read("parameters")) == sorted([*HEADS, "all"])


@pytest.mark.parametrize("name", HEADS)
def test_the_parameters_of_a_head_keep_their_names_and_shapes(name, data):
    recorded = read("parameters")
    assert parameters(name, data) == recorded["all"] | recorded[name], "checkpoints would no longer load"


@pytest.mark.parametrize("name", HEADS)
def test_the_first_losses_of_a_head_are_those_on_record(name, data):
    np.testing.assert_allclose(losses(name, data), read("losses")[name], rtol=1e-4)


def write_records():
    """Write both records; what all heads share is in `all`."""
    torch.set_num_threads(1)
    data = load_data()
    found = {name: parameters(name, data) for name in HEADS}
    shared = dict(found["flat"].items())
    for each in found.values():
        shared = {key: shape for key, shape in shared.items() if each.get(key) == shape}
    rest = {name: {key: shape for key, shape in each.items() if key not in shared} for name, each in found.items()}
    write_json(RECORDS / "parameters.json", {"all": shared, **rest})
    write_json(RECORDS / "losses.json", {name: losses(name, data) for name in HEADS})


if __name__ == "__main__":
    write_records()
