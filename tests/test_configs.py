"""Every choice of every group composes into dataclasses, and what does not exist is refused in plain words."""

from dataclasses import replace

import pytest
import yaml
from pipeline import ReproduceConfig
from reproduce import plan
from stage import CONFIGS, SCHEMAS, load_config

from llamagen.backbones.base import DataShape
from llamagen.evaluation.images import EvalFidConfig
from llamagen.model import build_model, count_parameters
from llamagen.training.config import TrainConfig
from llamagen.training.optim import learning_rate
from masc.heads.config import CONFIGS as HEAD_CONFIGS
from masc.runtime.errors import InputError


def choices(group):
    return sorted(file.stem for file in (CONFIGS / group).glob("*.yaml"))


@pytest.mark.parametrize("group", ["tree", "data"])
def test_every_choice_composes(group):
    assert choices(group)
    for choice in choices(group):
        config = load_config("train", TrainConfig, [f"{group}={choice}"])
        assert getattr(config, group).name == choice


def test_every_protocol_composes():
    assert {"adm", "paper"} <= set(choices("protocol"))
    for choice in choices("protocol"):
        config = load_config("eval_fid", EvalFidConfig, [f"+protocol@protocols.{choice}={choice}", "samples=x.npz"])
        assert config.protocols[choice].name == choice


def test_tuned_values_reach_the_run_they_are_for():
    tuned_heads = [name.removeprefix("llamagen-tiny-") for name in choices("tuned")]
    assert {"flat", "masc", "masc-two-level"} <= set(tuned_heads) <= set(choices("head"))
    for head in tuned_heads:
        tuned = yaml.safe_load((CONFIGS / "tuned" / f"llamagen-tiny-{head}.yaml").read_text())
        config = load_config("train", TrainConfig, ["model=llamagen-tiny", "data=twemoji", f"head={head}"])
        for section, values in tuned.items():
            assert {key: getattr(getattr(config, section), key) for key in values} == values
        assert config.steps == 600


EPOCHS_300, EPOCHS_50 = 300 * 5004 * 256, 50 * 5004 * 256  # images; the incomplete batch of an epoch is dropped
PUBLISHED = [  # recipe, sizes, data; batch, learning rate, images: docs/recipes.md
    ("masc", "b l", "imagenet256", 256, 1e-4, EPOCHS_300),
    ("masc", "xl xxl 3b", "imagenet256", 512, 2e-4, EPOCHS_300),
    ("llamagen", "b l", "imagenet256", 256, 1e-4, EPOCHS_300),
    ("llamagen", "xl", "imagenet256", 256, 2e-4, EPOCHS_50),
    ("llamagen", "xxl 3b", "imagenet256", 512, 2e-4, EPOCHS_50),
    ("llamagen", "xl", "imagenet384", 256, 2e-4, EPOCHS_300),
    ("llamagen", "xxl 3b", "imagenet384", 512, 2e-4, EPOCHS_300),
]


@pytest.mark.parametrize(("recipe", "sizes", "data", "batch", "rate", "images"), PUBLISHED)
def test_a_recipe_holds_the_published_batch_rate_and_images_of_each_size(recipe, sizes, data, batch, rate, images):
    for size in sizes.split():
        config = load_config("train", TrainConfig, [f"model=llamagen-{size}", f"recipe={recipe}", f"data={data}"])
        assert (config.batch_size, config.optim.learning_rate) == (batch, rate)
        assert config.steps * config.batch_size == images
        rates = [learning_rate(config.optim, step, config.steps) for step in (0, config.steps)]
        assert rates == pytest.approx([rate, rate if recipe == "llamagen" else 0.1 * rate])


@pytest.mark.parametrize("recipe", choices("recipe"))
def test_every_model_composes_with_every_recipe(recipe):
    for model in choices("model"):
        config = load_config("train", TrainConfig, [f"model={model}", f"recipe={recipe}"])
        assert config.model.name == (f"{model}-smoke" if recipe == "smoke" else model)
        assert (config.compute.parallel == "fsdp") == (model in ("llamagen-xxl", "llamagen-3b"))
        assert recipe != "smoke" or (config.data.name == "twemoji" and config.model.fewest_parameters < 2e7)


