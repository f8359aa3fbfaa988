"""Runs as reports read them: label and volatile keys come from provenance.json."""

import json

import pytest
import yaml
from report_runs import make_run
from stage import load_config

from llamagen.training.config import TrainConfig
from masc.runtime.errors import InputError
from masc.runtime.run import LLAMAGEN
from reports.runs import NATS, RunRecord
from reports.subjects import find_subjects


def change(directory, **more):
    file = directory / "provenance.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | more))


@pytest.mark.parametrize("head", ["flat", "masc"])
def test_a_run_without_them_gets_the_label_and_volatile_keys_of_its_config(tmp_path, head):
    run = RunRecord.load(make_run(tmp_path, head))
    config = load_config("train", TrainConfig, [f"head={head}", "model=llamagen-b", "tokenizer_name=vq16"])
    assert run.label == config.label == head
    # As at the last version that did not write them.
    of_training = {"tracking.", "log_every", "checkpoint_every", "artifacts", "run_dir", "captions", "data.path"}
    of_training |= {"micro_batches", "tree.engine", "tree.coarsest"}
    assert set(run.volatile) == of_training | ({"tree."} if head == "flat" else set())


def test_label_and_volatile_keys_of_provenance_decide(tmp_path):
    runs = [make_run(tmp_path, "masc", seed) for seed in (0, 1)]
    for directory in runs:
        change(directory, label="masc-refined", volatile=["tokenizer_name", "run_dir"])
    config = runs[1] / "config.yaml"
    config.write_text(config.read_text().replace("vq16", "vq16-moved"))
    subjects, _ = find_subjects(tmp_path, [])
    assert [subject.run.label for subject in subjects] == ["masc-refined"] * 2
    assert subjects[0].family == subjects[1].family
    change(runs[1], volatile=["run_dir"])
    subjects, _ = find_subjects(tmp_path, [])
    assert subjects[0].family != subjects[1].family


@pytest.mark.parametrize("head", ["flat", "masc"])
def test_seeds_of_an_earlier_and_of_this_version_are_one_family(tmp_path, head):
    """An earlier config.yaml names no class of the model, and a flat head has the keys of the other heads."""
    for seed in (0, 1):
        file = make_run(tmp_path, head, seed) / "config.yaml"
        config = yaml.safe_load(file.read_text())
        if seed == 0:
            config["head"] |= {"kind": head, "num_clusters": None, "context": "token"}
        else:
            config["model"] |= {"target": LLAMAGEN}
            config["head"] = {"name": head, "kind": head} | (
                {"num_clusters": None, "context": "token"} if head == "masc" else {}
            )
        file.write_text(yaml.safe_dump(config))
    subjects, _ = find_subjects(tmp_path, [])
    assert subjects[0].family == subjects[1].family


def test_the_levels_of_a_tree_stand_in_their_order(tmp_path):
    directory = make_run(tmp_path, "masc")
    row = {"step": 40, "images": 1, "seconds": 1.0, NATS: 66.0, "val/level_0_accuracy": 0.5}
    row |= {f"val/level_{level}_nats": float(level) for level in (10, 2, 0, 1, *range(3, 10), 11)}
    with (directory / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    assert RunRecord.load(directory).final_level_nats == [float(level) for level in range(12)]


@pytest.mark.parametrize("more", [{"label": 3}, {"volatile": "seed"}, {"volatile": [3]}])
def test_a_provenance_of_another_form_is_refused(tmp_path, more):
    directory = make_run(tmp_path)
    change(directory, **more)
    with pytest.raises(InputError, match=r"provenance\.json does not hold what it should .*restore it"):
        RunRecord.load(directory)
