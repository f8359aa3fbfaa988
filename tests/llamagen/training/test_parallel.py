"""One run on one process, on several, whole or sharded: one loss curve, one set of checkpoint keys."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from run_rows import losses
from safetensors.torch import load_file

from llamagen.train import train
from llamagen.training.checkpoint import last_checkpoint, list_checkpoints

SETTINGS = ("head=masc-two-level", "ema_decay=0.9", "keep_last=9")
TENSORS = ("model.safetensors", "average.safetensors", "optimizer.safetensors")
# Ten times what float32 sums in another order were seen to change: rows of metrics, and numbers of about 0.1 at most.
OF_ROWS, OF_TENSORS = 4e-6, 1e-5
IN_BF16 = 100  # times as much: Muon's products are in bf16


# Each process prints whether its gradients are sharded after each of two micro-batches, the warnings, the sums of the
# squares of the average, and what is drawn with it.
STEP = """
import json, warnings
import torch
from accelerate import Accelerator
from torch.distributed.tensor import DTensor
from llamagen.backbones.base import DataShape
from llamagen.backbones.config import ModelConfig
from llamagen.model import build_model
from llamagen.sampling.filters import SamplingConfig
from llamagen.sampling.generate import generate, image_uniforms
from llamagen.training.average import Average
from llamagen.training.compute import ComputeConfig
from llamagen.training.parallel import ParallelModel
from masc.heads.config import FlatConfig

config = ModelConfig(name="small", dim=32, num_layers=2, num_heads=4)
model = build_model(config, FlatConfig(name="flat"), DataShape(64, 2, 16), None, 0).eval()
parallel, held = ParallelModel(model, Accelerator(cpu=True), ComputeConfig(parallel="fsdp"), 1), []
average, tokens = Average(parallel.own, 0.5), torch.arange(32).view(2, 16)
with warnings.catch_warnings(record=True) as caught:
    for is_last in (False, True):
        with parallel.accumulating(is_last):
            parallel(tokens, torch.tensor([0, 1])).mean().backward()
        held.append(all(isinstance(each.grad, DTensor) for each in parallel.own.parameters()))
torch.optim.SGD(parallel.own.parameters(), lr=10).step()
average.update(parallel.own)
with parallel.whole(average.parameters) as whole, torch.no_grad():
    sums = [each.square().sum().item() for each in whole.parameters()]
    drawn = generate(whole, torch.tensor([0, 1]), image_uniforms(0, [0, 1], 16, 1), SamplingConfig())
print(json.dumps([held, [str(each.message) for each in caught], sums, drawn.tolist()]))
"""


def start(count, root, *words):
    """The output of several processes."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    done = subprocess.run([*launch, *words], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture
def processes(overrides, root):
    """Trains the small run in several processes."""
    return lambda count, *more: start(count, root, "scripts/train.py", *overrides, *more)


def tensors(run_dir):
    folder = last_checkpoint(run_dir)
    return {(file, name): value for file in TENSORS for name, value in load_file(folder / file).items()}


def check_same(one, other, times=1):
    for a, b in zip(losses(one), losses(other), strict=True):
        assert a == pytest.approx(b, rel=times * OF_ROWS), a["step"]
    there, here = tensors(one), tensors(other)
    assert there.keys() == here.keys()
    for name, value in there.items():
        torch.testing.assert_close(
            value, here[name], rtol=0, atol=times * OF_TENSORS, msg=lambda text, name=name: f"{name} {text}"
        )


def interrupt_at(run_dir, step):
    """Leave of a run what a death after `step` leaves."""
    for path in list_checkpoints(run_dir):
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)


def test_recomputed_activations_change_nothing(small_run, tmp_path):
    one, other = (
        train(small_run("head=flat", f"compute.recompute={switch}", f"run_dir={tmp_path / switch}"))
        for switch in ("true", "false")
    )
    assert losses(one) == losses(other)


def test_two_sharded_processes_train_as_one_does_and_one_goes_on_with_theirs(small_run, tmp_path, processes):
    one = train(small_run(*SETTINGS, f"run_dir={tmp_path / 'one'}"))
    sharded = tmp_path / "sharded"
    processes(2, *SETTINGS, "compute.parallel=fsdp", "compute.recompute=true", f"run_dir={sharded}")
    check_same(one, sharded)
    interrupt_at(sharded, 8)
    check_same(one, train(small_run(*SETTINGS, f"run_dir={sharded}")))


@pytest.mark.slow
def test_gradients_stay_sharded_in_a_step_and_the_average_draws_what_one_process_draws(tmp_path, root):
    (script := tmp_path / "step.py").write_text(STEP)
    one, *two = (json.loads(line) for count in (1, 2) for line in start(count, root, str(script)).splitlines())
    assert len(two) == 2
    for held, caught, sums, drawn in two:
        assert held == [True, True] and not caught
        assert sums == pytest.approx(one[2], rel=1e-6) and drawn == one[3]


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("switch", ["optim=muon", "compute.compile=on"])
def test_muon_and_compiled_blocks_train_in_two_processes_as_in_one(small_run, tmp_path, processes, switch, parallel):
    one = train(small_run(*SETTINGS, switch, "compute.compile=off", f"run_dir={tmp_path / 'one'}"))
    two = tmp_path / "two"
    processes(2, *SETTINGS, switch, f"compute.parallel={parallel}", f"run_dir={two}")
    check_same(one, two, IN_BF16 if switch == "optim=muon" else 1)


@pytest.mark.slow
@pytest.mark.parametrize("there", ["ddp", "fsdp"])
@pytest.mark.parametrize(("count", "here"), [(4, "fsdp"), (4, "ddp"), (2, "fsdp")])
def test_a_run_goes_on_with_any_number_of_processes(small_run, tmp_path, processes, there, count, here):
    one = train(small_run(*SETTINGS, f"run_dir={tmp_path / 'one'}"))
    other = tmp_path / "other"
    processes(2, *SETTINGS, f"compute.parallel={there}", "micro_batches=2", f"run_dir={other}")
    check_same(one, other)
    interrupt_at(other, 4)
    processes(count, *SETTINGS, f"compute.parallel={here}", "compute.recompute=true", f"run_dir={other}")
    check_same(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("loss", ["rear", "soft-codes", "soft-tree"])
def test_a_loss_trains_in_two_processes_as_in_one(small_run, tmp_path, processes, loss, parallel):
    small = {"rear": "loss.width=16", "soft-codes": "loss.neighbours=4", "soft-tree": "loss.levels=[4,12]"}
    given = "head=flat", f"loss={loss}", small[loss], "ema_decay=0.9", "keep_last=9"
    one, two = train(small_run(*given, f"run_dir={tmp_path / 'one'}")), tmp_path / "two"
    processes(2, *given, f"compute.parallel={parallel}", "compute.recompute=true", f"run_dir={two}")
    check_same(one, two)
