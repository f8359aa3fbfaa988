"""The backbone's switches: drop path, dropout of conditions, averaged weights, sizes."""

import json

import numpy as np
import pytest
import torch
from golden import GOLDEN
from parameters import count
from stage import CONFIGS

from llamagen.backbones.base import DataShape
from llamagen.backbones.config import ModelConfig
from llamagen.backbones.dropout import key_dropouts
from llamagen.model import build_model
from llamagen.training.average import Average
from masc.heads.config import FlatConfig

FLAT = FlatConfig(name="flat")
SMALL = {"name": "small", "dim": 16, "num_layers": 5, "num_heads": 2, "multiple_of": 8}
STILL = {"token_dropout": 0.0, "residual_dropout": 0.0, "ffn_dropout": 0.0}


def small_model(**changes):
    model = build_model(ModelConfig(**SMALL, **(STILL | changes)), FLAT, DataShape(12, 3, 4), None, seed=0)
    torch.nn.init.normal_(model.head.output.weight, std=0.5)
    return model


def test_drop_path_rises_with_depth_and_keeps_the_mean():
    model = small_model(drop_path=0.4)
    for name in ("skip_attention", "skip_ffn"):
        rates = [getattr(layer, name).rate for layer in model.backbone.layers]
        assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    skip, x = model.backbone.layers[-1].skip_ffn.train(), torch.ones(4000, 1, 1)
    key_dropouts(model, np.arange(4000, dtype=np.uint64), x.device)
    branch = skip(x).flatten()
    assert branch.unique().tolist() == pytest.approx([0.0, 1 / 0.6])
    # The share kept is binomial: 3.9 standard deviations, a false alarm in 10,000.
    assert abs((branch > 0).float().mean().item() - 0.6) < 3.9 * (0.24 / 4000) ** 0.5
    assert torch.equal(skip.eval()(x), x)


def test_an_image_skips_a_branch_whole():
    model = small_model(drop_path=0.5).train()
    key_dropouts(model, np.arange(64, dtype=np.uint64), torch.device("cpu"))
    last = model.backbone.layers[-1]
    one, other = (skip(torch.ones(64, 3, 5)).flatten(1) for skip in (last.skip_attention, last.skip_ffn))
    assert (one == one[:, :1]).all() and 0 < (one[:, 0] == 0).sum() < 64
    assert not torch.equal(one, other)


def test_evaluation_ignores_every_dropout():
    tokens, labels = torch.arange(8).view(2, 4), torch.tensor([0, 3])
    still, dropping = small_model(), small_model(drop_path=0.9, token_dropout=0.5, residual_dropout=0.5)
    dropping.load_state_dict(still.state_dict())
    assert torch.equal(still.eval()(tokens, labels), dropping.eval()(tokens, labels))
    assert not torch.equal(still(tokens, labels), dropping.train()(tokens, labels))


def test_dropped_conditions_are_the_null_condition():
    labels, dropped = torch.tensor([0, 1, 2]), torch.tensor([True, False, True])
    assert small_model().backbone.drop_condition(labels, dropped).tolist() == [3, 1, 3]
    backbone = small_model(condition="text", caption_tokens=2, caption_dim=5).backbone
    features = torch.randn(3, 2, 5)
    found = backbone.drop_condition(features, dropped)
    assert torch.equal(found[1], features[1])
    assert torch.equal(found[0], backbone.cls_embedding.uncond_embedding)


def test_a_text_model_draws_its_null_caption_at_the_start_and_never_trains_it():
    model = small_model(condition="text", caption_tokens=200, caption_dim=64)
    table = model.backbone.cls_embedding.uncond_embedding
    # Standard deviation of 12,800 normal numbers: 3.9 standard errors.
    assert abs(table.std().item() * 8 - 1) < 3.9 / (2 * table.numel()) ** 0.5
    assert "backbone.cls_embedding.uncond_embedding" not in dict(model.named_parameters())
    assert "backbone.cls_embedding.uncond_embedding" in model.state_dict()


def test_the_average_follows_its_recurrence():
    model = small_model()
    average, name = Average(model, 0.9), "head.output.weight"
    expected = model.head.output.weight.detach().clone()
    for step in range(3):
        with torch.no_grad():
            model.head.output.weight.add_(step + 1)
        average.update(model)
        expected = 0.9 * expected + 0.1 * model.head.output.weight.detach()
    torch.testing.assert_close(average.parameters[name], expected)


def test_parameter_counts_are_the_released_ones_at_every_vocabulary():
    published = json.loads((GOLDEN / "arch" / "param_counts.json").read_text())["gpt"]
    for entry in published:
        name = entry["model"].lower().replace("gpt", "llamagen") + ("-text" if entry["type"] == "t2i" else "")
        assert (CONFIGS / "model" / f"{name}.yaml").exists()
        assert count(name, 16384, 1000) == entry["n_params"], name
    # Half the vocabulary saves a row of the table and one of the output matrix for every token less.
    for vocabulary, expected in ((8192, 326_133_760), (4096, 317_745_152), (2048, 313_550_848)):
        assert count("llamagen-l", vocabulary, 1000) == expected == 342_910_976 - 2 * (16384 - vocabulary) * 1024
