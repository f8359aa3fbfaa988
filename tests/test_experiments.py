"""Experiments: every one composes, agrees with its published rows, resumes, and says in one error what is missing."""

import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import experiment_stages
import pytest
from experiment import main
from experiment_page import SMOKE_WORDS, markdown, published_text, result_text
from experiment_plan import (
    check_possible,
    experiment_names,
    load_experiment,
    missing_here,
    smoke_version,
)
from experiment_stages import Stage, call, read_curves, run_stages, stages_of
from inception_weights import StandIn
from script_runner import run_script
from stage import load_config, named_config

from llamagen.evaluation.images import ExtractorConfig
from llamagen.training.plan import PlanConfig, make_plan
from masc.runtime.errors import InputError
from metrics.results import Results, row

NAMES = experiment_names()
NEEDS = [name for name in NAMES if name.startswith(("table3-var", "table3-randar", "table3-gigatok", "table5"))]
RUNNABLE = [name for name in NAMES if name not in NEEDS]
# Models of published rows that are LlamaGen under another name, and IAR, which is flat with a loss.
MODELS = {"ctf-l": "llamagen-l", "iar-xl": "llamagen-xl"}
TREES = {None: "masc", "kmeans": "kmeans-sklearn"}


@cache
def experiment(name):
    return load_experiment(name)


@cache
def training(name):
    return experiment(name).train_config()


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_is_a_published_row_or_says_that_it_is_ours(name):
    config = experiment(name)
    assert config.name == name and config.about and 1.0 in config.guidance
    assert config.ours == name.startswith("ours-")
    assert bool(config.needs) == (name in NEEDS)
    assert config.rows and "FID" in config.published.keys() | {key for row in config.rows for key in row.values}
    assert {row.guidance for row in config.rows} - {None} <= set(config.guidance)
    assert config.run is None or config.run in NAMES


@pytest.mark.parametrize("name", RUNNABLE)
def test_the_training_of_an_experiment_is_that_of_its_published_rows(name):
    config, train, num_tokens = experiment(name), training(name), 16384
    for published in [] if config.ours else config.rows:
        assert MODELS.get(published.model, published.model) == train.model.name
        if published.head == "iar":
            assert (train.head.name, train.loss.name) == ("flat", "cluster")
        elif name != "table10-l-random":
            assert (train.head.name, train.loss.name) == (published.head, "ce")
        if published.K is not None:
            assert train.cuts(num_tokens) == [published.K]
        if train.uses_tree and name != "table3-iar-xl-base":  # whose row does not state its balanced k-means
            trees = {published.tree or "masc", TREES.get(published.tree, published.tree)}
            assert train.tree.name in trees
        assert published.drawn_at == train.data.resolution and train.data.name.startswith("imagenet")
        if published.epochs is not None:
            assert train.steps * train.batch_size == published.epochs * 5004 * 256


def test_the_k_means_baseline_is_the_one_of_the_appendix():
    for size in ("b", "l", "xl"):
        config = training(f"table1-{size}-kmeans-8192")
        assert (config.tree.method, config.cuts(16384)) == ("kmeans-sklearn", [8192])


def test_samples_and_measurement_of_every_protocol_compose():
    seen = {}
    for name in RUNNABLE:
        config = experiment(name)
        seen[str((config.protocols, config.labels, config.resolution))] = config
    assert len(seen) == 4  # LlamaGen's and MASC's, each at 256 and 384 pixels
    for config in seen.values():
        name = next(iter(config.sets))
        drawn, measured = config.sample_config(name), config.fid_config(name)
        assert (drawn.num_images, drawn.form, drawn.sampling.guidance) == (50000, "tokens", 1.0)
        assert list(measured.protocols) == config.protocols and measured.labels == drawn.labels == config.labels
        assert (drawn.resolution or 256) == 256
    assert config.lite_config().samples == list(config.sets)


def test_runs_of_equal_experiments_are_shared_and_others_are_apart():
    places = {}
    for name in RUNNABLE:
        places.setdefault(experiment(name).directory, []).append(training(name))
    assert len(places) == len(RUNNABLE) - 3  # rows of Tables 2 and 10 that repeat Table 1
    for configs in places.values():
        assert all(config == configs[0] for config in configs)


