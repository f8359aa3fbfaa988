"""Records: what is written is read, nothing is overwritten, and damage is one error."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from damage import Kind, damaged, retyped_json, survives
from race_rows import make_curve, make_record, make_rows
from report_runs import HOSTILE

from masc.runtime.errors import InputError
from reports.race.figure import race_figure
from reports.race.page import judgement_text, newest_section, record_pages
from reports.race.records import newest_record, read_record, write_record

VALUES = {"flat": [4.2, 4.1, 4.3], 'mine, "x" |': [4.0, 3.9, 4.15]}
CURVES = [make_curve(name, seed, [6, 5, value]) for name, each in VALUES.items() for seed, value in enumerate(each)]


def make(**changes):
    record = make_record(make_rows(VALUES), CURVES, {'mine, "x" |': 20.5})
    return dataclasses.replace(record, about=dataclasses.replace(record.about, **changes))


@pytest.fixture
def written(tmp_path):
    record = make()
    return record, write_record(record, tmp_path, record_pages(record))


def test_a_record_is_read_as_it_was_written(written):
    record, directory = written
    assert read_record(directory) == record
    assert directory.name == f"{record.about.written[:10]}-made-up"
    assert read_record(directory).judgement == record.judgement


def test_the_same_results_make_no_second_record(written, tmp_path):
    _, directory = written
    assert write_record(make(written="2030-01-01T00:00:00+00:00"), tmp_path, {}) == directory
    assert len(list(tmp_path.iterdir())) == 1


def test_a_record_is_never_overwritten(written, tmp_path):
    record, directory = written
    before = {file.name: file.read_bytes() for file in directory.iterdir()}
    other = dataclasses.replace(record, rows=record.rows[1:])
    places = [write_record(other, tmp_path, {}), write_record(dataclasses.replace(record, curves=[]), tmp_path, {})]
    assert [place.name.removeprefix(directory.name) for place in places] == ["-2", "-3"]
    assert {file.name: file.read_bytes() for file in directory.iterdir()} == before


def test_the_newest_record_is_the_last_written(tmp_path):
    assert newest_record(tmp_path / "nowhere") is None
    for number, written in enumerate(
        ("2026-03-01T10:00:00+00:00", "2026-03-01T12:00:00+00:00", "2026-02-01T13:00:00+00:00")
    ):
        record = dataclasses.replace(make(written=written), rows=make_rows({"flat": [4.0 + number]}))
        write_record(record, tmp_path, {})
    assert newest_record(tmp_path).name == "2026-03-01-made-up-2"


def test_an_interrupted_writing_leaves_no_record(tmp_path, monkeypatch):
    write = Path.write_bytes

    def die(path, content):
        if path.name == "curves.json":
            raise KeyboardInterrupt
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", die)
    with pytest.raises(KeyboardInterrupt):
        write_record(make(), tmp_path, {})
    assert newest_record(tmp_path) is None and not list(tmp_path.iterdir())


def test_a_record_of_another_version_is_one_error(written):
    _, directory = written
    about = yaml.safe_load((directory / "race.yaml").read_text())
    (directory / "race.yaml").write_text(yaml.safe_dump(about | {"version": 2}))
    with pytest.raises(
        InputError, match=r"version 1 in .*race.yaml, found version 2; bring the record back, or remove"
    ):
        read_record(directory)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("name", ["race.yaml", "rows.csv", "curves.json", "tuning.json", "replacement.json"])
def test_a_damaged_record_is_a_record_or_one_error(written, name):
    _, directory = written
    copies = list(damaged((directory / name).read_bytes(), np.random.default_rng(0), 50))
    if name.endswith(".json"):
        copies += list(retyped_json((directory / name).read_bytes()))[::10]

    survives(Kind(directory / name, lambda: judgement_text(read_record(directory))), iter(copies))


def test_a_run_twice_in_the_rows_is_refused(written):
    _, directory = written
    file = directory / "rows.csv"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([*lines, lines[1]]))
    with pytest.raises(InputError, match="holds a run twice"):
        read_record(directory)


def test_the_figure_of_a_damaged_record_is_drawn(written):
    """Names, seeds and numbers of any size; fewer copies, because a figure takes a quarter of a second."""
    _, directory = written
    for name in ("rows.csv", "curves.json"):
        copies = list(damaged((directory / name).read_bytes(), np.random.default_rng(1), 60))[-8:]
        survives(Kind(directory / name, lambda: len(race_figure(read_record(directory)))), iter(copies))


def test_the_page_stands_alone_and_takes_names_as_text():
    values = {"flat": [4.0, 4.1, 4.2], **{text: [4.1, 4.2, 4.3] for text in HOSTILE.values() if text.isprintable()}}
    curves = [make_curve(name, 0, [5, each[0]]) for name, each in values.items()]
    page = record_pages(make_record(make_rows(values), curves))["race.html"]
    assert "<script" not in page and "<img src=x" not in page and page.count("<img") == 1
    assert 'src="http' not in page and "&lt;script&gt;" in page and "Race made-up" in page


def test_another_report_shows_the_newest_record(written, tmp_path):
    found = newest_section(tmp_path)
    assert found["title"].startswith("Race made-up") and found["place"] == str(written[1])
    assert [section.title for section in found["sections"]] == [
        "last held-out nats: 100% of the training data, 600 steps"
    ]
    assert newest_section(None) == newest_section(tmp_path / "nowhere") == {}


def test_the_pages_say_what_the_rows_give(written):
    record, _ = written
    pages = record_pages(record)
    assert "flat: 4.200 ± 0.100 over 3 seeds" in pages["judgement.md"]
    found = json.loads(pages["judgement.json"])["tables"][0]["verdicts"][0]
    assert found["word"] == "better" and found["difference"]["mean"] == pytest.approx(-0.18333, abs=1e-4)
