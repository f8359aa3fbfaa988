"""Checkpoints of a run: where they are, whether they are whole, and how they are read (`saving.py` writes them).

    checkpoints/step-00005000/model.safetensors      weights and buffers
                              average.safetensors    averaged weights, if the run keeps them
                              optimizer.safetensors  <name of the parameter>.<key of its state>
                              progress.json          step, training time, settings that the numbers depend on
                              manifest.json          written last: bytes and SHA-256 of each file, hash of the config

The layout does not depend on the number of processes, nor on how the model was shared by them. Tensors are whole, and
nothing is pickled. Earlier versions wrote one checkpoint, `checkpoints/last`, with optimizer.pt and without a manifest;
it is read as well."""

import json
import logging
import math
import re
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

from torch import Tensor, nn

from masc.runtime.errors import InputError, MissingArtifact
from masc.runtime.files import hash_file, recover
from masc.runtime.reading import Damaged, advising, read_json, read_yaml
from masc.runtime.run import CHECKPOINTS, flatten, read_metrics, read_provenance, run_facts
from vq.checkpoint import load_state, read_checkpoint

logger = logging.getLogger(__name__)
RESTORE = "copy the checkpoint back, or train the run in another directory (RUN_DIR=...)"
STEP = re.compile(r"step-(\d{8,})")
DAMAGED = "damaged-"  # before the name of a checkpoint that was set aside
LAST = "last"  # the only checkpoint of earlier versions
MANIFEST = "manifest.json"
WEIGHTS, AVERAGE = "model.safetensors", "average.safetensors"
LOSS = "loss."  # before the names of what a loss learns for itself
PROGRESS = "progress.json"
OPTIMIZER, OLD_OPTIMIZER = "optimizer.safetensors", "optimizer.pt"