def test_a_smoke_version_keeps_the_method_and_the_share_of_clusters(tmp_path):
    for name, clusters in (("table3-iar-xl-base", 8), ("llamagen-table8-b-256-50-epochs", 0)):
        config = smoke_version(replace(experiment(name), folder=str(tmp_path)))
        train = config.train_config()
        assert train.data.name == "twemoji" and train.model.name.endswith("-smoke") and train.steps == 24
        assert train.cuts(1024) == [clusters] * bool(clusters)
        assert (train.head.name, train.loss.name, train.tree.name) == (config.head, config.loss, config.tree)
        assert config.directory.parent.name == f"{name}-smoke" and config.is_lite and not config.weights


def test_an_unknown_name_is_answered_by_those_that_are_near():
    with pytest.raises(InputError, match="no experiment called 'table1-xl-mask-8192'; NAME can be: ") as error:
        load_experiment("table1-xl-mask-8192")
    assert "table1-xl-masc-8192" in str(error.value) and "llamagen" not in str(error.value)


@pytest.mark.parametrize("smoke", [False, True])
def test_what_this_project_does_not_have_is_named(smoke):
    with pytest.raises(InputError, match=r"table3-var-d24-masc-2048 needs what .*: the backbone VAR"):
        main(replace(experiment("table3-var-d24-masc-2048"), smoke=smoke))


def test_what_is_missing_here_is_one_error_before_any_stage(elsewhere, monkeypatch):
    monkeypatch.setattr(experiment_stages, "call", lambda command: pytest.fail("started"))
    monkeypatch.setattr(experiment_stages, "fetch", lambda *given: pytest.fail("downloaded"))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(InputError) as error:
        main(replace(experiment("table1-b-base"), gpus=8))
    for words in ("table1-b-base cannot be run here", "DATA_PATH=FOLDER", "GPUS=8, and this machine has 1"):
        assert words in str(error.value)
    with pytest.raises(InputError, match="no folder nowhere"):
        check_possible(replace(experiment("table1-b-base"), data_path="nowhere"))


def test_a_listing_says_what_this_machine_lacks(elsewhere, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    lacks = missing_here(experiment("table1-b-base"))
    assert lacks[:2] == ["images of imagenet", "a GPU"] and "weights vq_ds16_c2i" in lacks
    Path("weights").mkdir()
    assert missing_here(replace(experiment("table1-b-base"), data_path="weights"))[0] == "a GPU"
    assert missing_here(experiment("table5-rar-l-masc")) == ["needs the backbone RAR (configs/model/rar-l.yaml)"]


@pytest.mark.slow
def test_the_cost_is_that_of_the_plan():
    plan = experiment("ours-b-soft-codes").plan()  # the loss is left out
    words = ["model=llamagen-b", "head=flat"]
    whole = make_plan(load_config("train", PlanConfig, words), named_config("tokenizer", "vq16"))
    assert not plan.memory
    for value in ("image_flops", "step_flops", "checkpoint", "codes", "parameters"):
        assert getattr(plan, value) == getattr(whole, value)


def test_an_experiment_names_a_published_row():
    with pytest.raises(ValueError, match=r"no row of eval/reports/published.yaml has the values \{'modell"):
        replace(experiment("table1-b-base"), published={"modell": "llamagen-b"})


@pytest.fixture
def stages():
    """Three stages that note their runs; the second fails until it is mended."""
    done, ran, state = set(), [], {"broken": True}

    def stage(name):
        def run():
            ran.append(name)
            if name == "train" and state["broken"]:
                sys.exit(3)
            done.add(name)

        return Stage(name, lambda: name in done, run)

    return [stage(name) for name in ("codes", "train", "sample")], ran, state


def test_a_second_start_continues_after_the_stage_that_failed(stages, capsys):
    all_of_them, ran, state = stages
    with pytest.raises(SystemExit):
        run_stages(all_of_them)
    assert ran == ["codes", "train"]
    state["broken"] = False
    run_stages(all_of_them)
    assert ran == ["codes", "train", "train", "sample"]
    run_stages(all_of_them)
    assert len(ran) == 4 and "[3/3] sample: done" in capsys.readouterr().out


def test_a_failed_command_ends_the_experiment_with_its_status(capfd):
    with pytest.raises(SystemExit) as ended:
        call([sys.executable, "-c", "raise SystemExit('error: no memory')"])
    assert ended.value.code == 1
    assert "error: no memory\nthe experiment ends here; the same command continues" in capfd.readouterr().err


def results(fid, inception):
    protocol = {"protocol": "paper", "num_images": 50000}
    return Results([row("FID", fid, protocol), row("IS", inception, protocol)])


def test_the_end_shows_the_whole_curve_the_optimum_and_the_published_row():
    curve = {1.0: results(20.0, 60.0), 1.75: results(2.7, 250.0), 2.0: results(2.9, 270.0)}
    text = result_text(experiment("table1-xl-masc-8192"), {"paper": curve})
    lines = [line.split() for line in text.splitlines()]
    assert ["1", "20.000", "60.000"] in lines
    assert ["1.75", "2.700", "250.000", "<-", "lowest", "FID"] in lines
    assert any(line[:4] == ["not", "stated", "2.58", "272.1"] for line in lines)
    curves = result_text(experiment("llamagen-table8-b-256"), {"adm": curve, "paper": curve})
    assert curves.count("published: LlamaGen paper, Table 8") == 6 and SMOKE_WORDS not in curves
    assert published_text(experiment("llamagen-table8-b-256")) == "5.464 at 2"


def test_the_table_of_the_docs_names_every_experiment(root):
    text = (root / "docs" / "experiments.md").read_text()
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    listed = {cells[0].removeprefix("| "): cells for cells in rows}
    assert [name for name in listed if name != "NAME"] == NAMES
    for name in NAMES:
        assert listed[name][1:3] == [experiment(name).about, published_text(experiment(name))]
    assert markdown([["a", "b"], ["1", "2"]]) == ["| a | b |", "|---|---|", "| 1 | 2 |"]


def run_in_process(commands):
    """A stand-in for `call` that runs scripts in this process and notes their names."""

    def run(command):
        words = [word for word in command[1:] if Path(word).suffix == ".py"]
        stage = Path(words[-1]).stem
        commands.append(stage)
        run_script(stage, *command[command.index(words[-1]) + 1 :])

    return run


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    return tmp_path_factory.mktemp("experiments")


def smoke(name, workplace, *overrides):
    places = [f"{key}={workplace / key}" for key in ("artifacts", "runs", "folder")]
    return load_experiment(name, "smoke=true", *places, *overrides)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNNABLE)
