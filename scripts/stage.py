"""The frame of every script: compose its config, turn it into dataclasses, call one function, explain its errors."""

import dataclasses
import difflib
import logging
import os
import re
import sys
import typing
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any

import start  # isort: skip
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from messages import in_plain_words, log_plainly
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException, ValidationError
from words import parse_words, read_words
from worker import (
    EXIT_STOPPED,
    PIPES,
    check_machine,
    end_processes,
    end_worker,
    interrupt_on_signals,
    is_launched,
    is_main,
    join_launcher,
    print_error,
)

from masc.heads.config import CONFIGS as HEAD_CONFIGS
from masc.losses.config import CONFIGS as LOSS_CONFIGS
from masc.runtime.errors import InputError, Stopped
from masc.runtime.targets import NAMED

# An interrupt while torch is imported is told like any other.
sys.excepthook = lambda kind, error, trace: print_error(in_plain_words(error), error)
interrupt_on_signals()

CONFIGS = start.ROOT / "configs"
# Group of configs/ -> the schemas that its files name in `defaults`, as module:Class. A group is registered, and its
# modules are imported, only by a stage whose own schema has a field of one of these classes.
SCHEMAS = {
    "model": {
        "backbone_schema": "llamagen.backbones.config:BackboneConfig",
        "model_schema": "llamagen.backbones.config:ModelConfig",
        "own_model_schema": "llamagen.backbones.config:OwnModelConfig",
    },
    "head": {
        "head_schema": "masc.heads.config:HeadConfig",
        **{f"{kind}_schema": f"{found.__module__}:{found.__name__}" for kind, found in HEAD_CONFIGS.items()},
    },
    "loss": {
        "loss_schema": "masc.losses.config:LossConfig",
        **{f"{kind}_schema": f"{found.__module__}:{found.__name__}" for kind, found in LOSS_CONFIGS.items()},
    },
    "tree": {"tree_schema": "masc.build:TreeConfig"},
    "data": {"data_schema": "vq.data:DataConfig"},
    "tokenizer": {"tokenizer_schema": "vq.interface:TokenizerConfig"},
    "release": {"release_schema": "llamagen.release:ReleaseConfig"},
    "sampling": {"sampling_schema": "llamagen.sampling.filters:SamplingConfig"},
    "protocol": {
        "protocol_schema": "metrics.protocol:ProtocolConfig",
        "coco_protocol_schema": "metrics.coco_protocol:CocoProtocolConfig",
    },
}

SHOWN = 30  # choices of a group that an error lists; of more it lists those of a similar name


def load_config(stage: str, schema: type, overrides: list[str]) -> Any:
    """The config of a stage as its dataclass; InputError for an unknown choice or key, or a bad value."""
    _register(stage, schema)
    _check_choices(parse_words(overrides))
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            config = compose(stage, overrides)
        missing = sorted(OmegaConf.missing_keys(config))
        if missing:
            raise InputError(f"no value for {', '.join(missing)}; add KEY=VALUE to ARGS")
        return OmegaConf.to_object(config)
    except MissingConfigException as error:
        raise InputError(_missing_choice(stage, str(error))) from error
    except (HydraException, ConfigCompositionException, OmegaConfBaseException) as error:
        raise InputError(f"bad config for {stage}: {_in_words(error.__cause__ or error)}") from error
    except ValueError as error:  # from a dataclass's __post_init__
        raise InputError(f"bad config for {stage}: {error}") from error


def named_config(group: str, name: str) -> Any:
    """The config in configs/<group>/<name>.yaml as its dataclass; None if there is no such file.

    Raises InputError for a file that is no config."""
    if name not in {file.stem for file in (CONFIGS / group).glob("*.yaml")}:
        return None
    for place in SCHEMAS[group].values():
        _register_used(_class_at(place))
    ConfigStore.instance().store(name="alone", node={"defaults": ["_self_", {group: name}]})
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            return OmegaConf.to_object(compose("alone")[group])
    except (HydraException, ConfigCompositionException, OmegaConfBaseException, ValueError) as error:
        raise InputError(f"bad config in configs/{group}/{name}.yaml: {_in_words(error.__cause__ or error)}") from error


NAMED |= {group: partial(named_config, group) for group in ("tokenizer", "model", "release")}


TYPES = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false"}  # OmegaConf's words


