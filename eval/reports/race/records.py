"""Records of races: records/<date>-<race>/, written once and never changed.

race.yaml         version, when and where it was written, the config of the race
rows.csv          a row for each run (rows.py)
curves.json       the validations of each run
tuning.json       the points that each contender tried, with their results, and the chosen one
replacement.json  PSNR of the semantic replacement within each contender's tree, if it was measured
judgement.json, judgement.md, race.png, race.html   what follows from the files above"""

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from masc.runtime.files import replacing
from masc.runtime.reading import Damaged, advising, check_json, read_json, read_yaml
from masc.runtime.run import provenance
from reports.race.judgement import Judgement, judge
from reports.race.rows import RaceCurve, RaceRow, read_rows, rows_text

VERSION = 1
ABOUT = "race.yaml"
DATA_FILES = ("rows.csv", "curves.json", "tuning.json", "replacement.json")  # what a judgement follows from


@dataclass(frozen=True)
class Tuned:
    """The points that a contender tried in a cell, in order, and the index of the chosen one."""

    contender: str
    share: float
    length: int
    points: list[dict[str, Any]]  # config key -> value
    nats: list[float]  # at the last step, on the training groups that were held out for tuning
    chosen: int

    def __post_init__(self) -> None:
        if len(self.points) != len(self.nats) or not 0 <= self.chosen < len(self.points):
            raise ValueError("expected a result for each point, and one of them chosen")

    @property
    def values(self) -> dict[str, Any]:
        """The chosen point."""
        return self.points[self.chosen]


@dataclass(frozen=True)
class Terms:
    """The keys of a race's config that the pages read."""

    name: str
    model_name: str
    data_name: str
    tokenizer_name: str
    seeds: list[int]
    equal: str
    tuning_budget: int
    tuning_share: float


@dataclass(frozen=True)
class About:
    """race.yaml."""

    version: int
    written: str  # UTC, ISO 8601
    commit: str | None
    dirty: bool
    machine: str
    packages: dict[str, str]
    race: dict[str, Any]  # the config of `make race`; the pages read the keys of Terms

    @property
    def name(self) -> str:
        return str(self.race.get("name", ""))


@dataclass(frozen=True)
class Record:
    """The content of a record's files."""

    about: About
    rows: list[RaceRow]
    curves: list[RaceCurve]
    tuning: list[Tuned]
    replacement: dict[str, float]  # dB by contender; empty if it was not measured

    @property
    def judgement(self) -> Judgement:
        return judge(self.rows, self.curves, self.replacement)


def new_record(
    race: dict[str, Any],
    rows: Sequence[RaceRow],
    curves: Sequence[RaceCurve],
    tuning: Sequence[Tuned],
    replacement: dict[str, float],
) -> Record:
    """A record of this moment, commit and machine."""
    found = provenance()
    written = datetime.now(UTC).isoformat(timespec="seconds")
    place = {key: found[key] for key in ("commit", "dirty", "machine", "packages")}
    about = About(version=VERSION, written=written, race=race, **place)
    return Record(about, list(rows), list(curves), list(tuning), dict(replacement))


def write_record(record: Record, folder: Path, pages: dict[str, str | bytes]) -> Path:
    """Write a record and its pages (file name -> content) to a new directory in `folder`; return the directory.

    A record there with the same rows, curves, tuning and replacement is kept and returned: a race that is started again
    writes nothing new. No record is overwritten; a second one of a day gets a number."""
    data = {name: text.encode() for name, text in _data_files(record).items()}
    for directory in record_directories(folder):
        if all(_holds(directory / name, data.get(name)) for name in DATA_FILES):
            return directory
    stem = f"{record.about.written[:10]}-{record.about.name}"
    names = (stem if number == 1 else f"{stem}-{number}" for number in itertools.count(1))
    target = next(folder / name for name in names if not (folder / name).exists())
    about = yaml.safe_dump(asdict(record.about), sort_keys=False).encode()
    pages = {name: page if isinstance(page, bytes) else page.encode() for name, page in pages.items()}
    with replacing(target) as temporary:
        temporary.mkdir()
        for name, content in {ABOUT: about, **data, **pages}.items():
            (temporary / name).write_bytes(content)
    return target


def _data_files(record: Record) -> dict[str, str]:
    """The texts of DATA_FILES, as far as the record has them; a line for each curve and each tuned contender."""
    texts = {"rows.csv": rows_text(record.rows)}
    for name, content in (("curves.json", record.curves), ("tuning.json", record.tuning)):
        texts[name] = "[\n" + ",\n".join(json.dumps(asdict(each)) for each in content) + "\n]\n"
    return texts | ({"replacement.json": json.dumps(record.replacement) + "\n"} if record.replacement else {})


def _holds(file: Path, content: bytes | None) -> bool:
    """Whether a file has this content; None: whether there is none."""
    return file.read_bytes() == content if file.is_file() else content is None


def record_directories(folder: Path) -> list[Path]:
    """The directories of a folder that hold a record, in the order of their names."""
    return sorted(file.parent for file in Path(folder).glob(f"[!.]*/{ABOUT}"))


def read_record(directory: Path) -> Record:
    """The record in a directory; `Damaged` if a file is missing, damaged or of another version."""
    with advising(f"bring the record back, or remove {directory}"):
        about = _read_about(directory)
        replacement = directory / "replacement.json"
        return Record(
            about,
            read_rows(directory / "rows.csv"),
            read_json(directory / "curves.json", list[RaceCurve]),
            read_json(directory / "tuning.json", list[Tuned]),
            read_json(replacement, dict[str, float]) if replacement.exists() else {},
        )


def _read_about(directory: Path) -> About:
    file = directory / ABOUT
    content = read_yaml(file)
    if content.get("version") != VERSION:
        raise Damaged(f"expected a record of version {VERSION} in {file}, found version {content.get('version')!r}")
    check_json(content.get("race"), Terms, file)
    return check_json(content, About, file)


def newest_record(folder: Path = Path("records")) -> Path | None:
    """The directory of the record that was written last; None if there is none. `Damaged` for a damaged race.yaml."""
    directories = record_directories(folder)
    with advising(f"bring it back, or remove its record from {folder}"):
        return max(directories, key=lambda directory: _read_about(directory).written, default=None)
