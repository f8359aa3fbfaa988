"""The page over all runs: protocols never mix, seeds and intervals show, published rows stand where they belong."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from stage import load_config

from masc.artifacts import InputError
from metrics.comparison import compare, entries
from metrics.curves import all_lines, draw
from metrics.overview import OverviewConfig, embed, time_text, write_overview
from metrics.results import Results, row
from metrics.runs import NATS, Run, TimeToTarget, is_better_high, reached_at
from metrics.subjects import find_subjects

PROTOCOL = {
    "protocol": "adm",
    "evaluator": "adm",
    "extractor": "inception-2015-12-05",
    "extractor_sha256": "6726825d" + "e" * 56,
    "resize": "tf1-bilinear",
    "num_images": 50_000,
    "image_size": 256,
    "images": "samples",
    "model": "llamagen-b",
    "data": "imagenet256",
    "drawn_at": 256,
    "guidance": 2.0,
    "seed": 0,
}
REFERENCE = {"reference": "adm-imagenet256", "reference_sha256": "f" * 64}
MASC = {"head": "masc", "tree": "masc", "K": 8192}


def make_run(root, label="flat", seed=0, nats=(7, 6, 5), model="llamagen-b", num_clusters=None, **more):
    """A run with a validation row every 10 steps of 32 images and 3,600 seconds; `more` are other metrics' values."""
    directory = root / model / label / f"seed{seed}"
    directory.mkdir(parents=True)
    head, _, tree = label.partition("-on-")
    config = {
        "seed": seed,
        "run_dir": str(directory),
        "tokenizer_name": "vq16",
        "model": {"name": model},
        "head": {"name": head, "num_clusters": num_clusters},
        "tree": {"name": tree or "masc"},
        "data": {"name": "imagenet256"},
    }
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    (directory / "provenance.json").write_text(json.dumps({"commit": "abc", "parents": {"val codes": "c" * 64}}))
    rows = [
        {"step": 10 * i, "images": 320 * i, "seconds": 3600.0 * i, NATS: value}
        | {metric.replace("_", " "): values[i] for metric, values in more.items()}
        for i, value in enumerate(nats)
    ]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def measured(directory, name="default-adm", fid=5.5, protocol=None, half=0.05):
    """FID with an interval, and IS, which has no reference."""
    common = PROTOCOL | {"head": "flat", **(protocol or {})}
    reference = {key: common.pop(key, value) for key, value in REFERENCE.items()}
    interval = {"low": fid - half, "high": fid + half, "level": 0.95, "method": "bootstrap", "replicates": 20}
    rows = [row("FID", fid, common | reference, interval), row("IS", 190.0, common | {"form": "adm"})]
    Results(rows).save(directory / "eval" / f"{name}.json")


def tables_of(root, files=()):
    subjects, skipped = find_subjects(root, list(files))
    assert not skipped
    return compare(entries(subjects))


def curves_of(root, targets=None, metrics=()):
    subjects, _ = find_subjects(root, [])
    return {
        each["metric"]: each for each in draw(all_lines(subjects, entries(subjects), metrics), targets or {}, "flat")
    }


@pytest.mark.parametrize(
    "other",
    [
        {"protocol": "paper", "evaluator": "torch-fidelity"},
        {"reference": "imagenet256-val"},
        {"reference_sha256": "0" * 64},
        {"extractor": "another"},
        {"resize": "pil-bicubic"},
        {"num_images": 5000},
        {"image_size": 384},
        {"captions_sha256": "c" * 64},
    ],
)
def test_numbers_of_two_protocols_never_share_a_table(tmp_path, other):
    directory = make_run(tmp_path)
    measured(directory)
    measured(directory, "default-other", protocol=other)
    tables, _ = tables_of(tmp_path)
    assert [len(table["rows"]) for table in tables] == [1, 1]
    # IS names no reference, and stands with the FID of its own file.
    assert all(len(table["columns"]) == 2 for table in tables)
    assert tables[0]["protocol"] != tables[1]["protocol"]