@pytest.mark.slow
@pytest.mark.parametrize("model", choices("model"))
def test_every_model_head_and_recipe_composes(model):
    for head in choices("head"):
        for recipe in choices("recipe"):
            config = load_config("train", TrainConfig, [f"model={model}", f"head={head}", f"recipe={recipe}"])
            assert config.head.name == head and config.model.name.startswith(model)


def test_what_is_given_wins_over_recipe_and_optimizer():
    given = ["model=llamagen-xl", "recipe=llamagen", "optim.learning_rate=3e-4", "optim.final_share=0.5", "steps=7"]
    config = load_config("train", TrainConfig, given)
    assert (config.optim.learning_rate, config.optim.final_share, config.steps) == (3e-4, 0.5, 7)


@pytest.mark.parametrize("recipe", choices("recipe"))
def test_another_optimizer_keeps_the_schedule_of_the_recipe(recipe):
    plain = load_config("train", TrainConfig, ["model=llamagen-xl", f"recipe={recipe}"])
    for kind in choices("optim"):
        config = load_config("train", TrainConfig, ["model=llamagen-xl", f"recipe={recipe}", f"optim={kind}"])
        assert config.optim == replace(plain.optim, kind=kind) != plain.optim
        assert replace(config, optim=plain.optim) == plain


def test_every_head_has_a_schema_and_a_choice():
    schemas = {f"{kind}_schema": f"{config.__module__}:{config.__name__}" for kind, config in HEAD_CONFIGS.items()}
    assert SCHEMAS["head"] == {"head_schema": "masc.heads.config:HeadConfig", **schemas}
    for head in choices("head"):
        config = load_config("train", TrainConfig, ["model=llamagen-tiny", "data=twemoji", f"head={head}"])
        assert type(config.head) is HEAD_CONFIGS[config.head.kind] and config.head.name == head


def test_the_main_job_gives_k_to_the_heads_that_take_one():
    config = load_config("reproduce", ReproduceConfig, ["num_clusters=100"])
    heads = {
        head: plan(config, head, 0).config.head for head in ("flat", "masc-on-kmeans", "masc-two-level", "masc-tree")
    }
    assert (heads["masc-on-kmeans"].num_clusters, heads["masc-two-level"].num_clusters) == (100, 100)
    assert heads["masc-tree"].levels == [] and heads["flat"].cuts(1024) == []


def test_the_main_job_composes():
    config = load_config("reproduce", ReproduceConfig, [])
    assert list(config.trees) == ["masc", "kmeans", "random"]
    assert config.heads[0] == "flat"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("head=nonesuch", ["HEAD", "flat", "masc-two-level"]),
        ("model=nonesuch", ["MODEL", "llamagen-tiny", "llamagen-xl"]),
        ("recipe=nonesuch", ["RECIPE", "llamagen, masc, smoke"]),
        ("tree=nonesuch", ["TREE", "kmeans", "random"]),
        ("steps=many", ["steps", "many"]),
        ("nonesuch=1", ["nonesuch"]),
        ("model.dim=100", ["model.dim", "100"]),
        ("batch_size=0", ["batch_size"]),
        ("head.context=word", ["token", "cluster", "word"]),
    ],
)
def test_a_bad_choice_is_refused_by_name(override, words):
    with pytest.raises(InputError) as error:
        load_config("train", TrainConfig, [override])
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("model", "parameters"),  # golden/arch/param_counts.json
    [
        ("llamagen-b", 110_888_448),
        ("llamagen-l", 342_910_976),
        ("llamagen-xl", 774_699_520),
        ("llamagen-xxl", 1_410_972_672),
        ("llamagen-3b", 3_096_659_200),
    ],
)
def test_the_published_sizes_build_with_the_published_parameter_counts(model, parameters):
    import torch

    config = load_config("train", TrainConfig, [f"model={model}", "head=flat"])
    with torch.device("meta"):
        built = build_model(config.model, config.head, DataShape(16384, 1000, 256), None, seed=0)
    assert count_parameters(built) == parameters
