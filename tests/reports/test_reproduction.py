"""Time to target, the report's table, and claims that follow from the numbers."""

import json

import numpy as np
import pytest
import yaml
from matplotlib import pyplot as plt
from race_rows import make_record, make_rows
from user_errors import tells

from masc.runtime.errors import InputError
from masc.runtime.run import HISTOGRAM
from metrics.results import Results, row
from reports import figures
from reports.claims import on_other_trees, state_claims
from reports.curves import METRIC_WORDS
from reports.figures import DIAGNOSTICS
from reports.race.records import write_record
from reports.reproduction import ReportInputs, overview_labels, summarise, write_report
from reports.runs import NATS, RunRecord, TimeToTarget, reached_at, time_to_target


def make_run(root, label, seed, nats, seconds_a_step=1.0):
    """A run directory with one validation row every 10 steps of 32 images."""
    directory = root / "llamagen-tiny" / label / f"seed{seed}"
    directory.mkdir(parents=True)
    config = {
        "seed": seed,
        "steps": 10 * (len(nats) - 1),
        "batch_size": 32,
        "tokenizer_name": "emoji32",
        "model": {"name": "llamagen-tiny"},
        "data": {"name": "twemoji"},
        "optim": {"learning_rate": 0.001, "table_scale": 4.0},
    }
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    (directory / "provenance.json").write_text(json.dumps({"commit": "abc", "parents": {}}))
    rows = []
    for index, value in enumerate(nats):
        row = {"step": 10 * index, "images": 320 * index, "seconds": 10 * index * seconds_a_step, NATS: value}
        if index:
            row["train/nats_per_token"] = value - 0.5
        if label == "masc":
            row |= {"val/level_0_nats": value - 0.5, "val/level_1_nats": 0.5}
        rows.append(row)
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return RunRecord.load(directory)