@pytest.mark.parametrize("other", [{"image_size": 384}, {"captions_sha256": "c" * 64}])
def test_tables_of_other_pictures_are_told_apart_by_their_titles(tmp_path, other):
    directory = make_run(tmp_path)
    measured(directory)
    measured(directory, "default-other", protocol=other)
    assert len({table["title"] for table in tables_of(tmp_path)[0]}) == 2


def test_the_two_forms_of_is_are_two_columns(tmp_path):
    flat, masc = make_run(tmp_path), make_run(tmp_path, "masc")
    measured(flat)
    measured(masc, protocol=MASC)
    file = masc / "eval" / "default-adm.json"
    file.write_text(file.read_text().replace('"form": "adm"', '"form": "torch-fidelity"'))
    (table,), _ = tables_of(tmp_path)
    assert table["columns"] == ["FID", "IS, form adm", "IS, form torch-fidelity"]
    cells = {row["name"]: [cell is not None for cell in row["cells"]] for row in table["rows"]}
    assert cells == {"llamagen-b flat": [True, True, False], "llamagen-b masc, K = 8192": [True, False, True]}


def test_clip_score_joins_its_protocols_table_and_names_its_own_evaluator(tmp_path):
    directory = make_run(tmp_path)
    measured(directory, protocol={"protocol": "coco", "evaluator": "torch-fidelity", "num_images": 30_000})
    results = Results.load(directory / "eval" / "default-adm.json")
    clip = {"protocol": "coco", "evaluator": "open_clip", "extractor": "ViT-B-32", "num_images": 30_000}
    Results([*results.rows, row("CLIP score", 0.3, clip)]).save(directory / "eval" / "default-adm.json")
    (table,), _ = tables_of(tmp_path)
    assert table["columns"] == ["FID", "IS", "CLIP score"] and table["protocol"]["extractor"] != "ViT-B-32"
    page = write_overview(OverviewConfig(runs=str(tmp_path), output=str(tmp_path / "report"))).read_text()
    assert page.count("extractor: ViT-B-32") == 1


def test_fid_of_few_images_carries_its_number(tmp_path):
    directory = make_run(tmp_path)
    for name, protocol in (
        ("a", {"num_images": 5000}),
        ("b", {}),
        ("c", {"protocol": "coco", "num_images": 30_000}),
        ("d", {"protocol": "coco", "num_images": 10_000}),
    ):
        measured(directory, name, protocol=protocol)
    tables, _ = tables_of(tmp_path)
    headings = {table["rows"][0]["file"]: table["columns"][0] for table in tables}
    assert headings == {"a": "FID (5,000)", "b": "FID", "c": "FID", "d": "FID (10,000)"}


def test_seeds_are_averaged_and_each_keeps_its_interval(tmp_path):
    for seed, fid in enumerate((5.0, 5.4, 5.5)):
        measured(make_run(tmp_path, seed=seed), fid=fid, protocol={"seed": seed, "weights_sha256": str(seed)})
    (table,), _ = tables_of(tmp_path)
    (line,) = table["rows"]
    assert line["seeds"] == [0, 1, 2] and len(line["places"]) == 3
    assert line["cells"][0]["mean"] == pytest.approx(5.3)
    assert line["cells"][0]["sd"] == pytest.approx(np.std([5.0, 5.4, 5.5], ddof=1))
    page = write_overview(OverviewConfig(runs=str(tmp_path), output=str(tmp_path / "report"))).read_text()
    assert "± 0.265 sd" in page and "5.000 [4.950, 5.050]" in page and "5.500 [5.450, 5.550]" in page
    markdown = (tmp_path / "report" / "all.md").read_text()
    assert "| llamagen-b flat | default-adm | 0, 1, 2 |" in markdown and "5.300 ± 0.265 sd" in markdown


