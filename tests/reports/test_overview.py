"""The page of all runs: broken runs are named, and the page is one complete file."""

import json
import re
from pathlib import Path

import pytest
import yaml
from html_page import Page
from PIL import Image
from report_runs import HOSTILE, MASC, make_run, measured
from stage import load_config
from user_errors import tells

from masc.runtime.errors import InputError
from reports.overview import OverviewConfig, time_text, write_overview
from reports.page import embed, markdown_text
from reports.runs import NATS, RunRecord
from reports.subjects import find_subjects
from vq.readers.stored import UnreadableImage

pytestmark = pytest.mark.usefixtures("elsewhere")


def test_hours_are_written_out_however_many():
    def hours(value):
        return time_text({"t": 3600.0 * value, "t0": 1.0, "speedup": 1.0, "saved": 0.0}, "seconds")["t"]

    assert [hours(value) for value in (0.001, 2.5, 520, 8333)] == ["0.001", "2.5", "520", "8,333"]


def test_a_metric_that_nothing_follows_is_refused(tmp_path):
    make_run(tmp_path)
    with pytest.raises(InputError, match=r"no run has FIDD .*val/nats_per_token"):
        write_overview(OverviewConfig(runs=str(tmp_path), metrics=["FIDD"], output=str(tmp_path / "report")))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.yaml", "seed: [", "damaged"),
        ("config.yaml", "seed: 0\nmodel: {name: a}\ndata: {name: b}\nhead: masc", "at head"),
        ("config.yaml", "seed: 0\nmodel: {}\ndata: {name: b}", "at model.name"),
        ("provenance.json", "{", "JSON"),
        ("provenance.json", "[]", "an object"),
        ("metrics.jsonl", "", "no validation results yet"),
    ],
)
def test_a_broken_run_is_named_and_the_others_are_shown(tmp_path, name, content, words):
    make_run(tmp_path)
    broken = make_run(tmp_path, "masc")
    (broken / name).write_text(content)
    page = write_overview(OverviewConfig(runs=str(tmp_path), output=str(tmp_path / "report"))).read_text()
    assert "1 run in" in page and str(broken) in page and words in page
    (skipped,) = json.loads((tmp_path / "report" / "all.json").read_text())["skipped"]
    assert skipped["place"] == str(broken) and words in skipped["reason"]


