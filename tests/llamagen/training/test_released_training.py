"""The baseline of `make bench-train` computes what the released recipe does."""

import pytest
import torch

from llamagen.backbones.base import DataShape
from llamagen.backbones.config import ModelConfig
from llamagen.backbones.official import official_state
from llamagen.model import build_model
from masc.heads.config import FlatConfig


def test_the_stated_recipe_has_the_loss_and_the_gradient_of_our_flat_model(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    from released_training import ReleasedModel, released_optimizer, released_step

    config = ModelConfig(name="small", dim=32, num_layers=2, num_heads=4, multiple_of=16)
    ours = build_model(config, FlatConfig(name="flat"), DataShape(24, 3, 9), None, seed=0).eval()
    torch.nn.init.normal_(ours.head.output.weight, std=0.1)
    theirs = ReleasedModel(config, 24, 3, 9).eval()
    theirs.load_state_dict(official_state(ours))
    tokens, labels = torch.arange(36).view(4, 9) % 24, torch.arange(4) % 3
    wanted = -ours(tokens, labels).sum() / tokens.numel()
    wanted.backward()
    loss = theirs(tokens, labels)
    loss.backward()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    torch.testing.assert_close(
        theirs.layers[0].attention.wqkv.weight.grad, ours.backbone.layers[0].attention.wqkv.weight.grad
    )
    before = official_state(ours)["norm.weight"].clone()
    released_step(theirs.train(), released_optimizer(theirs), tokens[:, None], labels, is_bf16=False)
    assert not torch.equal(theirs.norm.weight, before)
