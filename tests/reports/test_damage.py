"""Files that the pages read, damaged: see tests/damage.py. A page lists what it cannot read and shows the rest."""

import json

import numpy as np
import pytest
from damage import Kind, check, damaged, retyped_json, survives
from report_runs import make_run, measured

from masc.runtime.run import HISTOGRAM
from metrics.results import row
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
