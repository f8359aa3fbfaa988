"""A race from its config to its record: on equal terms, resumed, and refused in plain words."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pipeline
import pytest
import race as stage
from jobs import Job
from race_plan import (
    RaceConfig,
    check_contenders,
    check_parameters,
    equal_seconds,
    parameters_of,
    plan_run,
    plan_tuning,
)
from script_runner import run_script
from stage import CONFIGS, load_config
from tiny_artifacts import make_artifacts
from user_errors import tells

from llamagen.evaluation.lite import EvalLiteConfig, evaluate_lite
from llamagen.train import train
from llamagen.training.config import TrainConfig
from masc.runtime.errors import InputError
from masc.runtime.run import read_metrics
from reports.race.records import newest_record, read_record
from reports.race.rows import Cell

CELL = Cell(1.0, 12)
RACES = sorted(file.stem for file in (CONFIGS / "race").glob("*.yaml"))


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    root = tmp_path_factory.mktemp("race")
    make_artifacts(root / "artifacts")
    places = [f"{name}={root / name}" for name in ("artifacts", "runs", "records")]
    own = "+contenders.masc-two-level.tuning={model.multiple_of:[16,64]}"  # changes the number of parameters
    return load_config("race", RaceConfig, ["race=smoke", "lengths=[4]", own, *places])


def run_in_process(started: list[Job]):
    """Runs trainings and likelihoods in this process; a new process for each would take seconds to start."""

    def run_jobs(jobs, num_workers, description, unit):
        for job in jobs:
            if job.is_done():
                continue
            started.append(job)
            if Path(job.command[1]).stem == "train":
                train(load_config("train", TrainConfig, job.command[2:]))
            else:
                evaluate_lite(load_config("eval_lite", EvalLiteConfig, job.command[2:]))

    return run_jobs


@pytest.fixture(scope="module")
def raced(config):
    """The record of a race that was interrupted in its second run, and the trainings that were started."""
    started: list[Job] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "run_jobs", run_in_process(started))
        with pytest.MonkeyPatch.context() as stop, pytest.raises(KeyboardInterrupt):
            stop.setattr(stage, "plan_run", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            stage.race(config)
        directory = stage.race(config)
    return directory, [job.name for job in started]


def test_an_interrupted_race_repeats_no_run(raced, config):
    _, started = raced
    assert len(started) == len(set(started)) == 2 * (2 + 2) + 2 * 2  # trainings, likelihoods


def test_a_second_start_trains_nothing_and_gives_the_same_record_and_judgement(raced, config, monkeypatch, capsys):
    directory, _ = raced
    started: list[Job] = []
    monkeypatch.setattr(stage, "run_jobs", run_in_process(started))
    before = {file.name: file.read_bytes() for file in directory.iterdir()}
    stage.main(config)
    assert not started and newest_record(directory.parent) == directory == min(directory.parent.iterdir())
    assert {file.name: file.read_bytes() for file in directory.iterdir()} == before
    assert before["judgement.md"].decode() in capsys.readouterr().out


def test_the_record_holds_a_row_for_each_run(raced, config):
    record = read_record(raced[0])
    assert {(row.contender, row.seed) for row in record.rows} == {
        (name, seed) for name in config.contenders for seed in config.seeds
    }
    for row in record.rows:
        run = plan_run(config, row.cell, row.contender, row.chosen, row.seed, row.steps).config
        nats = [each["val/nats_per_token"] for each in read_metrics(run.directory / "metrics.jsonl") if each["step"]]
        assert row.last == pytest.approx(nats[-1], abs=1e-5) and row.best == pytest.approx(min(nats), abs=1e-5)
        assert (row.steps, row.threads, row.torch[:1]) == (4, 1, "2") and row.parameters == parameters_of(run)


def test_every_contender_has_the_same_number_of_tuning_runs_and_keeps_the_best(raced, config):
    for tuned in read_record(raced[0]).tuning:
        assert len(tuned.points) == config.tuning_budget and tuned.nats[tuned.chosen] == min(tuned.nats)


def test_tuning_never_sees_the_reported_images(config):
    tried, final = start_of(config, "flat"), plan_run(config, CELL, "flat", {}, 0, 12).config
    assert (tried.tuning_share, final.tuning_share) == (config.tuning_share, 0.0)
    assert tried.seed not in config.seeds and tried.directory != final.directory


def start_of(config, name):
    """The config of a contender's first tuning run."""
    values = {key: given[0] for key, given in config.grid(name).items()}
    return plan_tuning(config, config.cells[0], name, values).config


def test_every_race_bears_the_name_of_its_file():
    assert {name: load_config("race", RaceConfig, [f"race={name}"]).name for name in RACES} == {n: n for n in RACES}


@pytest.mark.slow
@pytest.mark.parametrize("name", RACES)
def test_the_contenders_of_every_race_can_be_compared(name):
    config = load_config("race", RaceConfig, [f"race={name}"])
    check_contenders({each: start_of(config, each) for each in config.contenders})


