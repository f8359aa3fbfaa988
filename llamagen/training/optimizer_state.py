"""The state of the optimizers by name, `<name of the parameter>.<key>`, as checkpoints hold it."""

from pathlib import Path

import torch
from torch import Tensor, nn

from llamagen.training.checkpoint import OLD_OPTIMIZER, OPTIMIZER, RESTORE, read_tensors
from llamagen.training.optim import SkippingMuon
from llamagen.training.parallel import copy_whole
from masc.runtime.errors import InputError
from masc.runtime.reading import Damaged, reason

Optimizers = list[torch.optim.Optimizer]


def optimizer_state(model: nn.Module, optimizers: Optimizers) -> dict[str, Tensor]:
    """The tensors of the optimizers' state, sharded where the parameters are."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{names[id(parameter)]}.{key}": value
        for optimizer in optimizers
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


# The state that each kind of optimizer has of a parameter.
KEYS = {torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"}, SkippingMuon: {"momentum_buffer"}}


def load_optimizers(path: Path, model: nn.Module, optimizers: Optimizers, is_checked: bool = False) -> None:
    """Give the optimizers the state in the checkpoint at `path`; see `read_tensors`.

    Raises InputError if it is damaged, or of another model or other optimizers."""
    if (Path(path) / OPTIMIZER).exists():
        file, stored = Path(path) / OPTIMIZER, read_tensors(path, OPTIMIZER, is_checked)
    else:
        file, stored = Path(path) / OLD_OPTIMIZER, _read_old(path, model, optimizers)
    by_name: dict[str, dict[str, Tensor]] = {}
    for name, value in stored.items():
        parameter, _, key = name.rpartition(".")
        by_name.setdefault(parameter, {})[key] = value
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [(optimizer, group["params"]) for optimizer in optimizers for group in optimizer.param_groups]
    if strange := set(by_name) ^ {names[id(each)] for _, trained in groups for each in trained}:
        raise InputError(
            f"{file} is not the state of this run's optimizer: {min(strange)} is in one of them only; {RESTORE}"
        )
    for optimizer, trained in groups:
        for parameter in trained:
            state, wanted = by_name[names[id(parameter)]], KEYS[type(optimizer)]
            if set(state) != wanted:
                name, kind = names[id(parameter)], type(optimizer).__name__
                raise InputError(
                    f"{file} holds {', '.join(sorted(state))} of {name}, and {kind} needs {', '.join(sorted(wanted))}; "
                    f"{RESTORE}"
                )
            optimizer.state[parameter] = {key: _like(parameter, value, file, key) for key, value in state.items()}


def _like(parameter: nn.Parameter, whole: Tensor, file: Path, key: str) -> Tensor:
    """A value of the state, where the parameter is: one number, or a tensor of its shape, sharded as it is."""
    if whole.ndim == 0:
        return whole.to(parameter.device)
    if whole.shape != parameter.shape:
        raise InputError(f"{file} holds {key} {tuple(whole.shape)} for a parameter {tuple(parameter.shape)}; {RESTORE}")
    own = torch.zeros_like(parameter, dtype=whole.dtype, requires_grad=False)
    copy_whole(own, whole)
    return own


def _read_old(path: Path, model: nn.Module, optimizers: Optimizers) -> dict[str, Tensor]:
    """The state in an optimizer.pt of earlier versions: torch's state dict of AdamW, by the order of the groups."""
    file, names = Path(path) / OLD_OPTIMIZER, {id(value): name for name, value in model.named_parameters()}
    content = read_tensors(path, OLD_OPTIMIZER)
    ordered = [names[id(each)] for group in optimizers[0].param_groups for each in group["params"]]
    try:
        found = {
            f"{ordered[index]}.{key}": value
            for index, state in content["state"].items()
            for key, value in state.items()
        }
        if len(optimizers) > 1 or not all(isinstance(value, Tensor) for value in found.values()):
            raise ValueError("not the tensors of one AdamW")
    except Exception as error:  # of a file of another content: any type
        raise Damaged(f"{file} is not the state of this run's optimizer ({reason(error)}); {RESTORE}") from error
    return found
