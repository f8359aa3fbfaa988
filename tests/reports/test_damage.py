"""Files that the pages read, damaged: see tests/damage.py. A page lists what it cannot read and shows the rest."""

import json

import numpy as np
import pytest
import yaml
from damage import Kind, check, damaged, retyped, retyped_json, survives
from report_runs import make_run, measured

from masc.runtime.run import HISTOGRAM
from metrics.results import Results, row
from reports import figures
from reports.reproduction import SAMPLE_METRICS, ReportInputs, write_report
from reports.runs import RunRecord
from reports.subjects import find_subjects
from reports.tokenizer_tables import find_tokenizers

pytestmark = [pytest.mark.usefixtures("little_memory"), pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("name", ["config.yaml", "provenance.json", "metrics.jsonl"])
def test_runs(tmp_path, name):
    directory = make_run(tmp_path)

    def read():
        run = RunRecord.load(directory)
        return run.label, run.volatile, run.seed, {key: values.tolist() for key, values in run.curve.items()}

    check(Kind(directory / name, read, 300, is_json=name == "provenance.json"))


def test_histograms(tmp_path):
    directory = make_run(tmp_path)
    np.save(directory / HISTOGRAM, np.array([[5, 0, 2], [3, 3, 1]], np.uint32))
    run = RunRecord.load(directory)
    check(Kind(directory / HISTOGRAM, lambda: run.histogram.tolist(), 300))


@pytest.mark.parametrize("name", ["config.yaml", "provenance.json", "metrics.jsonl", "eval/default-adm.json"])
def test_a_page_lists_what_it_cannot_read(tmp_path, name):
    directory, other = make_run(tmp_path), make_run(tmp_path, "masc")
    measured(directory)
    measured(other)

    def read():
        subjects, skipped = find_subjects(tmp_path, [])
        titles = [(subject.title(), subject.family) for subject in subjects]
        assert any(subject.place == other for subject in subjects)
        return titles, skipped

    kind, whole = Kind(directory / name, read), (directory / name).read_bytes()
    copies = list(damaged(whole, np.random.default_rng(0), 100))
    if name.endswith(".json"):
        copies += list(retyped_json(whole))[::3]
    assert survives(kind, iter(copies))[1] == 0


def test_results_of_tokenizers(tmp_path):
    place = tmp_path / "emoji32" / "eval"
    place.mkdir(parents=True)
    protocol = {"tokenizer": "emoji32", "images": "twemoji val", "num_images": 10}
    rows = [row("PSNR", 20.0, protocol), row("SSIM", 0.5, protocol)]
    (place / "tokenizer.json").write_text(json.dumps({"reconstruction": rows, "inputs": {}}))
    case = {"tree": "masc", "K": 512, "largest_cluster": 9, "metrics": rows}
    (place / "replacement.json").write_text(json.dumps({"replacement": [case], "inputs": {}}))
    for name in ("tokenizer.json", "replacement.json"):
        whole = (place / name).read_bytes()
        copies = [*damaged(whole, np.random.default_rng(0), 300), *retyped_json(whole)]
        assert survives(Kind(place / name, lambda: find_tokenizers(tmp_path)), iter(copies))[1] == 0


LEVELS = {"train/nats_per_token": (7, 5.9, 4.9), "val/level_0_nats": (3.5, 3, 2.5), "val/level_1_nats": (3.5, 3, 2.5)}
REPORTED = (  # places, from the first run of the report
    *("config.yaml", "provenance.json", "metrics.jsonl", "eval/likelihood.json", "eval/default.json"),
    *("samples/default/images.npz", "../../flat/seed0/metrics.jsonl"),
    *("../../../tokenizer.json", "../../../replacement.json", "../../../pictures.npz"),
)


@pytest.fixture(scope="module")
def reproduction(tmp_path_factory):
    """All that the report of `make reproduce` reads of runs and of the tokenizer; the function writes the page."""
    root = tmp_path_factory.mktemp("reproduction")
    runs = [make_run(root, label, seed, **LEVELS) for label, seed in (("masc", 0), ("flat", 0), ("masc", 1))]
    for directory in runs:
        error = {"standard_error_over_images": 0.1}
        Results([row("held-out nats per token", 5.0, error)]).save(directory / "eval" / "likelihood.json")
        Results([row(metric, 5.0, {"model": "a"}) for metric in SAMPLE_METRICS]).save(directory / "eval/default.json")
    samples, images = runs[0] / "samples" / "default", np.zeros((3, 8, 8, 3), np.uint8)
    samples.mkdir(parents=True)
    np.savez(samples / "images.npz", images)
    np.savez(root / "pictures.npz", original=images)
    protocol = {"tokenizer": "emoji32", "images": "twemoji val", "num_images": 10}
    rows = [row("PSNR (dB)", 20.0, protocol | {"seeds": [0, 1], "by_seed": [19.0, 21.0], "sd_over_seeds": 1.4})]
    cases = [{"tree": tree, "K": 512, "largest_cluster": 9, "metrics": rows} for tree in ("masc", "random", "ward")]
    floors = {"training images": rows, "reconstructions": rows}
    (root / "tokenizer.json").write_text(json.dumps({"reconstruction": rows, "inputs": {}} | floors))
    (root / "replacement.json").write_text(json.dumps({"replacement": cases, "inputs": {}}))

    def write():
        inputs = ReportInputs([RunRecord.load(run) for run in runs], ["default"], tokenizer_results=root)
        return write_report(inputs, root / "report").read_text()

    return runs[0], write


def damaged_report(path, count):
    """`count` copies of a file of the report, with damaged values if it is text, else with damaged bytes."""
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    match path.suffix:
        case ".json":
            copies = list(retyped_json(whole))
        case ".yaml":
            copies = [yaml.safe_dump(content).encode() for content in retyped(yaml.safe_load(whole))]
        case ".jsonl":
            rows = list(map(json.loads, whole.splitlines()))
            lists = [content for content in retyped(rows) if isinstance(content, list)]
            copies = ["".join(json.dumps(row) + "\n" for row in content).encode() for content in lists]
        case _:
            copies = list(damaged(whole, rng, 100))
    return (copies[place] for place in rng.permutation(len(copies))[:count])


@pytest.mark.parametrize("name", REPORTED)
def test_the_report_of_damaged_runs_is_a_page_or_one_error(reproduction, monkeypatch, name):
    run, write = reproduction
    assert write().endswith("</html>")
    for figure, drawn in (("convergence", ""), ("overview", b"")):  # they take most of the time
        monkeypatch.setattr(figures, figure, lambda *_, drawn=drawn: drawn)
    assert all(survives(Kind(run / name, write), damaged_report(run / name, 15)))