def test_diagnostics_are_drawn_of_the_runs_that_have_them(tmp_path):
    runs = [make_run(tmp_path, "flat", 0, [7, 6, 5]), make_run(tmp_path, "masc", 0, [7, 5, 4])]
    page = write_report(ReportInputs(runs, []), tmp_path / "report")
    assert "most probable choice" not in page.read_text()
    file = runs[1].directory / "metrics.jsonl"
    rows = [json.loads(line) | dict.fromkeys(DIAGNOSTICS, 0.5) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    drawn = figures.diagnostics([runs[0], RunRecord.load(runs[1].directory)])
    page = write_report(ReportInputs([runs[0], RunRecord.load(runs[1].directory)], []), tmp_path / "report")
    assert "most probable choice" in page.read_text() and drawn in page.read_text()
    with plt.rc_context({"svg.fonttype": "none"}):
        drawn = figures.diagnostics([runs[0], RunRecord.load(runs[1].directory)])
    assert all(METRIC_WORDS[metric] in drawn for metric in DIAGNOSTICS)
    assert ">masc<" in drawn and ">flat<" not in drawn


def test_the_newest_race_is_shown(tmp_path):
    run, records = make_run(tmp_path, "flat", 0, [7, 6]), tmp_path / "records"
    assert "Race made-up" not in write_report(ReportInputs([run], [], records=records), tmp_path / "report").read_text()
    write_record(make_record(make_rows({"flat": [4.0, 4.1], "masc": [4.2, 4.3]})), records, {})
    page = write_report(ReportInputs([run], [], records=records), tmp_path / "report").read_text()
    assert "Race made-up" in page and "undecided: 2 paired seeds, 3 are needed" in page


def test_histograms_are_drawn_of_the_first_run_of_each_label_that_has_one(tmp_path):
    runs = [make_run(tmp_path, label, seed, [7, 6]) for label in ("flat", "masc") for seed in (0, 1)]
    assert figures.histograms(runs) is None
    np.save(runs[3].directory / HISTOGRAM, np.array([[8, 0, 0], [4, 3, 1]], np.uint32))
    assert "never prefers" in write_report(ReportInputs(runs, []), tmp_path / "report").read_text()
    with plt.rc_context({"svg.fonttype": "none"}):
        drawn = figures.histograms(runs)
    assert ">masc<" in drawn and ">flat<" not in drawn


def test_the_time_a_curve_reaches_a_value_is_interpolated():
    x, y = np.array([0.0, 10, 20, 30]), np.array([7.0, 5, 4, 4.5])
    assert reached_at(x, y, 4.5) == 15
    assert reached_at(x, y, 7.0) == 0
    assert reached_at(x, y, 3.9) is None


def test_both_ways_of_stating_a_speedup():
    time = TimeToTarget(baseline=100, reached=40)
    assert time.saved == pytest.approx(0.6) and time.speedup == pytest.approx(2.5)
    never = TimeToTarget(baseline=100, reached=None)
    assert never.saved is None and never.speedup is None


def test_time_to_the_baselines_final_value_on_either_axis(tmp_path):
    flat = make_run(tmp_path, "flat", 0, [7, 6, 5, 4])
    fast = make_run(tmp_path, "masc", 0, [7, 4, 3.5, 3], seconds_a_step=2.0)
    by_images, by_seconds = (time_to_target(fast, flat, axis) for axis in ("images", "seconds"))
    assert by_images.speedup == pytest.approx(3.0)
    assert by_seconds.speedup == pytest.approx(1.5)  # each step costs twice as much
    slow = make_run(tmp_path, "masc-on-random", 0, [7, 6.5, 6, 5.5])
    assert time_to_target(slow, flat, "images").saved is None
    assert time_to_target(flat, flat, "images").speedup == pytest.approx(1.0)


def test_seeds_are_averaged_and_paired_with_their_own_baseline(tmp_path):
    runs = [make_run(tmp_path, "flat", seed, [7, 5, 4 + seed]) for seed in (0, 1)]
    runs += [make_run(tmp_path, "masc", seed, [7, 4, 3]) for seed in (0, 1)]
    flat, masc = summarise(runs, [])
    assert flat["nats"] == {"mean": 4.5, "sd": pytest.approx(np.std([4, 5], ddof=1)), "by_seed": [4, 5]} | {
        "se_over_images": None
    }
    assert masc["time_to_flat"]["images"]["of"] == 2
    # Seed 0: flat is at 4 in row 2, masc in row 1. Seed 1: flat is at 5 in row 1, masc two thirds on the way there.
    assert masc["time_to_flat"]["images"]["speedup"] == pytest.approx((2 + 1.5) / 2)


def claims_for(tmp_path, values):
    runs = [
        make_run(tmp_path, label, seed, [7, value]) for label, seeds in values.items() for seed, value in seeds.items()
    ]
    return state_claims(summarise(runs, []), None, [])


@pytest.mark.parametrize(
    ("masc", "verdict", "words"),
    [
        ({0: 3.0, 1: 3.02, 2: 3.01}, "supported", "better than flat"),
        ({0: 5.0, 1: 5.01, 2: 5.03}, "not supported", "worse than flat"),
        ({0: 3.0, 1: 5.0, 2: 3.9}, "undecided", "neither better nor worse"),
        ({0: 3.0}, "one seed", "better than flat: 3.000 against"),
        ({7: 3.0}, "undecided", "no seed has both runs"),
    ],
)
def test_a_claim_says_what_the_numbers_say(tmp_path, masc, verdict, words):
    claims = claims_for(tmp_path, {"flat": {0: 4.0, 1: 4.01, 2: 4.0}, "masc": masc})
    assert claims[0]["verdict"] == verdict and words in claims[0]["text"]
    assert "0.500 are the uniform draw of a member" in claims[1]["text"]


def test_the_interval_of_a_claim_is_students_over_paired_seeds(tmp_path):
    claims = claims_for(tmp_path, {"flat": {0: 4.0, 1: 5.0}, "masc": {0: 3.9, 1: 4.7}})
    # Differences -0.1 and -0.3: mean -0.2, standard error 0.1, t(0.975, 1) = 12.706.
    assert "difference -0.200, 95% interval -1.471 to +1.071, 2 seeds" in claims[0]["text"]


def test_a_speedup_is_a_mean_only_if_every_seed_got_there(tmp_path):
    runs = [make_run(tmp_path, "flat", seed, [7, 5, 4]) for seed in (0, 1)]
    runs += [make_run(tmp_path, "masc", 0, [7, 4, 3]), make_run(tmp_path, "masc", 1, [7, 6, 5])]
    time = summarise(runs, [])[1]["time_to_flat"]["images"]
    assert time == {"reached": 1, "of": 2, "saved": None, "speedup": None}
    page = write_report(ReportInputs(runs=runs, sample_sets=[]), tmp_path / "report").read_text()
    assert "reached by 1 of 2" in page


def test_limits_are_always_stated(tmp_path):
    claims = claims_for(tmp_path, {"flat": {0: 4.0}, "masc": {0: 4.6}})
    limits = " ".join(claim["text"] for claim in claims if claim["verdict"] == "limit")
    for words in ("nothing here supports or refutes", "one seed", "chosen on these held-out images", "memorise"):
        assert words in limits


def test_a_report_on_runs_alone(tmp_path):
    runs = [make_run(tmp_path, "flat", 0, [7, 5, 4]), make_run(tmp_path, "masc", 0, [7, 6, 5])]
    page = write_report(ReportInputs(runs=runs, sample_sets=[]), tmp_path / "report")
    assert "not reached" in page.read_text()
    assert "| masc | 1 | 0.001 x 4 | 5.000 |" in (tmp_path / "report" / "report.md").read_text()
    with pytest.raises(InputError, match="no trained runs"):
        write_report(ReportInputs(runs=[], sample_sets=[]), tmp_path / "report")


def test_samples_are_shown_without_a_tree(tmp_path):
    run = make_run(tmp_path, "flat", 0, [7, 6, 5])
    place = run.directory / "samples" / "default"
    place.mkdir(parents=True)
    np.savez(place / "images.npz", np.zeros((3, 8, 8, 3), np.uint8))
    write_report(ReportInputs([run], ["default"]), tmp_path / "report")
    assert (tmp_path / "report" / "overview.png").stat().st_size > 1000


def change_rows(run, change):
    """The run with changed rows of metrics.jsonl."""
    for each in run.rows:
        change(each)
    (run.directory / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in run.rows))
    return RunRecord.load(run.directory)


