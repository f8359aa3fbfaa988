"""What a run keeps when its command is typed again: precision, shares of a batch, config, and its number of steps."""

import json

import pytest
from accelerate import Accelerator
from run_rows import losses
from train import check

from llamagen.runs import Run
from llamagen.train import check_run, train
from llamagen.training.checkpoint import last_checkpoint
from masc.runtime.errors import InputError


def test_a_run_goes_on_in_other_shares_but_not_in_another_precision(small_run, tmp_path, dies):
    unbroken = losses(train(small_run("head=flat", f"run_dir={tmp_path / 'unbroken'}")))
    dies(small_run("head=flat"), 5)
    with pytest.raises(InputError, match=r"started in fp32, now precision=bf16; .*set precision=fp32"):
        train(small_run("head=flat", "precision=bf16"))
    resumed = losses(train(small_run("head=flat", "micro_batches=4")))
    for one, other in zip(unbroken, resumed, strict=True):  # dropout is on
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)


CTF = "head=ctf", "head.width=32", "head.num_heads=2", "head.num_layers=1"


def test_a_head_whose_dropout_depends_on_shares_is_told_how_to_continue(small_run, dies, monkeypatch):
    dies(small_run(*CTF, "micro_batches=4"), 5)
    with pytest.raises(InputError, match=r"with 4 share\(s\).* make 1; set micro_batches=4.*compute.other_shares=true"):
        train(small_run(*CTF))
    with monkeypatch.context() as patch:
        patch.setattr(Accelerator, "num_processes", 3)
        patch.setenv("WORLD_SIZE", "3")
        with pytest.raises(InputError, match="start 4 processes"):
            train(small_run(*CTF))
    train(small_run(*CTF, "compute.other_shares=true"))


