"""A new run that begins at a checkpoint of another one (`FROM=...`), with other values of its config.

The model, the data and the batch are the same, so that weights, optimizer and order of the images go on where they
were; the rate, the number of steps, the precision and other settings may differ. provenance.json records the
checkpoint and every changed value, and metrics.jsonl begins with the rows of the other run."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamagen.training.checkpoint import (
    AVERAGE,
    WEIGHTS,
    Progress,
    check_checkpoint,
    last_checkpoint,
    load_progress,
    recorded_sha256,
)
from llamagen.training.config import TrainConfig, load_config
from masc.runtime.errors import InputError
from masc.runtime.files import write_text
from masc.runtime.reading import advising
from masc.runtime.run import CHECKPOINTS, differences, flatten, plain, read_metrics, read_provenance

BRANCH = "checkpoint it began at"  # kind of parent
# Settings that decide which numbers a checkpoint holds, and of which images.
FIXED = (
    *("model.", "head.", "loss.kind", "loss.width", "tree.", "data.", "train_share", "tuning_share"),
    *("tokenizer_name", "batch_size", "seed", "frozen", "optim.kind"),
)
FREE = (
    *("model.name", "model.token_dropout", "model.residual_dropout", "model.ffn_dropout", "model.drop_path"),
    *("head.name", "data.path", "tree.engine", "tree.coarsest"),
)
UNTOLD = ("run_dir", "from_checkpoint", "tracking.", "artifacts")  # keys that are not recorded as changed


@dataclass(frozen=True)
class Branch:
    """The checkpoint of another run where a run begins."""

    checkpoint: Path
    run_dir: Path
    progress: Progress
    changed: dict[str, list[Any]]  # key of the config -> its value there and now

    @property
    def record(self) -> dict[str, Any]:
        """What provenance.json says of it."""
        return {"checkpoint": str(self.checkpoint.absolute()), "step": self.progress.step, "changed": self.changed}

    @property
    def parents(self) -> dict[str, str]:
        """The SHA-256 of its weights, as a parent of the run."""
        return {BRANCH: recorded_sha256(self.checkpoint, WEIGHTS)}

    @property
    def lacks_average(self) -> bool:
        """Whether the other run kept no averaged weights: then they begin with those of the checkpoint."""
        return not (self.checkpoint / AVERAGE).exists()

    def check(self) -> None:
        """Raise `Damaged` if a byte of the checkpoint is not what was written."""
        with advising("set FROM to another checkpoint of the run"):
            check_checkpoint(self.checkpoint)

    def copy_rows(self, directory: Path) -> None:
        """Begin metrics.jsonl in `directory` with the rows of the other run up to the checkpoint."""
        rows = [row for row in read_metrics(self.run_dir / "metrics.jsonl") if row["step"] <= self.progress.step]
        write_text(directory / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def open_branch(config: TrainConfig, parents: dict[str, str]) -> Branch | None:
    """Where `config.from_checkpoint` says that a new run begins; None if it says nothing. `parents` are those of the
    new run.

    Its tensors are not read. Raises InputError for a checkpoint that is missing, of another model, optimizer, data or
    batch, or at or beyond the last step of the new run."""
    if config.from_checkpoint is None:
        return None
    given = Path(config.from_checkpoint)
    checkpoint = last_checkpoint(given) if (given / "config.yaml").exists() else given
    run_dir = checkpoint.absolute().parent.parent
    if checkpoint.parent.name != CHECKPOINTS or not checkpoint.is_dir():
        raise InputError(
            f"expected a checkpoint at {given}, as runs/.../{CHECKPOINTS}/step-00005000, or a run with one; found "
            f"{'a folder of another kind' if given.exists() else 'nothing'}; set FROM to one"
        )
    with advising("set FROM to another checkpoint of the run"):
        check_checkpoint(checkpoint, contents=False)
    progress, stored = load_progress(checkpoint), load_config(run_dir / "config.yaml")
    progress.skipped = 0  # the new run may skip as many bad steps as its config says
    there, now = flatten(plain(stored)), flatten(plain(config))
    fixed = {key for key in there | now if key.startswith(FIXED) and key not in FREE}
    if not config.uses_tree:
        fixed = {key for key in fixed if not key.startswith("tree.")}
    old = {key: there.get(key) for key in fixed} | _short(read_provenance(run_dir).parents)
    new = {key: now.get(key) for key in fixed} | _short(parents)
    kinds = {key for key in old if key in new or key in fixed}
    lines = differences({key: old.get(key) for key in kinds}, {key: new.get(key) for key in kinds})
    if lines:
        raise InputError(
            f"{checkpoint} (there) is of another model, optimizer, data or batch than the run {config.directory} "
            f"(now):\n{lines}\nThese must be the same: the optimizer and the order of the images go on. For other "
            "weights to begin with, set INIT"
        )
    if progress.step >= config.steps:
        raise InputError(
            f"{checkpoint} is at step {progress.step}, and the new run has {config.steps}; set steps higher"
        )
    changed = {
        key: [there.get(key), now.get(key)]
        for key in sorted(there | now)
        if there.get(key) != now.get(key) and not key.startswith(UNTOLD)
    }
    return Branch(checkpoint, run_dir, progress, changed)


def _short(parents: dict[str, str]) -> dict[str, str]:
    return {f"sha256 of the {name}": value[:12] for name, value in parents.items()}
