"""Checkpoints of other projects: their tensors are read without running code from the file."""

import argparse
import logging
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from masc.runtime.errors import InputError, MissingArtifact, printable
from masc.runtime.reading import Damaged, advising, other_kind

# Classes of training frameworks in published checkpoints. Their objects are replaced by empty ones.
FRAMEWORKS = ("pytorch_lightning.", "lightning.", "lightning_fabric.")
# Keys under which files hold their state dict, in the order in which they are tried.
CONTAINERS = ("model", "module", "state_dict", "model_state_dict", "ema")
# Parts of names that torch.compile, FSDP and activation checkpointing insert wherever they wrap a module.
WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
# Beginnings of all names of a module that is wrapped by DDP, DataParallel or AveragedModel, Lightning, or Fabric.
PREFIXES = ("module.", "model.", "_forward_module.")
COUNTER = "n_averaged"  # AveragedModel's only tensor beside the module that it wraps
MAX_LISTED = 4
SAMPLED = 2048  # values at each of three places of a tensor that are looked at
logger = logging.getLogger(__name__)


class _Unread:
    """An empty object in place of one of a training framework."""

    def __new__(cls, *_: Any, **__: Any) -> "_Unread":
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


def read_checkpoint(path: Path, advice: str = "download it again") -> dict[str, Any]:
    """The content of a .safetensors file or a torch checkpoint, tensors on the CPU, memory-mapped if possible.

    Raises InputError if the file is missing or truncated, or if it names code other than tensors and plain containers.
    No code of the file runs. `advice` says what to do about a truncated file."""
    path = Path(path)
    if not path.exists():
        raise MissingArtifact("weights", path, f"no checkpoint at {path}; give another path, or download it")
    with advising(advice):
        if kind := other_kind(path):  # opens a pipe in its place without waiting, where the libraries would wait
            raise Damaged(f"expected a checkpoint in {path}, found {kind}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        _check_size(path)
        stand_ins = [(_stand_in(name), name) for name in _foreign_names(path)]
        with torch.serialization.safe_globals([argparse.Namespace, *stand_ins]):
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_archive(path))
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} holds pickled code or is not a checkpoint; it was not run ({_reason(error)}). Ask its owner for "
            "the state dict alone, or convert it to .safetensors in a sandbox"
        ) from error
    except Exception as error:  # torch raises errors of any type for damaged files
        raise InputError(f"{path} is truncated, or it is not a checkpoint ({_reason(error)}); {advice}") from error
    if not isinstance(found, dict):
        raise InputError(f"expected a dictionary of tensors in {path}, found {type(found).__name__}; give another file")
    return found


def _check_size(path: Path) -> None:
    """Raise ValueError for an archive whose members claim more bytes than the file has: torch compresses nothing."""
    if _is_archive(path):
        with zipfile.ZipFile(path) as archive:
            claimed, size = sum(member.file_size for member in archive.infolist()), path.stat().st_size
        if claimed > size:
            raise ValueError(f"its members claim {claimed} bytes, it has {size}")


def _stand_in(name: str) -> type:
    """The class in place of a framework's class. It is a dictionary where torch must set items."""
    return OrderedDict if name.endswith(".AttributeDict") else _Unread


def _foreign_names(path: Path) -> list[str]:
    """Names of framework classes in the checkpoint. Torch itself refuses all other names."""
    if not _is_archive(path):
        return []
    names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    return [name for name in names if name.startswith(FRAMEWORKS)]