def _in_words(cause: BaseException) -> str:
    """The message of Hydra or OmegaConf in one line; for a key that does not exist, the keys that do."""
    schema = getattr(cause, "object_type", None)
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and dataclasses.is_dataclass(schema):
        section, _, key = str(cause.full_key).rpartition(".")
        known = ", ".join(field.name for field in dataclasses.fields(schema))
        return f"{section or 'it'} has no key {key}; the keys of {schema.__name__} are {known}"
    found = re.match(r"Value (.*) of type .* could not be converted to (Integer|Float|Boolean)", str(cause))
    if isinstance(cause, ValidationError) and found:
        return f"{cause.full_key} must be {TYPES[found[2]]}, found {found[1]}"
    return " ".join(str(cause).split())


def _register(stage: str, schema: type) -> None:
    """Give Hydra the schema of a stage and the schemas of the groups that the stage uses."""
    ConfigStore.instance().store(name=f"{stage}_stage_schema", node=schema)
    _register_used(schema)


def _register_used(schema: type) -> None:
    """Give Hydra the schemas of the groups that a schema uses, or is of."""
    used = {f"{found.__module__}:{found.__qualname__}" for found in _dataclasses_in(schema)}
    for group, schemas in SCHEMAS.items():
        if used & set(schemas.values()):
            for name, place in schemas.items():
                ConfigStore.instance().store(group=group, name=name, node=_class_at(place))


def _class_at(place: str) -> type:
    """The class that module:Class names."""
    module, _, attribute = place.partition(":")
    return getattr(import_module(module), attribute)


def _dataclasses_in(annotation: Any) -> Iterator[type]:
    """All dataclasses in a type: itself, the types in its brackets, and those of its fields."""
    for part in typing.get_args(annotation):
        yield from _dataclasses_in(part)
    if dataclasses.is_dataclass(annotation):
        yield annotation
        for hint in typing.get_type_hints(annotation).values():
            yield from _dataclasses_in(hint)


def _check_choices(overrides: list[Override]) -> None:
    """Raise InputError for a choice that no file of its group in configs/ bears."""
    for group, choice in ((given.key_or_group, given.value()) for given in overrides):
        options = sorted(file.stem for file in (CONFIGS / group).glob("*.yaml"))
        if options and isinstance(choice, str) and choice not in options:
            variable = {"sampling": "PRESET", "experiment": "NAME"}.get(group, group.upper())
            near = difflib.get_close_matches(choice, options, n=6) if len(options) > SHOWN else options
            named = f"{variable} can be: {', '.join(near)}" if near else f"{variable} can be {len(options)} others"
            raise InputError(f"there is no {group} called {choice!r}; {named}")


def _missing_choice(stage: str, message: str) -> str:
    # Hydra: "In 'train': Could not find 'data/data_schema'\n\nAvailable options in 'data':\n..."
    group, _, choice = message.splitlines()[0].split("'")[-2].partition("/")
    return f"the stage {stage} reads no group {group}" if choice.endswith("_schema") else " ".join(message.split())


def run_stage(
    stage: str,
    schema: type,
    function: Callable[[Any], Any],
    prepare: Callable[[Any], Any] | None = None,
    check: Callable[[Any], Any] | None = None,
) -> None:
    """Compose the config and call `prepare` and `function`; end with one plain line for an error that no bug explains.

    If several processes are launched, `prepare` and then `check` are called once, by the process that checks the config
    before them."""
    join_launcher()
    if sys.stdout is not None:  # as it is where the shell has closed it
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may lack the characters of a path
    log_plainly(logging.INFO if is_main() else logging.WARNING)
    logging.getLogger("faiss").setLevel(logging.WARNING)  # it logs each instruction set that it tries
    try:
        words = sys.argv[1:]
        is_check = words[:1] == ["--check"]
        overrides = read_words(words[is_check:])
        if "--help" in overrides or "-h" in overrides:
            defaults = load_config(stage, schema, [word for word in overrides if "=" in word])
            print(f"{(function.__doc__ or stage).strip()}\n\nKEY=VALUE overrides; the current values:\n")
            print(OmegaConf.to_yaml(OmegaConf.structured(defaults)))
            return
        config = load_config(stage, schema, overrides)
        if is_check:
            check_machine()
        if prepare is not None and not is_launched():
            prepare(config)
        if not is_check:
            function(config)
        elif check is not None:
            check(config)
        print(end="", flush=True)
    except BaseException as error:
        if isinstance(error, SystemExit):
            raise
        message = in_plain_words(error)
        if PIPES in os.environ:
            end_worker(message, error)
        if message is None:
            raise
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the interpreter flushes it once more at its end
        if isinstance(error, Stopped):
            print_error(message, error)
            sys.exit(EXIT_STOPPED)
        sys.exit(message or 1)
    end_processes()
