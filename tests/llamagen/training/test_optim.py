"""Which optimizer trains which parameter, and steps that are left out."""

import pytest
import torch
from torch import nn

from llamagen.backbones.base import DataShape
from llamagen.backbones.config import ModelConfig
from llamagen.model import build_model
from llamagen.training.optim import OptimConfig, SkippingMuon, build_optimizers
from masc.heads.config import FlatConfig

SMALL = {"name": "small", "dim": 32, "num_layers": 2, "num_heads": 4, "multiple_of": 16}


def small_model():
    shape = DataShape(num_tokens=24, num_classes=3, num_positions=9)
    return build_model(ModelConfig(**SMALL), FlatConfig(name="flat"), shape, None, seed=0)


def names_of(optimizer, model):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]}


def test_muon_trains_the_matrices_of_the_blocks_and_adamw_the_rest():
    model = small_model()
    model.backbone.layers[1].requires_grad_(False)
    muon, adamw = build_optimizers(model, OptimConfig(kind="muon", table_scale=4.0), fused=True)
    block = "backbone.layers.0"
    matrices = {"attention.wqkv", "attention.wo", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3"}
    assert names_of(muon, model) == {f"{block}.{matrix}.weight" for matrix in matrices}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert names_of(adamw, model) == trained - names_of(muon, model)
    assert {group["scale"] for group in muon.param_groups} == {1.0}


@pytest.mark.parametrize(("frozen", "kinds"), [("backbone.layers", ["AdamW"]), ("", ["SkippingMuon", "AdamW"])])
def test_an_optimizer_without_parameters_is_left_out(frozen, kinds):
    model = small_model()
    if frozen:
        model.get_submodule(frozen).requires_grad_(False)
    optimizers = build_optimizers(model, OptimConfig(kind="muon"), fused=False)
    assert [type(optimizer).__name__ for optimizer in optimizers] == kinds


def matrix_and_gradients():
    generator = torch.Generator().manual_seed(0)
    first, *gradients = (torch.randn(8, 4, generator=generator) for _ in range(4))
    return first, gradients


def test_a_step_that_is_not_left_out_is_that_of_muon():
    first, gradients = matrix_and_gradients()
    ours, theirs = nn.Parameter(first.clone()), nn.Parameter(first.clone())
    optimizers = [kind([each], lr=0.1) for kind, each in ((SkippingMuon, ours), (torch.optim.Muon, theirs))]
    optimizers[0].found_inf = torch.zeros(())
    for gradient in gradients:
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(ours, theirs) and not torch.equal(ours, first)


@pytest.mark.parametrize("when", [0, 2])
def test_a_step_left_out_changes_neither_weights_nor_momentum(when):
    first, gradients = matrix_and_gradients()
    found = {}
    for kept in (gradients, [*gradients[:when], torch.full((8, 4), torch.nan), *gradients[when:]]):
        matrix = nn.Parameter(first.clone())
        optimizer = SkippingMuon([matrix], lr=0.1)
        for gradient in kept:
            matrix.grad, optimizer.found_inf = gradient.clone(), (~gradient.isfinite().all()).float()
            optimizer.step()
        found[len(kept)] = matrix.detach(), optimizer.state[matrix]["momentum_buffer"]
    for unbroken, skipped in zip(*found.values(), strict=True):
        assert torch.equal(unbroken, skipped)


@pytest.mark.parametrize("values", [{"kind": "sgd"}, {"momentum": 1.0}])
def test_an_unknown_optimizer_is_refused(values):
    with pytest.raises(ValueError, match="adamw or muon"):
        OptimConfig(**values)


def test_muon_lowers_the_loss():
    model, tokens, labels = small_model(), torch.arange(36).view(4, 9) % 24, torch.arange(4) % 3
    optimizers = build_optimizers(model.eval(), OptimConfig(kind="muon", learning_rate=1e-2), fused=True)
    losses = []
    for _ in range(20):
        loss = -model(tokens, labels).sum(-1).mean()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