def _is_archive(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"  # torch's format since 1.6


def _reason(error: Exception) -> str:
    """The sentence of torch's message that says what is wrong, without its advice to load the file unsafely."""
    unsafe = ("torch.load", "weights_only", "safe_globals")
    paragraphs = [part.strip() for part in str(error).split("\n\n") if not any(word in part for word in unsafe)]
    said = next(filter(None, paragraphs), type(error).__name__).partition("\n")[0].partition(". ")[0]
    return printable(said[:200])


def find_state(
    checkpoint: dict[str, Any], path: Path, containers: tuple[str, ...] = CONTAINERS, own: Collection[str] = ()
) -> dict[str, Tensor]:
    """The state dict in a checkpoint: below the first key of `containers` that it has, or the checkpoint itself.

    DDP files of LlamaGen hold it below `model`; FSDP files are the state dict. What wrappers put into the names is
    taken out until one of `own` appears, the names of the module that is loaded. Raises InputError if there is none."""
    found = [name for name in containers if isinstance(checkpoint.get(name), dict) and checkpoint[name]]
    if len(found) > 1:
        logger.info("%s holds weights as %s: reading %s", path, ", ".join(found), found[0])
    if found:
        checkpoint = checkpoint[found[0]]
    strange = [name for name, value in checkpoint.items() if not isinstance(value, Tensor) or not isinstance(name, str)]
    if strange and len(strange) < len(checkpoint):
        value = checkpoint[strange[0]]
        raise InputError(
            f"expected named tensors alone in the state dict of {path}, found {type(value).__name__} as "
            f"{strange[0]!r:.80}; save the weights without it"
        )
    if strange or not checkpoint:
        raise InputError(
            f"expected a state dict in {path}, at its top or below {', '.join(containers)}; found "
            f"{', '.join(map(str, list(checkpoint)[:MAX_LISTED])) or 'nothing'}"
        )
    for name, value in checkpoint.items():
        if value.layout != torch.strided or value.is_quantized or value.is_complex() or value.is_meta:
            raise InputError(
                f"expected dense numbers in {path}, found {value.layout} {value.dtype} on {value.device} as "
                f"{name!r:.80}; save the weights as plain tensors"
            )
    return _unwrapped(checkpoint, path, set(own))


def _unwrapped(state: dict[str, Tensor], path: Path, own: set[str]) -> dict[str, Tensor]:
    """The state dict without what wrappers put into the names; unchanged if no name has it, or if one is of `own`."""
    names = {name: name for name in state}
    if own.isdisjoint(names):
        for wrapper in WRAPPERS:
            names = {name: inner.replace(wrapper, "") for name, inner in names.items()}
    while own.isdisjoint(names.values()):
        wrapped = {name: inner for name, inner in names.items() if inner != COUNTER}
        prefix = next((each for each in PREFIXES if all(inner.startswith(each) for inner in wrapped.values())), None)
        if prefix is None or not wrapped:
            break
        names = {name: inner.removeprefix(prefix) for name, inner in wrapped.items()}
    changed = [name for name, inner in names.items() if name != inner]
    if len(set(names.values())) < len(names) or not changed:
        return state
    logger.info("%s was saved from a wrapped module: %s is read as %s", path, changed[0], names[changed[0]])
    return {inner: state[name] for name, inner in names.items()}


def load_state(
    module: nn.Module,
    state: dict[str, Tensor],
    path: Path,
    explain: Callable[[dict[str, Tensor]], str | None] = lambda state: None,
) -> None:
    """Load a state dict; a module on the meta device takes over its tensors.

    If names or shapes differ, raise InputError with the names, both shapes and the likely cause by `explain`."""
    own = module.state_dict()
    problems = []
    for name in [name for name in own if name not in state][:MAX_LISTED]:
        problems.append(f"{name} {tuple(own[name].shape)} is missing")
    for name in [name for name in state if name not in own][:MAX_LISTED]:
        problems.append(f"{name} {tuple(state[name].shape)} is unexpected")
    shared = [name for name in own if name in state and own[name].shape != state[name].shape]
    for name in shared[:MAX_LISTED]:
        problems.append(f"{name} is {tuple(state[name].shape)} there, {tuple(own[name].shape)} here")
    if problems:
        cause = explain(state) or "Choose the config that belongs to the file"
        raise InputError(f"{path} does not fit: {'; '.join(problems)}. {cause}")
    _check_values(module, state, path)
    is_meta = any(value.is_meta for value in own.values())
    module.load_state_dict({name: value.to(own[name].dtype) for name, value in state.items()}, assign=is_meta)


def _check_values(module: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Raise InputError for whole numbers where floats belong, or the other way round, and for weights that are not
    finite in the module's type. A buffer may hold infinity, as a mask does.

    The values are a sample: of a tensor with more than 3 x SAMPLED values the first, middle and last SAMPLED are looked
    at, and a value elsewhere that is not finite is not found. Training that diverged leaves none finite, and to read
    every value of a memory-mapped file would nearly double the time of loading it. The sample takes 5 to 15 ms for 110
    million weights in 134 tensors, a tenth of the loading or less; one test of all samples joined is not faster."""
    for name, own in module.state_dict(keep_vars=True).items():
        value = state[name]
        if value.is_floating_point() != own.is_floating_point():
            raise InputError(
                f"{path} does not fit: {name} is {value.dtype} there, {own.dtype} here. Save the weights as floats, "
                "not quantized"
            )
        is_weight = isinstance(own, nn.Parameter) and value.is_floating_point()
        if is_weight and not _sample(value).to(own.dtype).isfinite().all():
            raise InputError(f"{path} holds values that are not finite in {name}; use a sound checkpoint")


def _sample(value: Tensor) -> Tensor:
    """Up to 3 x SAMPLED values of a tensor: (V,)."""
    flat = value.detach().flatten()
    if len(flat) <= 3 * SAMPLED:
        return flat
    middle = len(flat) // 2
    return torch.cat([flat[:SAMPLED], flat[middle : middle + SAMPLED], flat[-SAMPLED:]])
