"""The switches of a training's computation: each changes nothing beyond rounding."""

import threading
from functools import partial

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from host_reads import NoHostReads
from run_rows import losses
from torch._dynamo.testing import CompileCounter

from llamagen.backbones.dropout import key_dropouts
from llamagen.model import build_model
from llamagen.train import train
from llamagen.training.ahead import DEPTH, Ahead
from llamagen.training.compute import ComputeConfig, float32_products
from llamagen.training.inputs import load_inputs
from llamagen.training.loop import Loop
from llamagen.training.parallel import ParallelModel, compile_blocks
from llamagen.training.stream import CodeStream
from masc.runtime.errors import InputError
from masc.runtime.run import read_metrics


def test_batches_that_are_read_ahead_give_the_same_run(small_run, tmp_path):
    one, other = (
        train(small_run("head=flat", "micro_batches=2", f"compute.read_ahead={switch}", f"run_dir={tmp_path / switch}"))
        for switch in ("on", "off")
    )
    assert losses(one) == losses(other)
    rows = read_metrics(one / "metrics.jsonl")
    assert all(0 <= row["speed/data_wait"] <= 1 for row in rows if row["step"])


def test_items_come_in_their_order_and_as_far_ahead_as_there_is_room():
    made = []
    ahead = Ahead((made.append(i) or i for i in range(10)), threaded=True)
    assert [ahead.take() for _ in range(4)] == [0, 1, 2, 3]
    assert made == list(range(len(made))) and len(made) <= 4 + DEPTH + 1
    ahead.close()
    assert not any(thread.name == "read-ahead" for thread in threading.enumerate())


@pytest.mark.parametrize("threaded", [True, False])
def test_an_error_is_raised_where_its_item_is_taken(threaded):
    def items():
        yield 1
        raise InputError("the codes end")

    ahead = Ahead(items(), threaded)
    assert ahead.take() == 1
    with pytest.raises(InputError, match="the codes end"):
        ahead.take()
    ahead.close()


def test_a_run_ends_with_the_error_of_the_thread_that_reads(small_run, monkeypatch):
    tokens = CodeStream.tokens

    def fails(stream, step, part):
        if step == 5:
            raise InputError("codes.npy was shortened")
        return tokens(stream, step, part)

    monkeypatch.setattr(CodeStream, "tokens", fails)
    config = small_run("head=flat", "compute.read_ahead=on")
    with pytest.raises(InputError, match=r"codes\.npy was shortened"):
        train(config)
    assert max(row["step"] for row in read_metrics(config.directory / "metrics.jsonl")) == 4


READS = {
    "item": lambda x: x[0].item(),
    "bool": lambda x: bool(x[0]),
    "mask": lambda x: x[x > 1],
    "put": lambda x: x.index_put((x > 1,), x[:1]),
    "select": lambda x: x.masked_select(x > 1),
    "unique": lambda x: x.unique(),
    "repeat": lambda x: x.repeat_interleave(x),
}


@pytest.mark.parametrize("name", READS)
def test_an_operation_that_waits_for_the_device_is_noticed(name):
    with NoHostReads(), pytest.raises(AssertionError, match="the host reads"):
        READS[name](torch.arange(4))


@pytest.mark.parametrize("head", ["flat", "masc"])
def test_the_host_reads_no_tensor_in_a_step(small_run, monkeypatch, head):
    step, steps = Loop.step, []

    def watched(loop, number):
        with NoHostReads():
            steps.append(number)
            return step(loop, number)

    monkeypatch.setattr(Loop, "step", watched)
    train(
        small_run(f"head={head}", "optim=muon", "ema_decay=0.9", "micro_batches=2", "steps=4", "optim.norm_ceiling=9")
    )
    assert steps == [0, 1, 2, 3]


def model_of(config):
    inputs = load_inputs(config)
    return build_model(config.model, config.head, inputs.shape, inputs.tree, 0)


def test_compiled_blocks_keep_the_names_of_their_parameters(small_run):
    model, plain = (model_of(small_run("head=flat")) for _ in range(2))
    ParallelModel(model, Accelerator(cpu=True), ComputeConfig(compile="on", recompute=True), steps=1)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in plain.named_parameters()]


def test_blocks_are_compiled_where_it_pays():
    auto = ComputeConfig()
    assert auto.compiles("cuda", 1000) and not auto.compiles("cuda", 999) and not auto.compiles("cpu", 1000)
    assert ComputeConfig(compile="on").compiles("cpu", 1) and not ComputeConfig(compile="off").compiles("cuda", 1000)


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [True, False])
def test_compiled_blocks_give_the_same_losses_up_to_rounding(small_run, tmp_path, recompute):
    one, other = (
        train(
            small_run(
                *("head=flat", f"compute.compile={switch}", f"compute.recompute={recompute}"),
                f"run_dir={tmp_path / switch}",
            )
        )
        for switch in ("on", "off")
    )
    for compiled, plain in zip(losses(one), losses(other), strict=True):
        assert compiled == pytest.approx(plain, rel=1e-4)


@pytest.mark.slow
def test_every_block_is_compiled_where_each_has_a_rate_of_its_own(small_run, monkeypatch):
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    depth = torch._dynamo.config.recompile_limit + 1
    model = model_of(small_run("head=flat", f"model.num_layers={depth}", "model.drop_path=0.3")).train()
    compile_blocks(model.backbone.blocks())
    key_dropouts(model, np.arange(2, dtype=np.uint64), torch.device("cpu"))
    model(torch.zeros(2, model.backbone.num_positions, dtype=torch.int64), torch.zeros(2, dtype=torch.int64))
    assert counter.frame_count == depth


@pytest.mark.parametrize(
    ("switch", "precision", "is_on"), [("auto", "bf16", True), ("auto", "fp32", False), ("on", "fp32", True)]
)
def test_float32_products_take_tf32_only_inside(switch, precision, is_on):
    before = torch.backends.cuda.matmul.allow_tf32
    with float32_products(switch, precision):
        assert torch.backends.cuda.matmul.allow_tf32 == is_on
    assert torch.backends.cuda.matmul.allow_tf32 == before


@pytest.mark.parametrize("key", ["compile", "tf32", "read_ahead"])
def test_a_switch_is_auto_on_or_off(key):
    with pytest.raises(ValueError, match=rf"compute\.{key} must be one of auto, on, off, found 'perhaps'"):
        ComputeConfig(**{key: "perhaps"})