@pytest.mark.parametrize("change", [{"guidance": 1.5}, {"weights": "average"}, {"step": 10}])
def test_seeds_that_differ_in_more_are_not_averaged(tmp_path, change):
    measured(make_run(tmp_path, seed=0))
    measured(make_run(tmp_path, seed=1), protocol=change)
    (table,), _ = tables_of(tmp_path)
    assert [line["seeds"] for line in table["rows"]] == [[0], [1]]


def test_runs_of_another_config_are_not_averaged_and_are_told_apart(tmp_path):
    measured(make_run(tmp_path / "one", seed=0))
    other = make_run(tmp_path / "two", seed=1)
    config = yaml.safe_load((other / "config.yaml").read_text()) | {"batch_size": 512}
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    measured(other)
    (table,), _ = tables_of(tmp_path)
    assert len({line["name"] for line in table["rows"]}) == 2
    assert all(str(tmp_path) in line["name"] for line in table["rows"])


def test_the_same_seed_twice_is_two_rows(tmp_path):
    measured(make_run(tmp_path / "one"))
    measured(make_run(tmp_path / "two"))
    (table,), _ = tables_of(tmp_path)
    assert [line["seeds"] for line in table["rows"]] == [[0], [0]]


def test_published_rows_stand_with_their_own_evaluator_only(tmp_path):
    measured(make_run(tmp_path), protocol={"images_seen": 300 * 1_281_167})
    masc = make_run(tmp_path, "masc")
    measured(masc, "default-paper", 4.9, {**MASC, "protocol": "paper", "evaluator": "torch-fidelity"})
    tables, others = tables_of(tmp_path)
    by_evaluator = {table["protocol"]["evaluator"]: table for table in tables}
    adm, paper = by_evaluator["adm"]["published"], by_evaluator["torch-fidelity"]["published"]
    assert {line["source"] for line in adm} == {"LlamaGen paper, Table 8"}
    assert {line["name"] for line in adm} == {"llamagen-b flat"}
    assert [line["values"]["FID"] for line in adm if line["same_settings"]] == [5.464]
    assert [(line["name"], line["cells"]) for line in paper] == [("llamagen-b masc, K = 8192", [4.81, 206.4])]
    # MASC's own row of flat is by torch-fidelity, and no flat run was measured so; Table 9's are drawn at 384 pixels.
    apart = {(line["source"], line["values"]["FID"]) for line in others}
    assert ("MASC, Table 1", 5.56) in apart and ("LlamaGen paper, Tables 9 and 10", 6.092) in apart
    assert not apart & {(line["source"], line["values"]["FID"]) for line in adm + paper}


@pytest.mark.parametrize(
    "other", [{"num_images": 5000}, {"extractor_sha256": "5" * 64}, {"resize": "half-pixel-bilinear"}]
)
def test_a_table_measured_otherwise_has_no_published_rows(tmp_path, other):
    measured(make_run(tmp_path), protocol=other)
    (table,), others = tables_of(tmp_path)
    assert table["published"] == [] and len(others) > 10
    page = write_overview(OverviewConfig(runs=str(tmp_path), output=str(tmp_path / "report"))).read_text()
    assert "other protocol" in page and ("FID (5,000)" in page) == ("num_images" in other)


def test_embedded_metrics_and_likelihood_have_their_own_tables(tmp_path):
    directory = make_run(tmp_path)
    measured(directory)
    lite = {"images": "samples", "num_images": 1000, "extractor": "efficientnet-lite0", "guidance": 2.0}
    Results([row("FD-lite0", 80.0, lite | {"reference": "twemoji train"}), row("IS-lite0", 9.0, lite)]).save(
        directory / "eval" / "default.json"
    )
    nats = {"num_images": 10, "codes_sha256": "c" * 64, "standard_error_over_images": 0.0123}
    Results([row("held-out nats per token", 5.0, nats)]).save(directory / "eval" / "likelihood.json")
    tables, _ = tables_of(tmp_path)
    assert [table["kind"] for table in tables] == ["images", "embedded", "likelihood"]
    assert [table["columns"] for table in tables[1:]] == [["FD-lite0", "IS-lite0"], ["held-out nats per token"]]
    page = write_overview(OverviewConfig(runs=str(tmp_path), output=str(tmp_path / "report"))).read_text()
    assert "± 0.012 se" in page


