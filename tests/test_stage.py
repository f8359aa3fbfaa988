"""How scripts start: the config of a stage as its dataclass."""

from dataclasses import dataclass, field
from importlib import import_module

import pytest
from hydra.core.config_store import ConfigStore
from stage import CONFIGS, SCHEMAS, load_config
from tree import TreeStage

from masc.build import TreeConfig
from masc.runtime.artifacts import InputError


def test_every_schema_that_a_group_names_is_a_class_of_that_group():
    for group, schemas in SCHEMAS.items():
        text = "".join(file.read_text() for file in (CONFIGS / group).glob("*.yaml"))
        for name, place in schemas.items():
            module, _, attribute = place.partition(":")
            assert isinstance(getattr(import_module(module), attribute), type)
            assert name in text, f"no file of configs/{group} names {name}"


def test_every_group_with_a_schema_is_in_the_table():
    named = {file.parent.name for file in CONFIGS.glob("*/*.yaml") if "_schema" in file.read_text()}
    assert named == set(SCHEMAS)


@pytest.fixture
def store(monkeypatch):
    """What Hydra has registered, without the groups that earlier tests used."""
    others = {name: node for name, node in ConfigStore.instance().repo.items() if name not in SCHEMAS}
    monkeypatch.setattr(ConfigStore.instance(), "repo", others)
    return ConfigStore.instance().repo


def test_a_stage_registers_the_groups_of_its_own_fields_only(store):
    load_config("tree", TreeStage, [])
    assert {name for name in store if name in SCHEMAS} == {"tree", "head"}


def test_groups_are_found_in_dictionaries_and_nested_fields(store):
    @dataclass(kw_only=True)
    class Inner:
        trees: dict[str, TreeConfig] = field(default_factory=dict)

    @dataclass(kw_only=True)
    class Outer:
        inner: Inner | None = None

    with pytest.raises(InputError):  # there is no such stage: only what is registered matters here
        load_config("nonesuch", Outer, [])
    assert {name for name in store if name in SCHEMAS} == {"tree"}


def test_a_group_that_a_stage_does_not_read_is_refused_by_name(store):
    with pytest.raises(InputError, match="the stage tree reads no group data"):
        load_config("tree", TreeStage, ["+data=twemoji"])
