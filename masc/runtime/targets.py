"""Classes named by a config as package.module:Class."""

import inspect
from importlib import import_module

from masc.runtime.errors import InputError


def check_target(target: str, key: str) -> None:
    """Raise ValueError unless `target` has the form package.module:Class; `key` is the config key that holds it."""
    if target.count(":") != 1:
        raise ValueError(f"{key} must name a class as package.module:Class, found {target!r}")


def load_class(target: str, base: type, owner: str, key: str) -> type:
    """The class that `target` names, checked to be a subclass of `base` before anything calls it.

    `owner` is whose class it is, as in "the tokenizer vq16", and `key` the config key. Raises InputError for a module
    or class that does not exist, and for anything but a subclass of `base`."""
    module, _, name = target.partition(":")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"{owner} names the class {target}, which does not import ({error}); correct {key}, or put its module on "
            "PYTHONPATH"
        ) from error
    if not (inspect.isclass(found) and issubclass(found, base)):
        raise InputError(
            f"{owner} names {target}, which is not a subclass of {base.__module__}.{base.__name__}; correct {key}"
        )
    return found