def test_a_run_is_refused_before_its_processes_start_as_they_would_refuse_it(small_run, dies, monkeypatch):
    dies(small_run("head=flat", "micro_batches=4"), 5)
    files = [file for file in small_run().directory.rglob("*") if file.is_file()]
    before = {file: file.read_bytes() for file in files}
    for processes, change, words in (
        (1, "seed=1", "seed: 0 there, 1 now"),
        (1, "head=masc", "head.kind: 'flat' there, 'masc' now"),
        (1, "precision=bf16", "started in fp32, now precision=bf16"),
        (1, "steps=20", "a run of 12 steps, now 20; its learning rate or its loss changes"),
        (1, "steps=4", "a run of 12 steps, now 4; a run cannot be shortened"),
        (1, "data=imagenet256", "training needs what is missing"),
    ):
        with pytest.raises(InputError, match=words):
            check_run(small_run("head=flat", "micro_batches=4", change), processes)
    check_run(small_run("head=flat", "micro_batches=2"), 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setenv("GROUP_WORLD_SIZE", "1")
    with pytest.raises(InputError, match="a multiple of 3 processes"):
        check(small_run("head=flat"))
    assert {file: file.read_bytes() for file in small_run().directory.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize(("there", "machine"), [("fp32", "bf16"), pytest.param("bf16", "fp32", marks=pytest.mark.slow)])
def test_auto_precision_is_that_of_the_run_on_any_machine(small_run, dies, monkeypatch, caplog, there, machine):
    monkeypatch.setattr("llamagen.train.resolve_precision", lambda asked: there if asked == "auto" else asked)
    config = small_run("head=flat", "precision=auto")
    dies(config, 5)
    monkeypatch.setattr("llamagen.train.resolve_precision", lambda asked: machine if asked == "auto" else asked)
    train(config)
    assert f"continues in {there}, in which it was started" in caplog.text
    assert Run(config.directory).progress.precision == there
    other = train(small_run("head=flat", f"precision={there}", f"run_dir={config.directory}-other"))
    assert losses(config.directory) == losses(other)
    train(small_run("head=flat", f"precision={there}"))  # what a message may advise


CONSTANT = ("head=flat", "optim.final_share=1", "ema_decay=0.9")


@pytest.mark.parametrize("death", [None, 9])
def test_a_lengthened_run_is_the_longer_run(small_run, tmp_path, dies, death):
    long = train(small_run(*CONSTANT, "steps=20", f"run_dir={tmp_path / 'long'}"))
    short = small_run(*CONSTANT)
    train(short) if death is None else dies(short, death)
    longer, earlier = small_run(*CONSTANT, "steps=20"), Run(short.directory)
    samples = {"weights_sha256": earlier.weights_sha256, "config": {"use_ema": False}}
    assert not earlier.is_trained(longer) and earlier.protocol(samples)["step"] in (8, 12)
    assert train(longer) == short.directory and Run(short.directory).is_trained(longer)
    rows = losses(short.directory)
    assert [row for row in rows if row["step"] != 12] == [row for row in losses(long) if row["step"] != 12]
    for name in ("model", "average"):
        one, other = (last_checkpoint(path) / f"{name}.safetensors" for path in (long, short.directory))
        assert one.read_bytes() == other.read_bytes()
    assert Run(short.directory).config == longer and Run(short.directory).provenance.earlier_steps == [12]
    assert "step" not in Run(short.directory).protocol(samples)  # those of the shorter run
    for shorter in ("steps=12", "steps=16"):
        with pytest.raises(InputError, match=r"a run of 20 steps, now 1.; a run cannot be shortened: set steps=20"):
            train(small_run(*CONSTANT, shorter))


def test_a_run_is_lengthened_at_a_constant_rate_only_and_with_no_other_change(small_run):
    train(small_run("head=flat"))
    before = (small_run("head=flat").directory / "config.yaml").read_bytes()
    with pytest.raises(InputError, match=r"a run of 12 steps, now 20; its learning rate or its loss changes .*RUN_DIR"):
        train(small_run("head=flat", "steps=20"))
    with pytest.raises(InputError, match=r"seed: 0 there, 1 now") as error:
        train(small_run("head=flat", "steps=20", "seed=1"))
    assert "steps" not in str(error.value).replace("checkpoints", "")
    assert (small_run("head=flat").directory / "config.yaml").read_bytes() == before


def test_a_start_that_trained_nothing_does_not_block_the_next(small_run, dies):
    dies(small_run("head=flat", "batch_size=4"), 0)  # as out of memory, after the first evaluation
    directory = train(small_run("head=masc"))
    assert Run(directory).config == small_run("head=masc")
    with pytest.raises(InputError, match="batch_size: 8 there, 4 now"):
        train(small_run("head=masc", "batch_size=4"))


def test_a_config_that_is_no_runs_stays(small_run):
    config = small_run("head=flat")
    config.directory.mkdir()
    (config.directory / "config.yaml").write_text("of: another program\n")
    with pytest.raises(InputError, match="copy it back, or choose another directory with RUN_DIR"):
        train(config)
    assert (config.directory / "config.yaml").read_text() == "of: another program\n"


def test_a_damaged_log_stops_no_training(small_run, tmp_path, dies, caplog):
    unbroken = train(small_run("head=flat", f"run_dir={tmp_path / 'unbroken'}"))
    config = small_run("head=flat")
    dies(config, 9)
    log = config.directory / "metrics.jsonl"
    log.write_bytes(b'\xff\x00\n[1, 2]\n{}\n{"step": "a"}\n' + log.read_bytes() + b'{"step": 9, "tra')
    assert losses(train(config)) == losses(unbroken)
    assert "skipping 5 broken line(s)" in caplog.text
    dies(small_run("head=flat", f"run_dir={tmp_path / 'lost'}"), 9)
    (tmp_path / "lost" / "metrics.jsonl").unlink()
    rows = losses(train(small_run("head=flat", f"run_dir={tmp_path / 'lost'}")))
    assert [row["step"] for row in rows] == [8, 10, 12] and "holds no rows up to step 8" in caplog.text


@pytest.mark.parametrize("change", [{"precision": "fp8"}, {"shares": 0}, {"step": -1}])
def test_progress_that_no_run_has_made_is_refused(small_run, tmp_path, change):
    path = small_run("head=flat").directory / "checkpoints" / "last"
    path.mkdir(parents=True)
    (path / "progress.json").write_text(json.dumps({"step": 4, "shares": 1, "precision": "fp32"} | change))
    with pytest.raises(InputError, match=r"progress.json .*no progress of a run"):
        train(small_run("head=flat"))


def test_a_refused_start_leaves_nothing(small_run):
    with pytest.raises(InputError, match="multiple of"):
        train(small_run("head=flat", "micro_batches=3"))
    assert not small_run("head=flat").directory.exists()
