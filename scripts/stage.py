"""How every script starts: compose its config with Hydra, turn it into dataclasses, call one function."""

import errno
import logging
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from llamagen.backbones.config import ModelConfig
from llamagen.release import ReleaseConfig
from llamagen.sampling.filters import SamplingConfig
from masc.build import TreeConfig
from masc.heads.config import HeadConfig
from masc.runtime.artifacts import InputError
from metrics.coco import CocoProtocolConfig
from metrics.protocol import ProtocolConfig
from vq.data import DataConfig
from vq.interface import TokenizerConfig

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
SCHEMAS = {
    "model": ModelConfig,
    "head": HeadConfig,
    "tree": TreeConfig,
    "data": DataConfig,
    "tokenizer": TokenizerConfig,
    "release": ReleaseConfig,
    "sampling": SamplingConfig,
    "protocol": ProtocolConfig,
}


def load_config(stage: str, schema: type, overrides: list[str]) -> Any:
    """The config of a stage as its dataclass; InputError for an unknown choice or key, or a bad value."""
    store = ConfigStore.instance()
    store.store(name=f"{stage}_stage_schema", node=schema)
    for group, node in SCHEMAS.items():
        store.store(group=group, name=f"{group}_schema", node=node)
    store.store(group="protocol", name="coco_protocol_schema", node=CocoProtocolConfig)
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            config = compose(stage, overrides)
        missing = sorted(OmegaConf.missing_keys(config))
        if missing:
            raise InputError(f"no value for {', '.join(missing)}; add KEY=VALUE to ARGS")
        return OmegaConf.to_object(config)
    except MissingConfigException as error:
        raise InputError(_unknown_choice(str(error))) from error
    except (HydraException, ConfigCompositionException, OmegaConfBaseException) as error:
        cause = error.__cause__ or error
        raise InputError(f"bad config for {stage}: {' '.join(str(cause).split())}") from error
    except ValueError as error:  # from a dataclass's __post_init__
        raise InputError(f"bad config for {stage}: {error}") from error


def _unknown_choice(message: str) -> str:
    # Hydra: "In 'train': Could not find 'head/x'\n\nAvailable options in 'head':\n\tflat\n\tmasc\n..."
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    wanted = lines[0].split("'")[-2]
    group, _, choice = wanted.partition("/")
    options = []
    for line in lines[1:]:
        if line.startswith("Config search path"):
            break
        if not line.startswith("Available options") and not line.endswith("_schema"):
            options.append(line)
    return f"there is no {group} called {choice!r}; {group.upper()} can be: {', '.join(options)}"


def run_stage(stage: str, schema: type, function: Callable[[Any], Any]) -> None:
    """Compose, call, and report what the user can mend in plain words and with exit status 1."""
    # A polite kill ends like Ctrl-C, so that a stage can stop the processes it started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("faiss").setLevel(logging.WARNING)  # it reports each instruction set it tries
    try:
        overrides = sys.argv[1:]
        if "--help" in overrides or "-h" in overrides:
            defaults = load_config(stage, schema, [word for word in overrides if "=" in word])
            print(f"{(function.__doc__ or stage).strip()}\n\nKEY=VALUE overrides; the values in force:\n")
            print(OmegaConf.to_yaml(OmegaConf.structured(defaults)))
            return
        function(load_config(stage, schema, overrides))
    except InputError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\ninterrupted; the same command goes on from the last checkpoint or finished stage")
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        sys.exit(
            "error: no space left on the disk; free some and type the same command: it goes on from its last files"
        )
