"""Subjects of the page over all runs: every readable run, release and file of results."""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from masc.runtime.errors import InputError, MissingArtifact
from masc.runtime.files import recover_all
from masc.runtime.reading import open_file
from masc.runtime.run import flatten
from metrics.results import Results
from reports.doctor.doctor import read_results
from reports.published import label_of
from reports.runs import FILES, RunRecord
from vq.readers.stored import FORMATS, UnreadableImage, decoding

STEP_GRID = re.compile(r"step-(\d{1,15})\.png")
PARTS = ("checkpoints", "samples", "eval", "wandb")  # folders of a run, which contain no runs


@dataclass(frozen=True)
class Subject:
    """A run, the sample sets of a release, or a file of results about images from elsewhere."""

    place: Path
    run: RunRecord | None
    results: dict[str, Results]  # by file name without .json
    grids: dict[str, Path]  # by sample set
    name: str = ""

    @cached_property
    def step_grids(self) -> dict[int, Path]:
        """The grids that the training drew, by step."""
        found = (STEP_GRID.fullmatch(path.name) for path in (self.place / "samples").glob("step-*.png"))
        return {int(match[1]): self.place / "samples" / match[0] for match in found if match}

    @property
    def seed(self) -> int | None:
        """The seed of training; None without a run."""
        return None if self.run is None else self.run.seed

    @cached_property
    def family(self) -> str:
        """A text that is equal for runs that differ only in their seed."""
        if self.run is None:
            return str(self.place)
        free = ("seed", *self.run.volatile)
        config = {key: value for key, value in flatten(self.run.config).items() if not key.startswith(free)}
        return json.dumps([self.run.label, config, self.run.provenance.parents], sort_keys=True, default=str)

    def about(self, protocol: dict[str, Any]) -> dict[str, Any]:
        """A row's protocol, completed with model, head, tree, K and data of the run's config."""
        if self.run is None:
            return protocol
        config = self.run.config
        names = {part: (config.get(part) or {}).get("name") for part in ("model", "data", "head", "tree")}
        names["K"] = (config.get("head") or {}).get("num_clusters")
        if self.run.label == "flat":
            names |= {"head": "flat", "tree": None, "K": None}
        return {key: value for key, value in names.items() if value is not None} | protocol

    def title(self) -> str:
        """Model and label, or the release, or the file; two subjects may share a title."""
        first = next(iter(self.results.values()), None)
        known = self.about({} if first is None else first.rows[0]["protocol"])
        clusters = f", K = {known['K']}" if known.get("K") else ""
        label = self.run.label if self.run else label_of(known)
        words = [known.get("release") or known.get("model"), None if known.get("release") else label]
        return " ".join(word for word in words if word) + clusters if words[0] else str(self.place)


def find_subjects(
    root: Path, files: list[Path], is_required: bool = True
) -> tuple[list[Subject], list[dict[str, str]]]:
    """Subjects below `root` and results at `files`, and a list of unreadable places with reasons.

    Raises InputError with those reasons if no subject is found and one `is_required`."""
    found, skipped = [], []
    for directory in _candidates(root):
        try:
            run = RunRecord.load(directory) if any((directory / name).exists() for name in FILES) else None
        except InputError as error:
            skipped.append({"place": str(directory), "reason": str(error)})
            continue
        results = _load_all(sorted((directory / "eval").glob("*.json")), skipped)
        recover_all(directory / "samples")
        grids = {path.parent.name: path for path in sorted((directory / "samples").glob("[!.]*/grid.png"))}
        grids = {name: path for name, path in grids.items() if is_image(path, skipped)}
        if run or results or grids:
            found.append(Subject(directory, run, results, grids))
    read = {(each.place / "eval" / f"{name}.json").resolve() for each in found for name in each.results}
    elsewhere = [path for path in files if path.resolve() not in read]
    for path, results in ((path, _load_all([path], skipped)) for path in elsewhere):
        found += [Subject(path, None, results, {})] * bool(results)
    if not found and is_required:
        reasons = "".join(f"\n  {each['place']}: {each['reason']}" for each in skipped)
        problem = f"no run and no results in {', '.join(map(str, [root, *files]))}{reasons}"
        raise MissingArtifact("run", root, f"{problem}\nSay where they are with RUNS=..., or train a run")
    return _named(found), skipped


def _candidates(root: Path) -> Iterator[Path]:
    """Directories with a run or sample sets, in order. Links are followed; no directory comes twice."""
    seen = set()
    for place, folders, names in os.walk(root, followlinks=True):
        real = Path(place).resolve()
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        if set(FILES) & set(names) or {"eval", "samples"} & set(folders):
            yield Path(place)
        folders[:] = sorted(name for name in folders if name not in PARTS and not name.startswith("."))


def _load_all(paths: list[Path], skipped: list[dict[str, str]]) -> dict[str, Results]:
    loaded = {}
    for path in paths:
        try:
            loaded[path.stem] = read_results(None, str(path))[path]
        except InputError as error:
            skipped.append({"place": str(path), "reason": str(error)})
    return loaded


def is_image(path: Path, skipped: list[dict[str, str]], advice: str = "draw the samples again") -> bool:
    """Whether a file is a complete image; otherwise it is added to `skipped`."""
    try:
        with decoding(str(path)), open_file(path) as (file, _), Image.open(file, formats=FORMATS) as image:
            image.load()
    except UnreadableImage as error:
        skipped.append({"place": str(path), "reason": f"no image, or truncated ({error.cause}); {advice}"})
        return False
    return True


def _named(subjects: list[Subject]) -> list[Subject]:
    """The subjects with names: one for each family. Families with equal titles get the place of their first subject."""
    families: dict[str, list[Subject]] = {}
    for subject in subjects:
        families.setdefault(subject.family, []).append(subject)
    # A seed with results may have a longer title (with K) than a seed without.
    titles = {family: max((member.title() for member in members), key=len) for family, members in families.items()}
    names = {}
    for family, title in titles.items():
        is_unique = list(titles.values()).count(title) == 1
        names[family] = title if is_unique else f"{title} ({families[family][0].place})"
    return [replace(subject, name=names[subject.family]) for subject in subjects]
