"""Every choice of every group composes into dataclasses, and what does not exist is refused in plain words."""

import pytest
import yaml
from pipeline import ReproduceConfig
from reproduce import plan
from stage import CONFIGS, SCHEMAS, load_config

from llamagen.backbones.base import DataShape
from llamagen.evaluation.images import EvalFidConfig
from llamagen.model import build_model, count_parameters
from llamagen.training.config import TrainConfig
from masc.heads.config import CONFIGS as HEAD_CONFIGS
from masc.runtime.errors import InputError


def choices(group):
    return sorted(file.stem for file in (CONFIGS / group).glob("*.yaml"))


@pytest.mark.parametrize("group", ["model", "head", "tree", "data"])
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
    assert load_config("train", TrainConfig, ["model=llamagen-xl"]).optim.learning_rate == 2e-4  # MASC, App. A


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
    [("llamagen-b", 110_888_448), ("llamagen-l", 342_910_976), ("llamagen-xl", 774_699_520)],
)
def test_the_published_sizes_build_with_the_published_parameter_counts(model, parameters):
    import torch

    config = load_config("train", TrainConfig, [f"model={model}", "head=flat"])
    with torch.device("meta"):
        built = build_model(config.model, config.head, DataShape(16384, 1000, 256), None, seed=0)
    assert count_parameters(built) == parameters