def test_what_is_missing_is_not_measured_on_the_page_and_in_the_claims(tmp_path):
    runs = [make_run(tmp_path, "flat", 0, [7, 5, 4])] + [make_run(tmp_path, "masc", seed, [7, 4, 3]) for seed in (0, 1)]
    metrics = ("FD-lite0", "IS-lite0", "precision-lite0", "recall-lite0")
    for run, names in zip(runs, (metrics, metrics[:3], metrics[1:]), strict=True):
        Results([row(name, 5.0, {}) for name in names]).save(run.directory / "eval" / "default.json")
        Results([row("held-out nats per token", 5.0, {})]).save(run.directory / "eval" / "likelihood.json")
    runs[1] = change_rows(runs[1], lambda each: each.pop("val/level_1_nats"))  # the other seed has two decisions
    runs[2] = change_rows(runs[2], lambda each: each.pop("train/nats_per_token", None))
    flat, masc = table = summarise(runs, ["default", "other"])
    assert flat["samples"]["default"]["recall-lite0"]["mean"] == 5.0 and flat["nats"]["se_over_images"] is None
    found = {metric: value["mean"] for metric, value in masc["samples"]["default"].items()}
    assert found == {"FD-lite0": None, "IS-lite0": 5.0, "precision-lite0": 5.0, "recall-lite0": None}
    assert (
        masc["level_nats"] == [] and masc["train_nats"] is None and flat["samples"]["other"]["IS-lite0"]["mean"] is None
    )
    texts = " ".join(claim["text"] for claim in state_claims(table, None, ["default"]))
    assert "lowest first: flat 5.0; not measured: masc. " in texts and "uniform draw" not in texts
    page = write_report(ReportInputs(runs, ["default", "other"]), tmp_path / "report").read_text()
    assert page.count("not measured") == 2 + 1 + 8 + 1  # in a sample set, of the training, in the other set, in a claim
    text = (tmp_path / "report" / "report.md").read_text()
    assert "| 3.000 | not measured | 2.00 | 50% | not measured | 5.000 | 5.000 | not measured |" in text