@pytest.mark.parametrize("line", ['{"step": 1}', '{"step": 1, "images": 1%s, "seconds": 2}' % ("0" * 400)])
def test_rows_of_another_kind_are_refused(tmp_path, line):
    directory = make_run(tmp_path)
    with (directory / "metrics.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(InputError, match=r"as number 4 in .*metrics.jsonl"):
        RunRecord.load(directory)


def test_a_half_written_run_a_broken_file_and_a_broken_image_are_named(tmp_path):
    whole = make_run(tmp_path)
    (whole / "eval").mkdir()
    (whole / "eval" / "default-adm.json").write_text('{"format": "masc-res')
    (whole / "samples" / "default").mkdir(parents=True)
    (whole / "samples" / "default" / "grid.png").write_bytes(b"\x89PNG")
    half = tmp_path / "llamagen-b" / "masc" / "seed0"
    half.mkdir(parents=True)
    (half / "config.yaml").write_text("seed: 0\n")
    subjects, skipped = find_subjects(tmp_path, [])
    assert [subject.place for subject in subjects] == [whole]
    reasons = {Path(each["place"]).name: each["reason"] for each in skipped}
    assert "no provenance.json" in reasons["seed0"] and "JSON" in reasons["default-adm.json"]
    assert "draw the samples again" in reasons["grid.png"]


def test_samples_that_a_killed_process_had_renamed_are_shown(tmp_path):
    samples = make_run(tmp_path) / "samples"
    (samples / ".default.old").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(samples / ".default.old" / "grid.png")
    ((subject,), _) = find_subjects(tmp_path, [])
    assert list(subject.grids) == ["default"] and (samples / "default").is_dir()


def test_nothing_left_is_an_error_that_says_why(tmp_path):
    with tells(r"(?s)no run and no results in .*make train"):
        find_subjects(tmp_path / "runs", [])
    broken = make_run(tmp_path)
    (broken / "metrics.jsonl").write_text("")
    with pytest.raises(InputError, match=r"(?s)no run and no results.*no validation results yet"):
        find_subjects(tmp_path, [])


def test_the_page_needs_no_other_file(tmp_path):
    directory = make_run(tmp_path)
    make_run(tmp_path, "masc")
    measured(directory)
    (directory / "samples" / "default").mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(directory / "samples" / "default" / "grid.png")
    page = write_overview(OverviewConfig(runs=str(tmp_path), output=str(tmp_path / "report"))).read_text()
    parsed = Page(page)
    assert 'src="data:image/png;base64,' in page and not parsed.active and "default-src 'none'" in page
    assert [kind for kind, _ in parsed.scripts] == ["application/json", "", ""]
    assert len(parsed.charts["charts"][0]["lines"]) == 2
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == ["all.json", "all.md", "index.html"]


@pytest.mark.parametrize("name", HOSTILE)
def test_what_files_name_is_text_on_the_page_and_in_markdown(tmp_path, monkeypatch, name):
    monkeypatch.setenv("SECRET", "hunter2")
    hostile = HOSTILE[name]
    directory = make_run(tmp_path, model="m", **{f"val/{hostile}": (1.0, 2.0, 3.0)} if hostile.isprintable() else {})
    config = yaml.safe_load((directory / "config.yaml").read_text())
    named = {"name": hostile}
    (directory / "config.yaml").write_text(yaml.safe_dump(config | {"model": named, "data": named, "head": named}))
    (directory / "provenance.json").write_text(json.dumps({"parents": {}, "label": hostile, "commit": hostile}))
    protocol = {"model": hostile, "images": hostile, "release": hostile, "weights": "average", "data": hostile}
    measured(directory, protocol=protocol)
    (directory / "eval" / "bad.json").write_text(json.dumps({"format": hostile}))
    write_overview(OverviewConfig(runs=str(tmp_path), output=str(tmp_path / "report")))
    page, markdown = ((tmp_path / "report" / file).read_text() for file in ("index.html", "all.md"))
    parsed = Page(page)
    assert len(parsed.scripts) == 3 and not parsed.active and "img" not in parsed.tags
    assert "1337" not in re.sub(r"(?s)<script.*?</script>", "", page) + markdown
    assert "hunter2" not in page + markdown + (tmp_path / "report" / "all.json").read_text()
    assert "<" not in markdown and not re.search(r"(?<!\\)\][(\[:]", markdown)
    assert all(line.isprintable() and not line.startswith("# d") for line in markdown.splitlines())
    rows = [re.sub(r"\\.", "", line).count("|") for line in markdown.splitlines() if line.startswith("|")]
    assert rows and len(set(rows)) <= len([line for line in markdown.splitlines() if line.startswith("## ")])


def test_markdown_of_plain_words_is_the_words():
    assert markdown_text("FID (10,000) 5.3 ± 0.2 [5.1, 5.5] `make eval-fid` val/nats_per_token") == (
        "FID (10,000) 5.3 ± 0.2 [5.1, 5.5] `make eval-fid` val/nats_per_token"
    )
    assert markdown_text("a\\|b") == r"a\\\|b" and markdown_text("&lt;b>") == "&amp;lt;b>"


def test_an_image_that_is_too_large_is_named_and_the_rest_is_shown(tmp_path, monkeypatch):
    directory = make_run(tmp_path)
    (directory / "samples" / "default").mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(directory / "samples" / "default" / "grid.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    (subject,), (skipped,) = find_subjects(tmp_path, [])
    assert not subject.grids and "grid.png" in skipped["place"] and "pixels" in skipped["reason"]


def test_large_grids_are_scaled_down(tmp_path):
    Image.new("RGB", (2064, 1032)).save(tmp_path / "grid.png")
    image = embed(tmp_path / "grid.png")
    assert image.startswith("data:image/jpeg") and len(image) < 60_000


def test_an_image_is_shown_with_its_own_type_and_only_in_an_allowed_format(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "grid.png", format="jpeg")
    assert embed(tmp_path / "grid.png").startswith("data:image/jpeg")
    Image.new("RGB", (8, 8)).save(tmp_path / "other.png", format="pcx")
    with pytest.raises(UnreadableImage, match="not an image in one of the formats"):
        embed(tmp_path / "other.png")


def test_problems_of_the_doctor_are_listed_once_with_their_files(tmp_path):
    for seed in (0, 1):
        measured(make_run(tmp_path, seed=seed), protocol={"num_images": 5000})
    page = write_overview(OverviewConfig(runs=str(tmp_path), output=str(tmp_path / "report"))).read_text()
    findings = json.loads((tmp_path / "report" / "all.json").read_text())["findings"]
    few = [each for each in findings if each["code"] == "few-images"]
    assert len(few) == 1 and few[0]["verdict"] == "problem"
    assert few[0]["files"] == [f"{tmp_path}/llamagen-b/flat/seed{seed}, default-adm" for seed in (0, 1)]
    assert "What is probably wrong" in page and "and 1 more [few-images]" in page


def test_a_family_has_one_name_whether_its_seeds_were_measured_or_not(tmp_path):
    measured(make_run(tmp_path, "masc", seed=1), protocol=MASC)
    make_run(tmp_path, "masc", seed=0)
    subjects, _ = find_subjects(tmp_path, [])
    assert [subject.name for subject in subjects] == ["llamagen-b masc, K = 8192"] * 2


def test_the_stage_reads_its_config(tmp_path):
    make_run(tmp_path / "runs", val_accuracy=(0.1, 0.2, 0.3))
    words = [f"runs={tmp_path}/runs", f"output={tmp_path}/report", "metrics=[val/nats_per_token]"]
    page = write_overview(load_config("report", OverviewConfig, [*words, "+targets={val/nats_per_token: 5.5}"]))
    content = json.loads(page.with_name("all.json").read_text())
    assert [(each["metric"], each["times"][0]["target"]) for each in content["curves"]] == [(NATS, 5.5)]