def test_a_release_and_results_from_elsewhere_count_without_curves(tmp_path):
    release = tmp_path / "runs" / "c2i_B_256"
    measured(release, fid=5.46, protocol={"release": "c2i_B_256"})
    measured(tmp_path / "pictures", "mine-adm", protocol={"images": "mine", "model": None, "head": None})
    outside = tmp_path / "pictures" / "eval" / "mine-adm.json"
    subjects, skipped = find_subjects(tmp_path / "runs", [outside])
    assert not skipped and [subject.name for subject in subjects] == ["c2i_B_256", str(outside)]
    (table,), _ = tables_of(tmp_path / "runs", [outside])
    assert len(table["rows"]) == 2
    assert {line["source"] for line in table["published"]} == {"LlamaGen paper, Table 8"}


def test_results_that_are_found_are_not_counted_again_when_named(tmp_path):
    directory = make_run(tmp_path)
    measured(directory)
    (table,), _ = tables_of(tmp_path, [directory / "eval" / "default-adm.json"])
    assert len(table["rows"]) == 1


@pytest.mark.parametrize(
    ("better_high", "target", "expected"),
    [(False, 5.5, 15.0), (True, 5.5, 25.0), (True, 9.0, None), (False, 1.0, None)],
)
def test_a_target_is_reached_from_the_worse_side(better_high, target, expected):
    x, y = np.array([0.0, 10, 20, 30]), np.array([3.0, 4, 5, 6]) if better_high else np.array([8.0, 6, 5, 4])
    assert reached_at(x, y, target, better_high) == expected


def test_points_that_are_not_finite_are_passed_over():
    assert reached_at(np.array([0.0, 10, 20]), np.array([8.0, np.nan, 4]), 6.0) == 10.0


def test_directions_follow_the_metrics_name():
    assert [is_better_high(name) for name in ("FID", "sFID", NATS, "train/nats_per_token", "FD-lite0")] == [False] * 5
    higher = ("IS", "precision", "recall", "CLIP score", "IS-lite0", "val/level_0_accuracy")
    assert all(is_better_high(name) for name in higher)
    assert is_better_high("speed/images_per_second") is None and is_better_high("train/learning_rate") is None


def test_a_target_that_was_there_from_the_start_gives_no_ratio():
    assert TimeToTarget(baseline=0.0, reached=0.0).saved is None
    assert TimeToTarget(baseline=None, reached=4.0).speedup is None


def test_time_to_target_in_both_forms_and_directions(tmp_path):
    make_run(tmp_path, "flat", nats=(7, 6, 5, 4), val_accuracy=(0.1, 0.2, 0.3, 0.4))
    make_run(tmp_path, "masc", nats=(7, 4, 3, 2), val_accuracy=(0.1, 0.25, 0.4, 0.5))
    make_run(tmp_path, "masc-on-random", nats=(7, 6, 5, 4.5), val_accuracy=(0.1, 0.1, 0.2, 0.3))
    curves = curves_of(tmp_path)

    def ratios(metric):
        return {
            each["name"].removeprefix("llamagen-b "): tuple(each["axes"][axis]["speedup"] for axis in each["axes"])
            for each in curves[metric]["times"]
        }

    assert ratios(NATS) == {"flat": (1,) * 3, "masc": pytest.approx((3,) * 3), "masc-on-random": (None,) * 3}
    assert ratios("val accuracy")["masc"] == pytest.approx((1.5,) * 3)
    assert ratios("val accuracy")["masc-on-random"] == (None,) * 3
    masc = next(each for each in curves[NATS]["times"] if each["name"].endswith("masc"))
    assert masc["axes"]["seconds"] == {"t0": 10800.0, "t": 3600.0, "saved": pytest.approx(2 / 3), "speedup": 3.0}
    page = write_overview(OverviewConfig(runs=str(tmp_path), output=str(tmp_path / "report"))).read_text()
    assert "<td>320</td><td>3.00</td><td>67%</td>" in page and '<td colspan="3">not reached</td>' in page


