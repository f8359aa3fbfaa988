"""Diagnostics: what they say of a head, that the spread of gradients is its definition, and that training is blind."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from head_cases import HEADS_TO_TEST, TREES, D, draw, head_of, hidden, new_head
from run_rows import losses
from safetensors.torch import load_file

from llamagen.model import build_model
from llamagen.train import train
from llamagen.training import diagnostics
from llamagen.training.checkpoint import weights_file
from llamagen.training.diagnostics import INSPECTED, MICRO_BATCH, MICRO_BATCHES, Inspect, Inspection, gradient_spread
from llamagen.training.inputs import load_inputs
from masc.heads import losses as head_losses
from masc.heads.base import Follow
from masc.runtime.streams import Purpose, random_stream
from reports.runs import RunRecord

every_case = pytest.mark.parametrize(("kind", "tree"), [(head, tree) for head in HEADS_TO_TEST for tree in TREES])
NAMES = ("val/accuracy", "val/entropy", "val/used_choices", "val/gradient_variance", "val/gradient_noise")


class Logits(Follow):
    """A pick that keeps the learned logits of every decision, or None."""

    def __call__(self, logits):
        self.kept.append(logits)
        return self.path[len(self.kept) - 1]

    def uniform(self, sizes):
        return self(None)


@every_case
@torch.no_grad()
def test_a_decision_is_inspected_by_its_possible_choices(kind, tree):
    head = head_of(kind, tree)
    tokens = torch.arange(head.num_tokens)
    path, h = head.path(tokens), hidden(head.num_tokens)
    known = Logits(path)
    known.fixed = known.uniform
    draw(head, h, known)
    found = head.follow(h[:, None], tokens[:, None], Inspect)[:, 0]
    assert found.shape == (len(tokens), head.num_decisions, 4)
    for level, logits in enumerate(known.kept):
        for position, (choices, entropy, likeliest, given) in enumerate(found[:, level].tolist()):
            if logits is None:
                assert choices == 0
                continue
            possible = logits[position][logits[position] > -1e30].double()
            assert choices == len(possible)
            if choices > 1:
                p = possible.softmax(0)
                assert entropy == pytest.approx(-(p * p.log()).sum().item() / np.log(choices), abs=1e-5)
                assert likeliest == logits[position].argmax() and given == path[level, position]


@every_case
@torch.no_grad()
def test_a_new_head_has_full_entropy(kind, tree):
    head = new_head(kind, tree)
    tokens = torch.arange(head.num_tokens)
    choices, entropy, *_ = head.follow(hidden(len(tokens))[:, None], tokens[:, None], Inspect).unbind(-1)
    torch.testing.assert_close(entropy[choices > 1], torch.ones(int((choices > 1).sum())))
    assert (entropy[choices <= 1] == 0).all()


@pytest.mark.parametrize("kind", HEADS_TO_TEST)
@torch.no_grad()
def test_chunks_do_not_change_what_is_inspected(kind, monkeypatch):
    head, tokens = head_of(kind, "average linkage"), torch.arange(24).view(4, 6)
    whole = head.follow(hidden(24).view(4, 6, D), tokens, Inspect)
    monkeypatch.setattr(head_losses, "WHOLE", 0)
    monkeypatch.setattr(head_losses, "CHUNK", 300)
    torch.testing.assert_close(head.follow(hidden(24).view(4, 6, D), tokens, Inspect), whole)


def test_few_images_are_inspected_and_they_are_spread():
    assert Inspection(3).rows.tolist() == [0, 1, 2]
    rows = Inspection(50_000).rows
    assert len(rows) == INSPECTED and rows[0] == 0 and set(np.diff(rows)) == {195, 196}


def test_the_metrics_are_those_of_the_images_whatever_the_batch():
    head, images = head_of("flat", "average linkage"), 10
    tokens = torch.arange(images * 4).view(images, 4)
    states = hidden(images * 4).view(images, 4, D)
    logits = head.output(states)
    p = logits.softmax(-1)
    expected = {
        "accuracy": (logits.argmax(-1) == tokens).double().mean().item(),
        "entropy": (torch.special.entr(p).sum(-1).mean() / np.log(head.num_tokens)).item(),
    }
    for size in (10, 3):
        inspection = Inspection(images)
        for rows in np.split(np.arange(images), range(size, images, size)):
            inspection(head, rows, states[rows], tokens[rows])
        row = inspection.metrics(Accelerator(cpu=True), 4, 1)
        assert row.pop("val/used_choices") == len(logits.argmax(-1).unique()) / head.num_tokens
        counts = [np.bincount(each.flatten(), minlength=head.num_tokens) for each in (logits.argmax(-1), tokens)]
        assert np.array_equal(inspection.histogram, counts)
        assert row == pytest.approx({f"val/{at}{name}": expected[name] for at in ("", "level_0_") for name in expected})


SMALL = {"ctf": ["head.width=8", "head.num_heads=2", "head.num_layers=1"]}


@pytest.mark.parametrize("head", ["flat", "masc-two-level", "masc-tree", "ctf"])
def test_the_spread_of_gradients_is_its_definition(small_run, head, monkeypatch):
    config = small_run(f"head={head}", *SMALL.get(head, []))
    inputs = load_inputs(config)
    model = build_model(config.model, config.head, inputs.shape, inputs.tree, 0, inputs.counts)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    model.backbone.requires_grad_(head != "masc-tree")  # a frozen part does not count
    model.train()
    state = torch.get_rng_state()
    found = gradient_spread(Accelerator(cpu=True), model, inputs, 3)
    assert torch.equal(state, torch.get_rng_state()) and model.training
    assert all(parameter.grad is None for parameter in model.parameters())

    model.eval()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    images = random_stream(3, Purpose.GRADIENTS).integers(inputs.train.num_images, size=(MICRO_BATCHES, MICRO_BATCH))
    gradients = []
    for rows in images:
        tokens = torch.from_numpy(inputs.train.tokens[rows, 0].astype(int))
        loss = -model(tokens, *inputs.conditions["train"].batch(rows)).sum(-1).mean()
        parts = torch.autograd.grad(loss, parameters, materialize_grads=True)
        gradients.append(torch.cat([part.flatten() for part in parts]).double())
    mean = torch.stack(gradients).mean(0)
    apart = sum((each - mean).square().sum().item() for each in gradients)
    expected = {"variance": apart / (MICRO_BATCHES - 1), "noise": apart / MICRO_BATCHES / mean.square().sum().item()}
    expected = pytest.approx({f"val/gradient_{name}": value for name, value in expected.items()}, rel=1e-4)
    assert found == expected and found["val/gradient_noise"] > 0.1
    monkeypatch.setattr(head_losses, "WHOLE", 0)
    monkeypatch.setattr("masc.heads.masc.WHOLE", 0)
    assert gradient_spread(Accelerator(cpu=True), model, inputs, 3) == expected


def test_equal_gradients_have_no_spread_and_gradients_of_zero_no_noise(small_run, monkeypatch):
    config = small_run("head=masc", "head.num_clusters=1", "model.class_dropout=0")
    inputs = load_inputs(config)
    model = build_model(config.model, config.head, inputs.shape, inputs.tree, 0)
    assert gradient_spread(Accelerator(cpu=True), model, inputs, 0) == {"val/gradient_variance": 0}

    class One:
        def integers(self, _, size):
            return np.zeros(size, int)

    monkeypatch.setattr(diagnostics, "random_stream", lambda *_: One())
    config = small_run("head=flat")
    model = build_model(config.model, config.head, inputs.shape, None, 0)
    assert gradient_spread(Accelerator(cpu=True), model, inputs, 0) == pytest.approx(
        {"val/gradient_variance": 0, "val/gradient_noise": 0}, abs=1e-5
    )


def weights(directory):
    return load_file(weights_file(directory))


def test_a_training_is_the_same_with_and_without_diagnostics(small_run, tmp_path, dies):
    blind = train(small_run("head=masc-two-level", "diagnostics=false", f"run_dir={tmp_path / 'blind'}"))
    seeing = train(small_run("head=masc-two-level", f"run_dir={tmp_path / 'seeing'}"))
    resumed = small_run("head=masc-two-level", f"run_dir={tmp_path / 'resumed'}")
    dies(resumed, 7, KeyboardInterrupt)
    train(small_run("head=masc-two-level", "diagnostics=false", f"run_dir={tmp_path / 'resumed'}"))
    expected = weights(blind)
    for other in (seeing, resumed.directory):
        found = weights(other)
        assert all(torch.equal(expected[name], found[name]) for name in expected)
        for a, b in zip(losses(blind), losses(other), strict=True):
            assert b.items() >= a.items()
    last = losses(seeing)[-1]
    assert set(last) >= {*NAMES, *(f"val/level_{level}_{what}" for level in (0, 1) for what in ("accuracy", "entropy"))}
    assert not set(NAMES) & set(losses(blind)[-1])
    assert RunRecord.load(seeing).histogram.shape == (2, 12) and RunRecord.load(blind).histogram is None


def test_a_decision_that_is_not_learned_has_no_accuracy(small_run):
    last = losses(train(small_run("head=masc", "steps=6", "optim.learning_rate=0.01")))[-1]
    assert last["val/level_0_accuracy"] == last["val/accuracy"] > 1 / 12
    assert last["val/level_0_entropy"] == last["val/entropy"] < 1 and 0 < last["val/used_choices"] <= 1
    assert "val/level_1_accuracy" not in last and "val/level_1_nats" in last
