"""docs/own-backbone.md does what it says, and no stage assumes raster order, one token a step or a cache.

The code is taken from the page itself: a backbone that draws backwards, two positions a step."""

import re
import shutil
import sys

import numpy as np
import pytest
import stage
import torch
from accelerate import Accelerator

from llamagen.backbones.base import DataShape, build_backbone
from llamagen.backbones.config import OwnModelConfig
from llamagen.backbones.embeddings import TokenEmbedding
from llamagen.backbones.official import official_state
from llamagen.model import build_model
from llamagen.runs import Run
from llamagen.sampling.filters import SamplingConfig
from llamagen.sampling.generate import generate, image_uniforms
from llamagen.train import train
from llamagen.training.config import TrainConfig
from llamagen.training.likelihood import image_nats
from llamagen.training.optim import OptimConfig, build_optimizers
from masc.heads.config import FlatConfig, MascConfig
from masc.runtime.errors import InputError
from masc.runtime.run import read_metrics
from masc.tree import Partition

BLOCK = re.compile(r"^```(\w+)\n# (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHAPE = DataShape(num_tokens=6, num_classes=3, num_positions=5)
CLUSTERS = Partition(np.array([0, 0, 1, 1, 1, 2]))


@pytest.fixture(scope="module")
def folder(root, tmp_path_factory):
    """The files of the page, beside the project's configs."""
    folder = tmp_path_factory.mktemp("own")
    shutil.copytree(root / "configs", folder / "configs")
    for _, name, content in BLOCK.findall((root / "docs" / "own-backbone.md").read_text()):
        (folder / name).write_text(content)
    return folder


@pytest.fixture
def own(folder, monkeypatch):
    """Where the page's class can be imported and its config chosen."""
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(stage, "CONFIGS", folder / "configs")
    yield OwnModelConfig(name="own", target="backwards:Backwards", dim=16, options={"together": 2})
    sys.modules.pop("backwards", None)


def model_of(config, head, tree=None):
    model = build_model(config, head, SHAPE, tree, seed=0).eval()
    with torch.no_grad():
        for table in model.head.tables():
            table.normal_(generator=torch.Generator().manual_seed(1))
        for parameter in model.backbone.parameters():
            parameter.mul_(5.0)
    return model


def test_decoding_gives_the_hidden_states_of_the_whole_image(own):
    backbone = model_of(own, FlatConfig(name="flat")).backbone
    tokens, labels = torch.arange(10).view(2, 5) % 6, torch.tensor([0, 2])
    whole, decoding, positions = backbone.hidden(tokens, labels), backbone.decode(labels), []
    for step in backbone.steps:
        states = decoding.predict()
        assert states.shape == (2, len(step), 16)
        torch.testing.assert_close(states, whole[:, step])
        decoding.place(tokens[:, step])
        positions += step.tolist()
    assert positions == [4, 3, 2, 1, 0] and torch.equal(decoding.tokens(), tokens)


def test_a_position_knows_nothing_of_its_own_token_and_of_later_ones(own):
    backbone = model_of(own, FlatConfig(name="flat")).backbone
    tokens, labels = torch.zeros(1, 5, dtype=torch.long), torch.tensor([1])
    before = backbone.hidden(tokens, labels)
    for index, step in enumerate(backbone.steps):
        changed = tokens.clone()
        changed[:, step] = 3
        differs = (backbone.hidden(changed, labels) != before).any(-1)[0]
        later = torch.cat([torch.zeros(0, dtype=torch.long), *backbone.steps[index + 1 :]])
        assert differs.nonzero().flatten().tolist() == sorted(later.tolist())


@pytest.mark.parametrize("head", [FlatConfig(name="flat"), MascConfig(name="masc", num_clusters=3, context="cluster")])
def test_samples_follow_the_likelihood_in_any_order_of_drawing(own, head):
    # Mean log-likelihood of 4,000 samples against minus the entropy, all 7,776 images enumerated; z 3.9 is a
    # false-alarm rate of 1e-4.
    model, draws = model_of(own, head, CLUSTERS if head.uses_tree else None), 4000
    every = torch.cartesian_prod(*[torch.arange(6)] * 5)
    with torch.no_grad():
        log_p = model(every, torch.ones(len(every), dtype=torch.long)).sum((1, 2)).double()
    assert abs(log_p.exp().sum().item() - 1) < 1e-5
    labels = torch.ones(draws, dtype=torch.long)
    tokens = generate(model, labels, image_uniforms(0, np.arange(draws), 5, model.head.num_decisions), SamplingConfig())
    observed = log_p[(tokens * 6 ** torch.arange(5).flip(0)).sum(1)]
    mean = (log_p.exp() * log_p).sum()
    deviation = ((log_p.exp() * (log_p - mean) ** 2).sum() / draws).sqrt()
    assert abs(observed.mean() - mean) / deviation < 3.9


def test_uniforms_that_end_within_a_step_are_refused(own):
    model = model_of(own, FlatConfig(name="flat"))
    with pytest.raises(ValueError, match="draws positions 2 to 3, uniforms are for 3"):
        generate(model, torch.zeros(2, dtype=torch.long), image_uniforms(0, np.arange(2), 3, 1), SamplingConfig())


def test_dropping_conditions_needs_a_null_condition(own):
    own.class_dropout = 0.0
    backbone = build_model(own, FlatConfig(name="flat"), SHAPE, None, seed=0).backbone
    labels = torch.tensor([0, 2])
    assert torch.equal(backbone.drop_condition(labels, torch.zeros(2, dtype=torch.bool)), labels)
    own.class_dropout = 0.1
    sys.modules["backwards"].Backwards.has_null = False
    with pytest.raises(InputError, match=r"has no null condition, so model\.class_dropout=0\.1 cannot drop"):
        build_model(own, FlatConfig(name="flat"), SHAPE, None, seed=0)


def test_guidance_and_the_batch_work_as_for_llamagen(own):
    model, config = model_of(own, FlatConfig(name="flat")), SamplingConfig(guidance=3.0, guidance_schedule="linear")
    labels, uniforms = torch.arange(8) % 3, image_uniforms(0, np.arange(8), 5, 1)
    whole = generate(model, labels, uniforms, config)
    assert torch.equal(
        whole, torch.cat([generate(model, labels[i : i + 3], uniforms[i : i + 3], config) for i in (0, 3, 6)])
    )
    assert not torch.equal(whole, generate(model, labels, uniforms, SamplingConfig()))


@pytest.fixture
def config(own, overrides):
    """A small run of the page's backbone."""
    kept = [word for word in overrides if not word.startswith("model")]
    return stage.load_config("train", TrainConfig, [*kept, "model=backwards", "head=masc", "optim.learning_rate=0.01"])


def test_a_run_trains_and_loads_by_its_config_alone(config):
    assert isinstance(config.model, OwnModelConfig) and config.model.options == {"together": 2}
    rows = read_metrics(train(config) / "metrics.jsonl")
    assert rows[-1]["step"] == 12 and rows[-1]["val/nats_per_token"] < rows[0]["val/nats_per_token"]
    run = Run(config.directory)
    inputs, model = run.inputs, run.load_model()
    assert run.config == config and type(model.backbone).__name__ == "Backwards"
    nats = image_nats(Accelerator(), model, inputs.held_out, inputs.conditions["val"])
    per_token = nats.sum().item() / inputs.held_out.tokens[:, 0].size
    assert abs(per_token - rows[-1]["val/nats_per_token"]) < 1e-5
    with pytest.raises(InputError, match="holds LlamaGen's transformer only, and this model is a Backwards"):
        official_state(model)


def test_a_resumed_run_gives_the_losses_of_an_unbroken_one(config, tmp_path, dies):
    def losses(run_dir):
        return [row["train/nats_per_token"] for row in read_metrics(run_dir / "metrics.jsonl")[1:]]

    unbroken = losses(train(config))
    config.run_dir = str(tmp_path / "broken")
    dies(config, 7, KeyboardInterrupt)
    assert losses(train(config)) == unbroken


def test_the_optimizer_scales_the_tables_that_the_model_names(own):
    model = build_model(own, FlatConfig(name="flat"), SHAPE, None, seed=0)
    (optimizer,) = build_optimizers(model, OptimConfig(table_scale=7.0), fused=False)
    scaled = {
        id(parameter) for group in optimizer.param_groups if group["scale"] == 7.0 for parameter in group["params"]
    }
    assert scaled == {id(model.backbone.tokens.weight), id(model.head.output.weight)}


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("backwards:Nonesuch", "does not import"),
        ("backwards:BackwardsDecoding", "is not a subclass of llamagen.backbones.base.Backbone"),
        ("os:system", "is not a subclass of llamagen.backbones.base.Backbone"),
    ],
)
def test_a_target_that_is_no_backbone_is_never_called(own, target, words):
    own.target = target
    with pytest.raises(InputError, match=words):
        build_backbone(own, TokenEmbedding(6, 16, None), SHAPE)
    with pytest.raises(ValueError, match=r"package\.module:Class"):
        OwnModelConfig(name="own", target="os.system", dim=16)


def test_a_backbone_of_square_images_refuses_other_codes():
    with pytest.raises(InputError, match="draws square grids, and an image of these codes has 680 tokens"):
        _ = DataShape(1024, 10, 680).grid
