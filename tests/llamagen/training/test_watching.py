"""What a training says of itself: the names of its metrics, its speed, its progress bar."""

import re
from functools import partial

import pytest
import torch

from llamagen.backbones.base import DataShape
from llamagen.model import build_model
from llamagen.train import train
from llamagen.training.utilisation import full_speed, gpu_named, image_flops
from llamagen.training.watching import bar_words, speeds
from masc.runtime.run import read_metrics


@pytest.fixture
def named(root):
    """Whether docs/metrics.md names a metric."""
    text = (root / "docs" / "metrics.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    names = [name for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[1])]
    patterns = [re.escape(name).replace(r"\{i\}", r"\d+").replace(r"\{count\}", r"\d+k?") for name in names]
    return lambda metric: any(re.fullmatch(pattern, metric) for pattern in patterns)


@pytest.mark.parametrize("head", ["flat", "masc-two-level"])
def test_every_metric_of_a_run_is_on_the_page_of_metrics(small_run, named, head):
    tree = () if head == "flat" else ("head.num_clusters=12",)
    directory = train(small_run(f"head={head}", *tree, "steps=4", "checkpoint_every=2", "optim.skip_bad_steps=1"))
    found = {name for row in read_metrics(directory / "metrics.jsonl") for name in row}
    assert {"step", "val/nats_per_token", "speed/tokens_per_second", "train/skipped_steps"} <= found
    assert [name for name in found if not named(name)] == []
    assert named("val/fd_lite0_1k") and named("speed/mfu") and not named("val/level_x_nats") and not named("other")


def test_the_bar_shows_nats_and_speeds_and_mfu_where_it_is_known():
    row = {"train/nats_per_token": 7.12345} | speeds(100.0, 256, full_speed=250.0)
    assert bar_words(row) == {"nats": "7.123", "images/s": "100", "tokens/s": "25,600", "MFU": "40%"}
    assert bar_words(speeds(2.0, 64, None)) == {"images/s": "2", "tokens/s": "128"}


def test_gpus_are_known_by_the_names_that_cuda_gives():
    names = {
        "NVIDIA H100 80GB HBM3": "h100",
        "NVIDIA H100 PCIe": "h100-pcie",
        "NVIDIA H200": "h200",
        "NVIDIA A100-SXM4-40GB": "a100-40",
        "NVIDIA A100-SXM4-80GB": "a100",
        "NVIDIA GeForce RTX 4090": "rtx4090",
        "Tesla V100-SXM2-16GB": None,
    }
    assert {name: gpu_named(name) for name in names} == names


@pytest.mark.parametrize("head", ["flat", "masc-two-level"])
def test_full_speed_is_the_peak_over_three_forward_passes(small_run, artifacts, monkeypatch, head):
    config = small_run(f"head={head}")
    tree = None if head == "flat" else config.layout.load_tree(config.tree, [12], config.layout.load_codebook())[0]
    build = partial(build_model, config.model, config.head, DataShape(24, 9, 9), tree, 0, None)
    positions, width, layers = 9, 32, 2
    matrices = sum(each.numel() for each in build().backbone.blocks()[0].parameters() if each.ndim == 2)
    least = 2 * layers * matrices * positions + 4 * layers * width * positions**2  # without the head
    flops = image_flops(build, "fp32")
    assert least < flops < 1.5 * least
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    assert full_speed(build, torch.device("cuda"), "bf16") == pytest.approx(989e12 / (3 * flops))
    assert full_speed(build, torch.device("cuda"), "fp32") == pytest.approx(989e12 / (6 * flops))
    assert full_speed(build, torch.device("cpu"), "bf16") is None
