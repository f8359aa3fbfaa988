"""The directory of a run, with its config, provenance and metrics.

Its name is deterministic, so the same command finds its earlier work and continues."""

import contextlib
import json
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from masc.runtime.errors import InputError, removal
from masc.runtime.files import write_json, write_text
from masc.runtime.locks import lock_file
from masc.runtime.reading import advising, read_bytes, read_json, read_yaml
from masc.runtime.writing import flush, make_folder, writing

logger = logging.getLogger(__name__)
CHECKPOINTS = "checkpoints"  # folder of a run
HISTOGRAM = "histogram.npy"  # (2, V): how often each first choice is the most probable one and is right, held out
PACKAGES = (
    *("torch", "accelerate", "numpy", "scipy", "numba", "scikit-learn", "fastcluster", "faiss-cpu", "faiss-gpu"),
    "safetensors",
)


def plain(config: Any) -> Any:
    """A config dataclass as plain values (paths as strings), for config.yaml and the headers of artefacts."""
    if is_dataclass(config) and not isinstance(config, type):
        config = asdict(config)
    if isinstance(config, dict):
        return {str(key): plain(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [plain(value) for value in config]
    return str(config) if isinstance(config, Path) else config


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots: {"a": {"b": 1}} -> {"a.b": 1}."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def differences(there: dict[str, Any], now: dict[str, Any], volatile: tuple[str, ...] = ()) -> str:
    """A line for each key whose value differs between two flat configs; keys that begin with one of `volatile` are
    ignored."""
    changed = [key for key in sorted(there | now) if there.get(key) != now.get(key) and not key.startswith(volatile)]
    return "\n".join(f"  {key}: {there.get(key)!r:.200} there, {now.get(key)!r:.200} now" for key in changed)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the directory `path`, created if it is missing; InputError if another process holds it."""
    make_folder(path)
    with lock_file(path / ".lock", busy=f"another process is using {path}; wait for it, or stop it first"):
        yield


def run_label(head: str, tree: str | None, loss: str | None = None) -> str:
    """The label of a run: its head, `-on-` and the tree unless that is MASC's own, `-with-` and the loss unless that is
    cross-entropy.

    `tree` is None for a run that uses no tree."""
    label = head if tree in (None, "masc") else f"{head}-on-{tree}"
    return label if loss in (None, "ce") else f"{label}-with-{loss}"


def split_label(label: str) -> tuple[str, str, str]:
    """Head, tree and loss of a label; the tree is `masc` and the loss `ce` if the label names none."""
    rest, _, loss = label.partition("-with-")
    head, _, tree = rest.partition("-on-")
    return head, tree or "masc", loss or "ce"


# Target of the only backbone there was when configs named none.
LLAMAGEN = "llamagen.backbones.gpt:Transformer"


# Settings that optimizers and heads had before they were keys of a config.
YOUNGER_OPTIM = {"kind": "adamw", "momentum": 0.95, "norm_ceiling": None}
YOUNGER: dict[str, dict[str, Any]] = {"masc": {"members": "uniform"}, "masc-tree": {"depth": None, "balanced": False}}


def upgrade_config(stored: dict[str, Any]) -> dict[str, Any]:
    """A stored config of a run with the keys of this version.

    Earlier versions had one class for all heads, and LlamaGen as the only backbone. A section that is not a
    dictionary stays as it is."""
    upgraded = {"loss": {"name": "ce", "kind": "ce"}, "train_share": 1.0, "tuning_share": 0.0} | stored
    if isinstance(model := stored.get("model"), dict):
        upgraded |= {"model": {"target": LLAMAGEN} | model, "frozen": stored.get("frozen", [])}
    if isinstance(optim := stored.get("optim"), dict):
        upgraded["optim"] = YOUNGER_OPTIM | optim
    if isinstance(head := stored.get("head"), dict):
        # Keys of other heads, which had no effect.
        unread = ("num_clusters", "context") if head.get("kind") == "flat" else ()
        younger = YOUNGER.get(kind, {}) if isinstance(kind := head.get("kind"), str) else {}
        upgraded["head"] = younger | {key: value for key, value in head.items() if key not in unread}
    return upgraded


def run_facts(directory: Path) -> dict[str, str | None]:
    """Model, head, tree, loss and seed of a run, from its place runs/<model>/<label>/seed<seed>; else empty.

    The tree is None if it is MASC's own, the loss if it is cross-entropy."""
    *_, model, label, seed = ("", "", "", *Path(directory).parts)
    if not seed.startswith("seed") or not label:
        return {}
    head, tree, loss = split_label(label)
    facts = {"model": model, "head": head, "seed": seed.removeprefix("seed")}
    return facts | {"tree": None if tree == "masc" else tree, "loss": None if loss == "ce" else loss}


def check_run(
    path: Path, config: dict[str, Any], parents: dict[str, str], ignored: tuple[str, ...]
) -> dict[str, Any] | None:
    """The config of the run in a directory, which agrees with `config`; None if there is no run. Nothing is written.

    Keys that begin with one of `ignored` may differ. Raises InputError with all differing keys if the directory holds
    results of another config or of other parent artefacts, and if config.yaml or provenance.json is damaged, or missing
    beside checkpoints."""
    path = Path(path)
    file = path / "config.yaml"
    if not file.exists() and not (path / CHECKPOINTS).exists():
        return None
    with advising(f"copy it back, or choose another directory with RUN_DIR=...; {path} keeps its checkpoints"):
        stored, old_parents = read_yaml(file), read_provenance(path).parents
    stored = upgrade_config(stored)
    old, new = flatten(stored), flatten(upgrade_config(config))
    old |= {f"sha256 of the {name}": value[:12] for name, value in old_parents.items()}
    new |= {f"sha256 of the {name}": value[:12] for name, value in parents.items()}
    lines = differences(old, new, ignored)
    if lines:
        raise InputError(
            f"{path} holds a run with another config:\n{lines}\nChoose another directory with "
            f"RUN_DIR=..., or delete this one with `{removal(path)}` to train it again"
        )
    return stored


def begin_run(
    path: Path,
    config: dict[str, Any],
    parents: dict[str, str],
    volatile: tuple[str, ...],
    label: str,
    began_at: dict[str, Any] | None = None,
) -> None:
    """Create a run's directory, with config.yaml and provenance.json; `began_at` is its checkpoint of another run.

    provenance.json keeps `label` (of `run_label`) and `volatile`, the prefixes of keys that do not affect results, for
    readers that do not know the config's classes."""
    import yaml

    path = Path(path)
    branch = {} if began_at is None else {"began_at": began_at}
    write_json(
        path / "provenance.json",
        {"label": label, "volatile": list(volatile), "parents": parents, **branch, **provenance()},
    )
    write_text(path / "config.yaml", yaml.safe_dump(config, sort_keys=False))


def is_begun(path: Path) -> bool:
    """Whether a run's directory holds anything of a training: checkpoints, or a row of metrics after a step."""
    path = Path(path)
    return (path / CHECKPOINTS).exists() or any(row["step"] for row in read_metrics(path / "metrics.jsonl"))


def record_steps(path: Path, steps: int) -> None:
    """Change the number of steps in a run's config.yaml; its provenance.json keeps the earlier numbers."""
    import yaml

    path = Path(path)
    config, earlier = read_yaml(path / "config.yaml"), read_provenance(path).earlier_steps
    if config["steps"] not in earlier:  # else the process died between the two files
        content = read_json(path / "provenance.json") | {"earlier_steps": [*earlier, config["steps"]]}
        write_json(path / "provenance.json", content)
    write_text(path / "config.yaml", yaml.safe_dump(config | {"steps": steps}, sort_keys=False))


@dataclass(frozen=True)
class Provenance:
    """provenance.json of a run: where it came from. All but the parents may be missing in older runs."""

    parents: dict[str, str]  # kind of input -> its SHA-256
    label: str | None = None  # of `run_label`
    volatile: list[str] = field(default_factory=list)  # prefixes of config keys that do not affect results
    commit: str | None = None
    dirty: bool = False
    command: str = ""
    directory: str | None = None  # that relative paths of the config are relative to
    python: str = ""
    packages: dict[str, str] = field(default_factory=dict)
    machine: str = ""
    earlier_steps: list[int] = field(default_factory=list)  # numbers of steps before the run was lengthened
    began_at: dict[str, Any] | None = None  # checkpoint of another run, its step, and what was changed


def read_provenance(directory: Path) -> Provenance:
    """provenance.json of a run's directory; `Damaged` if it is missing or holds something else."""
    return read_json(Path(directory) / "provenance.json", Provenance)


def provenance() -> dict[str, Any]:
    """Commit, versions, command and machine of this process."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *arguments], capture_output=True, text=True, cwd=Path(__file__).parent, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "commit": git("rev-parse", "HEAD"),
        "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        "command": _in_utf8(" ".join(sys.argv)),
        "directory": _in_utf8(str(Path.cwd())),
        "python": platform.python_version(),
        "packages": versions,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def _in_utf8(text: str) -> str:
    """The text with an escape in the place of each byte of a name that is not UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


class MetricsLog:
    """Appends rows to metrics.jsonl: {"step": 10, "train/nats_per_token": 5.3, ...}."""

    def __init__(self, path: Path, resume_step: int):
        """Open the log and drop rows after `resume_step`, which an interrupted run wrote.

        A log that lacks the rows before gives a warning."""
        self.path = Path(path)
        kept = [row for row in read_metrics(self.path) if row["step"] <= resume_step] if resume_step else []
        if resume_step and not kept:
            logger.warning("%s holds no rows up to step %d: the curve of this run begins there", path, resume_step)
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))

    def write(self, row: dict[str, float | int]) -> None:
        with writing(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def flush(self) -> None:
        """Wait until the disk holds the rows: before a checkpoint, because a resumed run keeps those up to its step."""
        with writing(self.path):
            flush(self.path)


def read_metrics(path: Path) -> list[dict[str, float | int]]:
    """Rows of a metrics.jsonl in order; empty if there is no file.

    A line that is no row of numbers with a step is skipped, with one warning for all such lines."""
    from pydantic_core import from_json  # takes two thirds of the time of json.loads

    path = Path(path)
    if not path.exists():
        return []
    rows, broken = [], []
    for number, line in enumerate(read_bytes(path).splitlines(), 1):
        try:
            row = from_json(line)
        except ValueError:
            row = None
        if _is_row(row):
            rows.append(row)
        else:
            broken.append(number)
    if broken:
        logger.warning("skipping %d broken line(s) in %s, the first is line %d", len(broken), path, broken[0])
    return rows


def _is_row(content: Any) -> bool:
    """Whether a line of metrics.jsonl holds numbers by name, one of them the step."""
    if not isinstance(content, dict) or type(content.get("step")) is not int or content["step"] < 0:
        return False
    return {int, float}.issuperset(map(type, content.values()))