def test_hours_are_written_out_however_many():
    def hours(value):
        return time_text({"t": 3600.0 * value, "t0": 1.0, "speedup": 1.0, "saved": 0.0}, "seconds")["t"]

    assert [hours(value) for value in (0.001, 2.5, 520, 8333)] == ["0.001", "2.5", "520", "8,333"]


def test_a_name_is_never_read_as_mathematics(tmp_path):
    make_run(tmp_path / "one$^$")
    make_run(tmp_path / "two", nats=(7, 6, 4), seed=1, num_clusters=3)
    page = write_overview(OverviewConfig(runs=str(tmp_path), output=str(tmp_path / "report"))).read_text()
    assert page.count("one$^$") > 1


def test_a_stated_target_replaces_the_baselines_final_value(tmp_path):
    make_run(tmp_path, "flat", nats=(7, 6, 5, 4))
    make_run(tmp_path, "masc", nats=(7, 5, 3, 2))
    flat, masc = curves_of(tmp_path, {NATS: 6.0})[NATS]["times"]
    assert (flat["target"], flat["axes"]["images"]["t"]) == (6.0, 320.0)
    assert masc["axes"]["images"]["speedup"] == pytest.approx(2.0)
    never = curves_of(tmp_path, {NATS: 3.0})[NATS]["times"][1]["axes"]["images"]
    assert never == {"t0": None, "t": 640.0, "saved": None, "speedup": None}
    with pytest.raises(InputError, match=r"targets names FID.*it can name: val/nats_per_token"):
        curves_of(tmp_path, {"FID": 3.0})


def test_a_baseline_is_of_the_same_model_and_seed(tmp_path):
    make_run(tmp_path, "flat", seed=0, nats=(7, 6, 5))
    make_run(tmp_path, "flat", seed=0, nats=(7, 6, 4), model="llamagen-l")
    make_run(tmp_path, "masc", seed=1)
    make_run(tmp_path, "masc", seed=0, model="llamagen-l")
    times = curves_of(tmp_path)[NATS]["times"]
    targets = {(Path(each["place"]).relative_to(tmp_path).parts[:2], each["seed"]): each["target"] for each in times}
    assert targets == {
        (("llamagen-b", "flat"), 0): 5.0,
        (("llamagen-l", "flat"), 0): 4.0,
        (("llamagen-l", "masc"), 0): 4.0,
    }


def test_sample_sets_of_several_steps_make_a_curve_of_their_protocol(tmp_path):
    for label, fids in (("flat", (30, 20, 10)), ("masc", (20, 10, 5))):
        directory = make_run(tmp_path, label)
        for step, fid in zip((10, 20, 30), fids, strict=True):
            timed = {"step": step, "images_seen": 320 * step, "seconds": 60.0 * step, "head": label}
            measured(directory, f"step{step}-adm", fid, timed)
            measured(directory, f"step{step}-few", fid + 5, timed | {"num_images": 5000})
    subjects, _ = find_subjects(tmp_path, [])
    drawn = draw(all_lines(subjects, entries(subjects), ["FID"]), {}, "flat")
    assert {each["words"]: each["title"].split(", against")[0] for each in drawn} == {
        "FID": "adm, 50,000 images",
        "FID (5,000)": "adm, 5,000 images",
    }
    for each in drawn:
        assert [len(points["FID"]) for points in each["points"]] == [3, 3]
        assert each["times"][1]["axes"]["step"] == {
            "t0": 30.0,
            "t": 20.0,
            "saved": pytest.approx(1 / 3),
            "speedup": 1.5,
        }