@dataclass
class Progress:
    """Progress of a run, and the settings beside its config that its numbers depend on.

    `seconds` counts training only, summed over interruptions. `shares` is processes x micro-batches. `window` holds the
    loss and the gradient norm of each step since the last row of metrics.jsonl."""

    step: int = 0
    seconds: float = 0.0
    shares: int = 1
    precision: str = "fp32"
    skipped: int = 0  # steps whose update was left out
    window: list[list[float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        is_sound = min(self.step, self.skipped) >= 0 and self.shares >= 1 and self.precision in ("fp32", "bf16")
        is_sound &= 0 <= self.seconds < math.inf
        if not is_sound or any(len(pair) != 2 or not all(map(math.isfinite, pair)) for pair in self.window):
            raise ValueError(f"no progress of a run: step {self.step}, {self.shares} shares, {self.precision!r:.20}")


@dataclass(frozen=True)
class Manifest:
    """manifest.json of a checkpoint."""

    config_sha256: str  # of `hash_config`
    bytes: dict[str, int]  # size of each file
    sha256: dict[str, str]

    def check(self, folder: Path, required: tuple[str, ...], contents: bool) -> None:
        """Raise `Damaged` unless each file, those of `required` included, passes `check_file`."""
        for name in dict.fromkeys((*required, *self.bytes)):
            self.check_file(folder / name, contents)

    def check_file(self, file: Path, contents: bool = True) -> None:
        """Raise `Damaged` unless a file is there with its size and, if `contents` is set, its SHA-256."""
        found = file.stat().st_size if file.is_file() else None
        if found is None or found != self.bytes.get(file.name):
            if file.name not in self.bytes:
                raise Damaged(
                    f"expected {file.name} among the files that {file.parent / MANIFEST} names, found it missing"
                )
            raise Damaged(
                f"expected {self.bytes[file.name]} bytes in {file}, found {'no file' if found is None else found}"
            )
        if contents:
            check_sha256(file, self.sha256.get(file.name))


def check_sha256(file: Path, expected: str | None) -> str:
    """The SHA-256 of a file; `Damaged` if it is not the expected one."""
    stat = file.stat()
    found = _hash(file, stat.st_size, stat.st_mtime_ns)
    if found != expected:
        raise Damaged(f"expected {file} with SHA-256 {str(expected)[:12]}, found {found[:12]}: its bytes were changed")
    return found


@lru_cache(maxsize=64)
def _hash(file: Path, _size: int, _time: int) -> str:
    return hash_file(file)


def hash_config(run_dir: Path) -> str:
    """SHA-256 of what decides the result in a run's config.yaml: all but its volatile keys and its number of steps.

    It is read from the file, so that a later version of this code, with other keys, finds the same."""
    ignored = (*read_provenance(run_dir).volatile, "steps", "precision")
    stored = flatten(read_yaml(Path(run_dir) / "config.yaml"))
    kept = {key: value for key, value in sorted(stored.items()) if not key.startswith(ignored)}
    return sha256(json.dumps(kept, default=str).encode()).hexdigest()


def checkpoint_path(run_dir: Path, step: int) -> Path:
    """The directory of the checkpoint of a step."""
    return Path(run_dir) / CHECKPOINTS / f"step-{step:08d}"


def step_of(path: Path) -> int | None:
    """The step in the name of a checkpoint; None if the name has none."""
    found = STEP.fullmatch(path.name)
    return int(found[1]) if found else None


def list_checkpoints(run_dir: Path) -> list[Path]:
    """The checkpoints of a run, whole or damaged, the newest first. That of an earlier version is the oldest."""
    folder = Path(run_dir) / CHECKPOINTS
    found = [path for path in folder.glob("step-*") if step_of(path) is not None] if folder.is_dir() else []
    last = recover(folder / LAST)
    return [*sorted(found, key=step_of, reverse=True), *([last] if last.exists() else [])]


def check_checkpoint(path: Path, contents: bool = True, averaged: bool = False) -> None:
    """Raise `Damaged` for a checkpoint with a file that is missing, of another size, or of other contents.

    With `contents` every byte is read: a second for 1 to 2 GB. `averaged` says that it must hold averaged weights. One
    of an earlier version has no manifest: its files must be there."""
    average = (AVERAGE,) if averaged else ()
    if _has_manifest(path):
        required = (WEIGHTS, OPTIMIZER, PROGRESS, *average)
        read_json(path / MANIFEST, Manifest).check(path, required, contents)
        _check_step(path)
        return
    for name in (WEIGHTS, OLD_OPTIMIZER, PROGRESS, *average):
        if not (path / name).is_file():
            raise Damaged(f"expected {path / name}, found no file")


def _has_manifest(path: Path) -> bool:
    """Whether a checkpoint is one of this version, whatever its name by now."""
    return step_of(path) is not None or (path / MANIFEST).exists()


def _check_weights(path: Path) -> None:
    """Raise `Damaged` unless weights of the right size and the progress are there, all that sampling needs."""
    if _has_manifest(path):
        manifest = read_json(path / MANIFEST, Manifest)
        manifest.check_file(path / WEIGHTS, contents=False)
        manifest.check_file(path / PROGRESS)
        _check_step(path)


def _check_step(path: Path) -> None:
    if step_of(path) not in (None, load_progress(path).step):
        raise Damaged(f"expected step {step_of(path)} in {path / PROGRESS}, found {load_progress(path).step}")


def last_checkpoint(run_dir: Path, warns: bool = True) -> Path:
    """Directory of the newest checkpoint with weights, passing over damaged ones, with a warning unless `warns` is off;
    the place of a first one if a run has none. Files are not read: see `read_tensors`.

    Raises `Damaged` if there are checkpoints and none is sound."""
    problems = []
    for path in list_checkpoints(run_dir):
        try:
            _check_weights(path)
        except InputError as error:
            problems.append(error)
            continue
        for problem in problems if warns else ():
            logger.warning("passing over a damaged checkpoint: %s", problem)
        return path
    if problems:
        raise Damaged(f"{run_dir} has no checkpoint that is whole: {problems[0]}; {RESTORE}")
    return checkpoint_path(run_dir, 0)


def set_damaged_aside(run_dir: Path, averaged: bool) -> Path:
    """Directory of the newest whole checkpoint, as `last_checkpoint`, after every byte of it was read.

    `averaged` says that it must hold averaged weights. Newer ones, which are damaged, are renamed and named in a
    warning; an error of the disk is raised, not taken for damage. Raises InputError if the config of the run was
    changed since the checkpoints were written. If an older one fits the config, it is the newer one that is damaged."""
    aside: list[Path] = []
    other_config: InputError | None = None
    for path in list_checkpoints(run_dir):
        try:
            check_checkpoint(path, averaged=averaged)
        except InputError as error:
            if _is_of_disk(error):
                raise
            aside.append(path)
            logger.warning("%s is damaged: %s", path, error)
            continue
        try:
            check_config(run_dir, path)
        except InputError as error:
            aside.append(path)
            other_config = other_config or error
            continue
        if other_config is not None and not _has_manifest(path):
            break  # that of an earlier version fits any config
        for damaged in aside:
            kept = free_name(damaged.with_name(f"{DAMAGED}{damaged.name}"))
            damaged.rename(kept)
            logger.warning("it is kept as %s, and the run continues from %s", kept, path)
        return path
    if other_config is not None:
        raise other_config
    if aside:
        raise Damaged(f"{run_dir} has no checkpoint that is whole (damaged: {', '.join(map(str, aside))}); {RESTORE}")
    return checkpoint_path(run_dir, 0)


def _is_of_disk(error: InputError) -> bool:
    """Whether a file is there and the system does not let it be read."""
    absent = FileNotFoundError, IsADirectoryError, NotADirectoryError
    return isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, absent)


def free_name(path: Path) -> Path:
    """The path, or with the first number at its end that is not there yet."""
    names = (path, *(path.with_name(f"{path.name}-{number}") for number in range(1, 1000)))
    return next(name for name in names if not name.exists())


def check_config(run_dir: Path, path: Path) -> None:
    """Raise InputError if config.yaml of a run is not that with which a checkpoint with a manifest was written."""
    if _has_manifest(path) and read_json(path / MANIFEST, Manifest).config_sha256 != hash_config(run_dir):
        raise InputError(
            f"{Path(run_dir) / 'config.yaml'} was changed since {path} was written, whose manifest holds the hash of "
            "another config; bring the file back. To continue with other values, start another run with FROM=... and "
            "RUN_DIR=..."
        )


def load_progress(path: Path) -> Progress:
    """Progress of the checkpoint at `path`; step 0 if there is none. Raises `Damaged` for a missing or damaged file."""
    return read_json(Path(path) / PROGRESS, Progress) if Path(path).exists() else Progress()


def read_tensors(path: Path, name: str, is_checked: bool = False) -> dict[str, Tensor]:
    """The tensors in a file of the checkpoint at `path`. Raises InputError if it is damaged.

    `is_checked` says that a process has read every byte just now."""
    if not is_checked and (Path(path) / MANIFEST).exists() and (Path(path) / name).exists():
        hash_file_of(path, name)
    return read_checkpoint(Path(path) / name, RESTORE)


def load_weights(path: Path, model: nn.Module, is_checked: bool = False) -> None:
    """Load the weights of a checkpoint directory into a model of the same config; see `read_tensors`.

    A model without a loss takes those of backbone and head."""
    file = weights_in(path)
    load_state(model, fitting(read_tensors(path, WEIGHTS, is_checked), model), file)


def fitting(tensors: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Tensors by name, `without_loss` if the model has none that learns."""
    return tensors if any(name.startswith(LOSS) for name in model.state_dict()) else without_loss(tensors)


def without_loss(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by name without those that a loss learned for itself."""
    return {name: value for name, value in tensors.items() if not name.startswith(LOSS)}


def use_average(path: Path, model: nn.Module) -> None:
    """Load the averaged weights of a checkpoint directory into a model; InputError if the run has no average."""
    buffers = dict(model.state_dict())  # are not averaged
    load_state(model, buffers | fitting(read_average(path), model), Path(path) / AVERAGE)


def read_average(path: Path, is_checked: bool = False) -> dict[str, Tensor]:
    """The averaged weights in a checkpoint directory, by name; InputError if there are none. See `read_tensors`."""
    return read_tensors(path, weights_in(path, averaged=True).name, is_checked)


def recorded_sha256(path: Path, name: str) -> str:
    """SHA-256 of a file in the checkpoint at `path` as its manifest has it, or of the file if there is no manifest."""
    if _has_manifest(path):
        return read_json(path / MANIFEST, Manifest).sha256[name]
    return hash_file(path / name)


def owes_row(run_dir: Path, progress: Progress) -> bool:
    """Whether a run died between its checkpoint and the row of metrics.jsonl of the same step.

    Then `window` holds what the row is about, and no row has its step."""
    rows = read_metrics(Path(run_dir) / "metrics.jsonl") if progress.window else []
    return bool(progress.window) and all(row["step"] != progress.step for row in rows)


def hash_file_of(path: Path, name: str) -> str:
    """SHA-256 of a file in the checkpoint at `path`; `Damaged` if it is not what was written."""
    if not (Path(path) / MANIFEST).exists():
        return hash_file(Path(path) / name)
    with advising(RESTORE):
        return check_sha256(Path(path) / name, read_json(Path(path) / MANIFEST, Manifest).sha256.get(name))


def hash_weights(path: Path, averaged: bool = False) -> str:
    """SHA-256 of the weights in the checkpoint at `path`, or of their average; InputError if it has none, or they are
    damaged."""
    return hash_file_of(path, weights_in(path, averaged).name)


def weights_in(path: Path, averaged: bool = False) -> Path:
    """The file of the weights in the checkpoint at `path`, or of their average; InputError if it has none."""
    file, run_dir = Path(path) / (AVERAGE if averaged else WEIGHTS), Path(path).parent.parent
    if not file.exists() and averaged:
        raise InputError(
            f"no averaged weights in {path}; take the weights of the last step (use_ema=false), or train a run with "
            "ema_decay=0.9999 in another directory (RUN_DIR=...)"
        )
    if not file.exists():
        raise MissingArtifact(
            "run", run_dir, f"no checkpoint in {run_dir}; train or resume the run", **run_facts(run_dir)
        )
    return file


def weights_file(run_dir: Path, averaged: bool = False) -> Path:
    """The file of a run's last weights, or of their average; InputError if it has none."""
    return weights_in(last_checkpoint(run_dir), averaged)