def test_the_smoke_version_of_every_experiment_runs_end_to_end(name, workplace, monkeypatch, capsys):
    monkeypatch.setattr(experiment_stages, "call", run_in_process([]))
    main(smoke(name, workplace))
    printed = capsys.readouterr().out
    assert printed.startswith(SMOKE_WORDS) and printed.endswith(f"{SMOKE_WORDS}\n")
    assert "lowest FD-lite0" in printed and "No mistake found" in printed and "published" in printed


@pytest.mark.slow
def test_with_the_inception_network_a_smoke_test_is_measured_by_fid(workplace, monkeypatch, capsys):
    commands = []
    monkeypatch.setattr(experiment_stages, "call", run_in_process(commands))
    monkeypatch.setattr("experiment_plan.weights_path", lambda name, folder: folder)
    monkeypatch.setattr(ExtractorConfig, "load", lambda self, state: StandIn())
    config = smoke("llamagen-table8-b-256", workplace, f"runs={workplace / 'fid'}")
    main(config)
    assert commands[-5:] == ["sample", "sample", "reference", "eval_fid", "eval_fid"]
    printed = capsys.readouterr().out
    assert "adm, 32 images" in printed and "paper, 32 images" in printed and "lowest FID" in printed
    assert printed.count("published: LlamaGen paper, Table 8") == 6
    commands.clear()
    main(config)
    assert commands == []


@pytest.mark.slow
def test_an_experiment_that_was_stopped_goes_on_and_repeats_no_stage(workplace, monkeypatch):
    commands = []
    run = run_in_process(commands)
    config = smoke("table1-b-base", workplace, f"runs={workplace / 'resumed'}")

    def stop_before_sampling(command):
        if any(Path(word).stem == "sample" for word in command):
            sys.exit(75)
        run(command)

    monkeypatch.setattr(experiment_stages, "call", stop_before_sampling)
    with pytest.raises(SystemExit):
        main(config)
    assert commands[-1] == "train"
    commands.clear()
    monkeypatch.setattr(experiment_stages, "call", run)
    main(config)
    assert commands == ["sample", "sample", "eval_lite"]
    commands.clear()
    main(config)
    assert commands == []
    curves = read_curves(smoke_version(config))
    assert list(curves) == ["eval-lite"] and list(curves["eval-lite"]) == [1.0, 2.0]
    assert all(stage.is_done() for stage in stages_of(smoke_version(config)))