def test_a_time_of_zero_or_an_unknown_time_has_no_speedup(tmp_path):
    flat, masc = make_run(tmp_path, "flat", 0, [4]), make_run(tmp_path, "masc", 0, [4])
    assert summarise([flat, masc], [])[1]["time_to_flat"]["seconds"] == {
        "reached": 1,
        "of": 1,
        "saved": None,
        "speedup": None,
    }
    unknown = change_rows(flat, lambda each: each.update(seconds=float("nan")))
    found = summarise([unknown, masc], [])[1]
    assert found["time_to_flat"]["seconds"] == {"reached": 0, "of": 0, "saved": None, "speedup": None}
    write_report(ReportInputs([unknown, masc], []), tmp_path / "report")
    assert "| not measured |" in (tmp_path / "report" / "report.md").read_text()


def test_a_likelihood_that_is_not_finite_at_the_end_is_one_error(tmp_path):
    run = make_run(tmp_path, "flat", 0, [7, float("nan")])
    with pytest.raises(InputError, match=r"finite .* end of .*metrics\.jsonl, found nan; train the run again"):
        write_report(ReportInputs([run], []), tmp_path / "report")


@pytest.mark.parametrize("optim", [None, {}, {"learning_rate": "0.1", "table_scale": 1.0}, "missing"], ids=str)
def test_a_config_without_the_keys_of_the_report_is_refused_when_it_is_read(tmp_path, optim):
    run = make_run(tmp_path, "flat", 0, [7, 6])
    rest = {key: value for key, value in run.config.items() if key != "optim"}
    (run.directory / "config.yaml").write_text(yaml.safe_dump(rest | ({} if optim == "missing" else {"optim": optim})))
    with pytest.raises(InputError, match=r"config\.yaml does not hold what it should .* at optim.*restore it"):
        RunRecord.load(run.directory)


def test_a_part_of_the_tokenizers_results_gives_a_page(tmp_path):
    run = make_run(tmp_path, "flat", 0, [7, 6])
    protocol = {"tokenizer": "emoji32", "images": "twemoji val", "num_images": 9}
    psnr = row("PSNR (dB)", 20.0, protocol | {"seeds": [0], "by_seed": [20.0], "sd_over_seeds": None})
    cases = [("masc", psnr), ("random", psnr), ("ward", row("SSIM", 0.5, protocol))]
    cases = [{"tree": tree, "K": 512, "largest_cluster": 9, "metrics": [found]} for tree, found in cases]
    (tmp_path / "replacement.json").write_text(json.dumps({"replacement": cases}))
    np.savez(tmp_path / "pictures.npz", original=np.zeros((2, 8, 8, 3), np.uint8))
    page = write_report(ReportInputs([run], [], tokenizer_results=tmp_path), tmp_path / "report").read_text()
    assert "image keeps 20.0 dB, within random clusters of the same sizes 20.0 dB" in page
    (tmp_path / "replacement.json").unlink()
    (tmp_path / "tokenizer.json").write_text(json.dumps({"reconstruction": [psnr]}))
    page = write_report(ReportInputs([run], [], tokenizer_results=tmp_path), tmp_path / "report").read_text()
    assert "9 held-out images: PSNR (dB) 20." in page


def test_a_run_without_results_is_refused(tmp_path):
    with tells(r"no config.yaml in .*make train"):
        RunRecord.load(tmp_path)
    run = make_run(tmp_path, "flat", 0, [7, 6])
    (run.directory / "metrics.jsonl").write_text("")
    with pytest.raises(InputError, match="no validation results yet"):
        RunRecord.load(run.directory)


def test_claims_and_overview_follow_the_labels_of_the_runs():
    labels = ["flat", "rar", "rar-on-ward", "rar-on-kmeans", "rar-on-random"]
    controls = {"rar-on-random": "random", "rar-on-kmeans": "kmeans", "rar-on-ward": "ward"}
    assert list(on_other_trees("rar", labels).items()) == list(controls.items())
    assert overview_labels(labels) == ["flat", "rar", "rar-on-random"]
    assert overview_labels(["masc-on-random", "masc-on-kmeans"]) == ["masc-on-random", "masc-on-kmeans"]
    table = [
        {"label": label, "seeds": [0], "nats": {"mean": 4.0, "by_seed": [4.0]}, "train_nats": 4.0, "level_nats": []}
        for label in labels
    ]
    text = " ".join(claim["text"] for claim in state_claims(table, None, []))
    assert (
        "rar predicts held-out images" in text and "Under rar's head MASC's tree does worse than ward clusters" in text
    )
