"""Classes named by configs as package.module:Class.

Files of data name classes as well (a codebook its tokenizer, a run its backbone), but never choose one. The class comes
from the config of the same name on this machine, and a file that names another class is refused. A module that only a
file of data names is never imported, because importing it would run it."""

import inspect
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from masc.runtime.errors import InputError

# Group of configs/ -> the function that returns the config of a name, or None if there is none. scripts/stage.py fills
# it, because only scripts compose configs.
NAMED: dict[str, Callable[[str], Any]] = {}


def config_named(group: str, name: Any, path: Path) -> Any:
    """The config of this machine that a file of data at `path` names; InputError if there is none."""
    find = NAMED.get(group)
    found = find(name) if find and isinstance(name, str) else None
    if found is None:
        raise InputError(
            f"{path} names the {group} {name!r:.60}, and configs/{group} has no config of that name. A class comes "
            f"from a config only, never from a file of data; write configs/{group}/NAME.yaml if you trust the class"
        )
    return found


def check_same_target(target: Any, config: Any, path: Path) -> None:
    """Raise InputError unless a file of data at `path` names the same class as the `config` of this machine."""
    if target != config.target:
        raise InputError(
            f"{path} names the class {target!r:.60}, but the config {config.name} of this machine names "
            f"{config.target!r}. A class comes from a config only, never from a file of data, and this one was not "
            "imported; make the file again, or name the class in the config if you trust it"
        )


def check_target(target: str, key: str) -> None:
    """Raise ValueError unless `target` has the form package.module:Class; `key` is the config key that holds it."""
    if target.count(":") != 1:
        raise ValueError(f"{key} must name a class as package.module:Class, found {target!r}")


def load_class(target: str, base: type, owner: str, key: str) -> type:
    """The class that `target` names, checked to be a subclass of `base` before anything calls it.

    `target` must come from a config, not from a file of data. `owner` is whose class it is, as in "the tokenizer vq16",
    and `key` the config key. Raises InputError for a module or class that does not exist, and for anything but a
    subclass of `base`."""
    module, _, name = target.partition(":")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:  # ValueError: no module before the colon
        raise InputError(
            f"{owner} names the class {target}, which does not import ({error}); correct {key}, or put its module on "
            "PYTHONPATH"
        ) from error
    if not (inspect.isclass(found) and issubclass(found, base)):
        raise InputError(
            f"{owner} names {target}, which is not a subclass of {base.__module__}.{base.__name__}; correct {key}"
        )
    return found