def test_lines_of_one_run_with_other_settings_are_apart_and_have_their_own_baseline(tmp_path):
    for label, fids in (("flat", (30, 10)), ("masc", (20, 5))):
        directory = make_run(tmp_path, label)
        for guidance in (1.0, 2.0):
            for step, fid in zip((10, 20), fids, strict=True):
                timed = {"step": step, "head": label, "guidance": guidance}
                measured(directory, f"step{step}-{guidance}", fid - guidance, timed)
    subjects, _ = find_subjects(tmp_path, [])
    (drawn,) = draw(all_lines(subjects, entries(subjects), ["FID"]), {}, "flat")
    targets = {each["name"]: each["target"] for each in drawn["times"]}
    targets_of = [("guidance 1, drawn at 256 px", 9.0), ("guidance 2, drawn at 256 px", 8.0)]
    assert targets == {
        f"llamagen-b {label}, {text}": target for label in ("flat", "masc") for text, target in targets_of
    }
    assert list(drawn["svg"]) == ["step"]  # images and seconds are not known


def test_curves_on_other_held_out_codes_are_other_figures(tmp_path):
    make_run(tmp_path, "flat")
    other = make_run(tmp_path, "masc")
    (other / "provenance.json").write_text(json.dumps({"parents": {"val codes": "d" * 64}}))
    subjects, _ = find_subjects(tmp_path, [])
    drawn = draw(all_lines(subjects, [], []), {}, "flat")
    assert len(drawn) == 2 and sum(len(each["times"]) for each in drawn) == 1


def test_a_metric_that_nothing_follows_is_refused(tmp_path):
    make_run(tmp_path)
    with pytest.raises(InputError, match=r"no run follows FIDD .*val/nats_per_token"):
        write_overview(OverviewConfig(runs=str(tmp_path), metrics=["FIDD"], output=str(tmp_path / "report")))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.yaml", "seed: [", "cut short"),
        ("config.yaml", "seed: 0\nmodel: {name: a}\ndata: {name: b}\nhead: masc", "expected the config of a run"),
        ("config.yaml", "seed: 0\nmodel: {}\ndata: {name: b}", "expected the config of a run"),
        ("provenance.json", "{", "cut short"),
        ("provenance.json", "[]", "expected names and values"),
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


@pytest.mark.parametrize("line", ["3", '{"step": 1}', '{"step": 1, "images": 2, "seconds": "x"}'])
def test_rows_of_another_kind_are_refused(tmp_path, line):
    directory = make_run(tmp_path)
    with (directory / "metrics.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(InputError, match=r"as number 4 in .*metrics.jsonl"):
        Run.load(directory)


def test_a_half_written_run_a_broken_file_and_a_broken_picture_are_named(tmp_path):
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
    assert "no provenance.json" in reasons["seed0"] and "truncated" in reasons["default-adm.json"]
    assert "draw the samples again" in reasons["grid.png"]


def test_nothing_left_is_an_error_that_says_why(tmp_path):
    with pytest.raises(InputError, match=r"no run and no results in .*make train"):
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
    assert page.count("<svg") == 3 and 'src="data:image/png;base64,' in page and "<script" not in page
    assert (
        not re.search(r'(src|href)="(?!data:|#)', page) and "@import" not in page and not re.search(r"url\((?!#)", page)
    )
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == ["all.json", "all.md", "index.html"]
    ids = re.findall(r'<clipPath id="([^"]+)"', page)
    assert len(ids) == len(set(ids)) == 3  # a hidden figure must not own another's clip path


def test_large_grids_are_scaled_down(tmp_path):
    Image.new("RGB", (2064, 1032)).save(tmp_path / "grid.png")
    image = embed(tmp_path / "grid.png")
    assert image.startswith("data:image/jpeg") and len(image) < 60_000


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
