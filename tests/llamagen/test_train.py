"""The training loop: it learns, resumes exactly, and gives the same run on one process or two."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from run_rows import losses
from safetensors.torch import load_file
from script_runner import run_script
from stage import load_config
from user_errors import tells

from llamagen.backbones.layers import rope_table
from llamagen.runs import Run
from llamagen.sampling.filters import SamplingConfig
from llamagen.sampling.generate import generate, image_uniforms
from llamagen.train import train
from llamagen.training.checkpoint import last_checkpoint, load_progress, weights_file
from llamagen.training.config import TrainConfig
from llamagen.training.inputs import load_inputs
from llamagen.training.likelihood import image_nats
from llamagen.training.loop import Loop
from masc.runtime.errors import InputError
from masc.runtime.run import locked


def weights(run_dir):
    return load_file(weights_file(run_dir))


@pytest.mark.parametrize(
    ("head", "tree"),
    [("flat", "masc"), ("masc", "masc"), ("masc", "kmeans"), ("masc-two-level", "masc"), ("masc-two-level", "random")],
)
def test_every_head_learns_from_its_first_loss_on(small_run, head, tree):
    config = small_run(f"head={head}", f"tree={tree}", "steps=60", "optim.learning_rate=0.01", "checkpoint_every=60")
    rows = losses(train(config))
    assert rows[0]["step"] == 0 and rows[-1]["step"] == 60
    # The head starts at zero: flat at ln N, the others at the mean code length of uniform choices on the path.
    partition = load_inputs(config).tree and load_inputs(config).tree.cut(12)
    tokens = np.asarray(load_inputs(config).held_out.tokens[:, 0]).astype(int)
    start = np.log(24)
    if partition is not None:
        start = np.log(partition.num_clusters) + np.log(partition.sizes[partition.cluster_of[tokens]]).mean()
    assert abs(rows[0]["val/nats_per_token"] - start) < 1e-4
    assert rows[-1]["val/nats_per_token"] < start - 0.3
    assert rows[-1]["train/nats_per_token"] < rows[1]["train/nats_per_token"]


@pytest.mark.parametrize(("death", "checkpoint"), [(7, 4), (2, 0)])
def test_a_resumed_run_gives_the_losses_of_an_unbroken_one(small_run, tmp_path, dies, death, checkpoint):
    unbroken = train(small_run("head=masc", f"run_dir={tmp_path / 'a'}"))
    config = small_run("head=masc", f"run_dir={tmp_path / 'b'}")
    dies(config, death, KeyboardInterrupt)
    assert load_progress(last_checkpoint(config.directory)).step == checkpoint
    resumed = train(config)
    assert losses(unbroken) == losses(resumed)
    a, b = weights(unbroken), weights(resumed)
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_processes_that_do_not_see_each_other_are_refused(small_run, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"2 processes were started .*sees 1.*GPUS=1"):
        train(small_run("head=flat"))


OTHER = {
    "precision": "bf16",
    "config.optim.learning_rate": 7.0,
    "SHA-256.val codes": "f" * 64,
    "step of the checkpoint": 4,
}


@pytest.mark.parametrize(("key", "value"), OTHER.items(), ids=OTHER)
def test_processes_that_would_train_something_else_are_refused(small_run, monkeypatch, key, value):
    monkeypatch.setattr("accelerate.utils.gather_object", lambda own: [*own, own[0] | {key: value}])
    with pytest.raises(InputError, match=rf"process 1 \(now\) would not .*\n  {key}: .* there, {value!r} now\n"):
        train(small_run("head=flat"))


def test_the_environment_does_not_decide_how_a_run_is_trained(small_run, tmp_path, monkeypatch, caplog):
    plain = train(small_run("head=flat", f"run_dir={tmp_path / 'plain'}"))
    for name, value in HOSTILE.items():
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
    AcceleratorState._reset_state(reset_partial_state=True)
    hostile = train(small_run("head=flat", f"run_dir={tmp_path / 'hostile'}"))
    assert losses(plain) == losses(hostile)
    assert "ignoring ACCELERATE_" in caplog.text and "GRADIENT_ACCUMULATION_STEPS" in caplog.text


HOSTILE = {
    "GRADIENT_ACCUMULATION_STEPS": "8",
    "MIXED_PRECISION": "bf16",
    "DYNAMO_BACKEND": "EAGER",
    "USE_FSDP": "true",
    "USE_DEEPSPEED": "true",
    "USE_MEGATRON_LM": "true",
    "USE_PARALLELISM_CONFIG": "true",
}


def test_progress_is_told_where_no_bar_is_shown(small_run, caplog):
    caplog.set_level("INFO")
    train(small_run("head=flat"))
    told = [record.getMessage() for record in caplog.records if "nats per token" in record.getMessage()]
    assert [line.split(":")[0] for line in told] == ["step 2 of 12", "step 6 of 12", "step 12 of 12"]
    assert re.search(r"[\d.]+ nats per token, [\d.]+ held out, [\d.]+ images/s, 0:00:00 left", told[-1])


def test_two_processes_cannot_train_one_directory(small_run):
    config = small_run("head=flat")
    with locked(config.directory), pytest.raises(InputError, match="another process is using"):
        train(config)
    train(config)


def test_a_tree_of_another_config_and_codes_of_other_views_are_refused(small_run):
    with pytest.raises(InputError, match=r"random.npz was built by another config:\n  seed: 0 there, 5 now"):
        train(small_run("head=masc", "tree=random", "tree.seed=5"))
    with pytest.raises(InputError, match=r"data.crops is center, 1 view.*, but .* holds 2"):
        train(small_run("head=flat", "data.crops=center"))


def test_a_run_can_be_trained_in_a_process_that_has_sampled(small_run, tmp_path):
    model = Run(train(small_run("head=flat", f"run_dir={tmp_path / 'a'}"))).load_model()
    rope_table.cache_clear()
    generate(model, torch.zeros(2, dtype=torch.long), image_uniforms(0, np.arange(2), 9, 1), SamplingConfig())
    train(small_run("head=flat", f"run_dir={tmp_path / 'b'}"))


def test_a_finished_run_is_left_alone(small_run, monkeypatch):
    config = small_run("head=flat")
    train(config)
    before = (config.directory / "metrics.jsonl").read_bytes()
    monkeypatch.setattr(Loop, "run", None)
    train(config)
    train(small_run("head=flat", "micro_batches=2"))  # a finished run asks for no share of a batch
    assert (config.directory / "metrics.jsonl").read_bytes() == before


def test_a_changed_config_in_the_same_place_is_refused_by_key(small_run):
    train(small_run("head=flat"))
    with pytest.raises(InputError, match=r"optim.learning_rate: 0.00\d there, 0.5 now"):
        train(small_run("head=flat", "optim.learning_rate=0.5"))
    train(small_run("head=flat", "log_every=4", "tree=random"))  # neither changes a result of the flat head


def test_gradient_accumulation_changes_nothing_but_rounding(small_run, tmp_path):
    dry = ["model.token_dropout=0", "model.residual_dropout=0", "model.ffn_dropout=0", "head=masc-two-level"]
    a = losses(train(small_run(*dry, f"run_dir={tmp_path / 'a'}")))
    b = losses(train(small_run(*dry, f"run_dir={tmp_path / 'b'}", "micro_batches=4")))
    for one, other in zip(a, b, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            assert one[key] == pytest.approx(other[key], abs=2e-4)


def test_two_processes_give_the_run_of_one(small_run, overrides, tmp_path, root):
    # Dropout is drawn by place in the batch: one process with two micro-batches draws what two processes do.
    one = losses(train(small_run("head=masc", f"run_dir={tmp_path / 'one'}", "micro_batches=2")))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launch, "scripts/train.py", *overrides, "head=masc", f"run_dir={tmp_path / 'two'}"]
    environment = {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=root, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    two = losses(tmp_path / "two")
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert a[key] == pytest.approx(b[key], rel=1e-3, abs=2e-4), key


def test_validation_is_the_mean_over_images_whatever_the_batch(small_run):
    config = small_run("head=masc-two-level")
    directory = train(config)
    run = Run(directory)
    model, inputs = run.load_model(), run.inputs
    accelerator = Accelerator(cpu=True)
    whole, parts = (image_nats(accelerator, model, inputs.held_out, inputs.conditions["val"], size) for size in (64, 3))
    torch.testing.assert_close(whole, parts)
    expected = losses(directory)[-1]["val/nats_per_token"]
    assert whole.sum().item() / whole.shape[0] / 9 == pytest.approx(expected, abs=1e-5)
    rows = losses(directory)[-1]
    assert rows["val/level_0_nats"] + rows["val/level_1_nats"] == pytest.approx(expected)


def test_missing_inputs_are_named_with_the_commands_that_make_them(elsewhere):
    with pytest.raises(SystemExit) as stopped:
        run_script("train", "model=llamagen-xl", "head=masc", "artifacts=/nonexistent")
    assert stopped.value.code.startswith("error: ")  # a text: exit status 1
    for words in (
        "/nonexistent/vq16/codes/imagenet256/train",
        "make codebook TOKENIZER=vq16",
        "make codes DATA=imagenet256 TOKENIZER=vq16",
        "make tree TREE=masc TOKENIZER=vq16",
    ):
        assert words in stopped.value.code


def test_a_missing_tree_or_a_k_too_large_is_one_error(small_run, artifacts):
    with tells(r"kmeans-k6.npz.*make tree TREE=kmeans TOKENIZER=emoji32 K=6"):
        train(small_run("head=masc", "tree=kmeans", "head.num_clusters=6"))
    with pytest.raises(InputError, match="between 1 and the 24 tokens of emoji32, found 25; try K=12"):
        train(small_run("head=masc", "head.num_clusters=25"))
    with pytest.raises(InputError, match=r"kmeans makes one partition, but the run cuts at \[5, 12\]"):
        train(small_run("head=masc-tree", "tree=kmeans"))
    with tells(r"codebook.npz.*make tree TREE=kmeans TOKENIZER=emoji32 K=6"):
        train(small_run("head=masc", "tree=kmeans", "head.num_clusters=6", f"artifacts={artifacts / 'nonesuch'}"))
    with pytest.raises(InputError, match="batch_size 8 must be a multiple of 1 processes x 3 micro-batches"):
        train(small_run("head=flat", "micro_batches=3"))


def test_a_run_that_is_not_there_is_refused(tmp_path, small_run):
    with tells(r"no run at .*make train"):
        Run(tmp_path / "nothing").load_model()


def test_the_directory_names_head_tree_and_seed():
    config = load_config("train", TrainConfig, ["model=llamagen-tiny", "head=masc", "tree=random", "seed=3"])
    assert str(config.directory) == "runs/llamagen-tiny/masc-on-random/seed3"
    config = load_config("train", TrainConfig, ["model=llamagen-tiny", "head=flat", "tree=random"])
    assert str(config.directory) == "runs/llamagen-tiny/flat/seed0"


def test_wandb_offline_writes_beside_the_run_under_the_same_names(small_run):
    pytest.importorskip("wandb")
    directory = train(small_run("head=flat", "tracking.mode=offline", "steps=4"))
    assert list(directory.glob("wandb/offline-run-*/run-*.wandb"))


def test_averaged_weights_are_kept_and_gone_on_with(small_run, tmp_path, dies):
    settings = "head=flat", "ema_decay=0.9"
    unbroken = train(small_run(*settings, f"run_dir={tmp_path / 'a'}"))
    config = small_run(*settings, f"run_dir={tmp_path / 'b'}")
    dies(config, 7, KeyboardInterrupt)
    train(config)
    averages = [load_file(weights_file(path, averaged=True)) for path in (unbroken, tmp_path / "b")]
    assert all(torch.equal(averages[0][name], averages[1][name]) for name in averages[0])
    raw, averaged = (Run(unbroken, averaged).load_model() for averaged in (False, True))
    assert torch.equal(averaged.head.output.weight, averages[0]["head.output.weight"])
    assert not torch.equal(averaged.head.output.weight, raw.head.output.weight)
    plain = train(small_run("head=flat", f"run_dir={tmp_path / 'plain'}"))
    with pytest.raises(InputError, match="no averaged weights"):
        Run(plain, averaged=True).load_model()
