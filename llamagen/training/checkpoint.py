"""Checkpoint of a run: weights as safetensors, optimizer state, and progress."""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from llamagen.training.average import averaged_parameters
from masc.runtime.errors import InputError, MissingArtifact
from masc.runtime.files import hash_file, recover, replacing, save_safetensors, save_torch, write_json
from masc.runtime.reading import read_json, reason
from masc.runtime.run import run_facts
from vq.checkpoint import load_state, read_checkpoint

RESTORE = "copy the checkpoint back, or train the run in another directory (RUN_DIR=...)"


@dataclass
class Progress:
    """Progress of a run, and the two settings beside its config that its numbers depend on.

    `seconds` counts training only, summed over interruptions. `shares` is processes x micro-batches: dropout masks
    are drawn for one share of a batch at a time."""

    step: int = 0
    seconds: float = 0.0
    shares: int = 1
    precision: str = "fp32"

    def __post_init__(self) -> None:
        if self.step < 0 or self.shares < 1 or self.precision not in ("fp32", "bf16"):
            raise ValueError(f"no progress of a run: step {self.step}, {self.shares} shares, {self.precision!r:.20}")


def save_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress, average: AveragedModel | None
) -> None:
    """Write the directory `path` whole, in place of the checkpoint before it."""
    with replacing(path) as temporary:
        temporary.mkdir(parents=True)
        state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
        save_safetensors(temporary / "model.safetensors", state)
        if average is not None:
            averaged = {name: value.cpu().contiguous() for name, value in averaged_parameters(average).items()}
            save_safetensors(temporary / "average.safetensors", averaged)
        save_torch(temporary / "optimizer.pt", optimizer.state_dict())
        write_json(temporary / "progress.json", asdict(progress))


def load_progress(path: Path) -> Progress:
    """Progress of the checkpoint at `path`; step 0 if there is none. Raises `Damaged` for a damaged file."""
    file = Path(path) / "progress.json"
    return read_json(file, Progress) if file.exists() else Progress()


def load_weights(path: Path, model: nn.Module) -> None:
    """Load the weights of a checkpoint directory into a model of the same config."""
    file = Path(path) / "model.safetensors"
    if not file.exists():
        run_dir = Path(path).parent.parent
        raise MissingArtifact("run", path, f"no checkpoint at {path}; train or resume the run", **run_facts(run_dir))
    load_state(model, read_checkpoint(file, RESTORE), file)


def load_average(path: Path, average: AveragedModel) -> None:
    """Continue with the averaged weights of a checkpoint directory."""
    use_average(path, average.module)


def use_average(path: Path, model: nn.Module) -> None:
    """Load the averaged weights of a checkpoint directory into a model; InputError if the run has no average."""
    file = Path(path) / "average.safetensors"
    if not file.exists():
        raise _no_average(path)
    buffers = dict(model.state_dict())  # are not averaged
    load_state(model, buffers | read_checkpoint(file, RESTORE), file)


def _no_average(path: Path) -> InputError:
    return InputError(
        f"no averaged weights in {path}; take the weights of the last step (use_ema=false), or train a run with "
        "ema_decay=0.9999 in another directory (RUN_DIR=...)"
    )


def hash_weights(run_dir: Path, averaged: bool = False) -> str:
    """SHA-256 of a run's last weights, or of their average; InputError if it has none."""
    return hash_file(weights_file(run_dir, averaged))


def weights_file(run_dir: Path, averaged: bool = False) -> Path:
    """The file of a run's last weights, or of their average; InputError if it has none."""
    file = last_checkpoint(run_dir) / f"{'average' if averaged else 'model'}.safetensors"
    if not file.exists() and averaged:
        raise _no_average(run_dir)
    if not file.exists():
        raise MissingArtifact(
            "run", run_dir, f"no checkpoint in {run_dir}; train or resume the run", **run_facts(run_dir)
        )
    return file


def last_checkpoint(run_dir: Path) -> Path:
    """Directory of a run's last checkpoint."""
    return recover(Path(run_dir) / "checkpoints" / "last")


def load_optimizer(path: Path, optimizer: torch.optim.Optimizer) -> None:
    """Load the optimizer state that `save_checkpoint` wrote; InputError if it is damaged or of another model."""
    file = Path(path) / "optimizer.pt"
    state = read_checkpoint(file, RESTORE)
    try:
        optimizer.load_state_dict(state)
    except Exception as error:  # torch raises errors of any type for another content
        raise InputError(f"{file} is not the state of this run's optimizer ({reason(error)}); {RESTORE}") from error
