"""Checkpoints of tests: changed on purpose, and bad steps."""

import json
import shutil
from pathlib import Path

import torch

from llamagen.model import build_model
from llamagen.runs import Run
from llamagen.training.checkpoint import MANIFEST, OPTIMIZER, last_checkpoint, list_checkpoints
from llamagen.training.loop import Loop
from llamagen.training.optim import build_optimizers
from llamagen.training.optimizer_state import load_optimizers
from masc.runtime.files import hash_file


def reseal(path: Path) -> None:
    """Let the manifest of a checkpoint fit its files as they are now."""
    manifest = json.loads((path / MANIFEST).read_text())
    files = [path / name for name in manifest["bytes"]]
    manifest |= {"bytes": {file.name: file.stat().st_size for file in files}}
    manifest |= {"sha256": {file.name: hash_file(file) for file in files}}
    (path / MANIFEST).write_text(json.dumps(manifest))


def poison(monkeypatch, *steps: int, value: float = float("nan")) -> None:
    """Give the gradient one bad value in some steps, counted from 1."""
    update = Loop.update

    def poisoned(self):
        if self.progress.step + 1 in steps:
            next(iter(self.model.own.parameters())).grad.view(-1)[0] = value
        return update(self)

    monkeypatch.setattr(Loop, "update", poisoned)


def age(run_dir: Path) -> Path:
    """Turn the newest checkpoint of a run into one of an earlier version, and delete the others; return its place."""
    run, path = Run(run_dir), last_checkpoint(run_dir)
    inputs, config = run.inputs, run.config
    model = build_model(config.model, config.head, inputs.shape, inputs.tree, config.seed, inputs.counts)
    optimizers = build_optimizers(model, config.optim, fused=True)
    load_optimizers(path, model, optimizers)
    torch.save(optimizers[0].state_dict(), path / "optimizer.pt")
    progress = json.loads((path / "progress.json").read_text())
    old = {key: progress[key] for key in ("step", "seconds", "shares", "precision")}
    (path / "progress.json").write_text(json.dumps(old))
    for name in (MANIFEST, OPTIMIZER):
        (path / name).unlink()
    for other in list_checkpoints(run_dir)[1:]:
        shutil.rmtree(other)
    return path.rename(path.with_name("last"))