def test_a_key_of_several_gives_all_of_them_the_value(config):
    run = plan_run(config, CELL, "flat", {"model.token_dropout,model.ffn_dropout": 0.25}, 0, 4).config
    assert (run.model.token_dropout, run.model.ffn_dropout) == (0.25, 0.25)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["seeds=[0]"], "two seeds or more .* found SEEDS=0"),
        (["seeds=[0,0]"], "each once"),
        (["seeds=[0,1000]"], "none that is tuning_seed 1000"),
        (["~contenders.flat"], "needs the contender flat"),
        (["contenders.flat.head=masc"], "with head flat and loss ce"),
        (["seeds=[]"], "seeds must be numbers of 0 or more"),
        (["seeds=[-1,0]"], "seeds must be numbers of 0 or more"),
        (["shares=[]"], r"shares must be numbers in \(0, 1\]"),
        (["shares=[1.5]"], r"shares must be numbers in \(0, 1\]"),
        (["lengths=[]"], "lengths must be numbers of 1 step or more"),
        (["lengths=[0]"], "lengths must be numbers of 1 step or more"),
        (["num_workers=0"], "num_workers must be 1 or more"),
        (["+contenders.masc-two-level.tuning={optim.learning_rate:[1]}"], "tune each key once"),
        (['overrides=["steps=3"]'], "overrides of a race cannot set steps"),
        (['overrides=["model=llamagen-tiny"]'], "overrides of a race cannot set model"),
        (["equal=time"], "equal must be one of steps, seconds, parameters"),
        (["tuning_budget=0"], "tuning_budget >= 1"),
        (["race=nonesuch"], "there is no race called 'nonesuch'; RACE can be: data, embedded"),
    ],
)
def test_a_bad_race_is_refused_in_one_line(given, words):
    with tells(words):
        load_config("race", RaceConfig, ["race=smoke", *given])


UNEQUAL = (
    *("steps", "+init", "++from_checkpoint", "ema_decay", "precision", "micro_batches", "data.crops", "train_share"),
    *("tuning_share", "seed", "run_dir", "artifacts", "tokenizer_name", "model", "recipe@_global_", "optim", "head"),
)


def test_a_key_among_several_is_tuned_once(config):
    contender = replace(config.contenders["masc-two-level"], tuning={"model.dim, optim.learning_rate": [1]})
    with pytest.raises(ValueError, match=r"tune each key once .* found \['optim.learning_rate'\]"):
        replace(config, contenders={**config.contenders, "other": contender})


@pytest.mark.parametrize("key", UNEQUAL)
def test_keys_that_would_make_contenders_unequal_are_refused(config, key):
    name = key.lstrip("+").partition("@")[0]
    for given in ({"overrides": [f"{key}=1"]}, {"tuning": {f"model.dim, {key}": [1]}}):
        contender = replace(config.contenders["masc-two-level"], **given)
        with pytest.raises(ValueError, match=f"^other cannot be compared with flat if it sets {name}"):
            replace(config, contenders={**config.contenders, "other": contender})


def test_contenders_whose_choices_set_what_is_shared_are_refused(config):
    run = plan_run(config, CELL, "flat", {}, 0, 12).config
    with tells("other cannot be compared with flat: its batch_size is 4"):
        check_contenders({"flat": run, "other": replace(run, batch_size=4)})


def test_near_codes_are_made_where_codes_have_too_few(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(pipeline, "run_jobs", lambda jobs, *_: made.extend(job.command[2:] for job in jobs))
    artifacts = make_artifacts(tmp_path / "artifacts")
    for near in (0, 8):
        pipeline.make_inputs("emoji32", "twemoji", str(artifacts), tmp_path / "log", near)
    assert [command[-1] for command in made] == ["near=8"]


def test_equal_parameters_are_checked_and_equal_seconds_give_steps():
    check_parameters({"flat": 1000, "near": 1015})
    with pytest.raises(InputError, match=r"flat 1,000, far 1,100; set model.dim in the overrides of far"):
        check_parameters({"flat": 1000, "far": 1100})
    assert equal_seconds(600, {"flat": 0.1, "slow": 0.15, "fast": 0.05}) == {"flat": 600, "slow": 400, "fast": 1200}


def test_equal_seconds_take_the_rates_of_the_chosen_tuning_runs(raced, config):
    tuned = {(Cell(each.share, each.length), each.contender): each for each in read_record(raced[0]).tuning}
    steps = stage.steps_of(replace(config, equal="seconds"), tuned)
    assert steps[Cell(1.0, 4), "flat"] == 4 and np.all(np.array(list(steps.values())) >= 1)
    assert stage.steps_of(config, tuned) == dict.fromkeys(tuned, 4)


@pytest.mark.slow
def test_a_race_goes_from_nothing_to_samples_trees_and_a_record(tmp_path):
    places = [f"{name}={tmp_path / name}" for name in ("artifacts", "runs", "records")]
    run_script("race", "race=smoke", "num_samples=8", "replacement=true", *places)
    record = read_record(newest_record(tmp_path / "records"))
    assert all(row.fd_lite0 > 0 for row in record.rows) and len(record.rows) == 4
    assert list(record.replacement) == ["masc-two-level"] and record.replacement["masc-two-level"] > 15
    assert {table.value for table in record.judgement.tables} == {"last", "best", "fitted", "fd_lite0"}
