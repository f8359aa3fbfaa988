"""Memory and FLOPs without numbers: exact where they can be, and against the memory of a real process."""

import json
import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch.nn.attention import SDPBackend

from llamagen.backbones.base import DataShape
from llamagen.backbones.config import ModelConfig
from llamagen.model import build_model
from llamagen.training.footprint import bytes_of, is_measurable, measure_evaluation, measure_step, with_flat_head
from llamagen.training.optim import OptimConfig
from llamagen.training.plan import balanced_tree
from masc.heads.config import FlatConfig, MascConfig

CONFIG = ModelConfig(name="small", dim=64, num_layers=2, num_heads=4, multiple_of=32)
SHAPE = DataShape(num_tokens=128, num_classes=3, num_positions=64)


def flat(config=CONFIG, shape=SHAPE):
    return build_model(config, FlatConfig(name="flat"), shape, None, seed=0)


def masc(kind="masc"):
    config = MascConfig(name=kind, kind=kind, num_clusters=32)
    return build_model(CONFIG, config, SHAPE, balanced_tree(128), seed=0)


def test_weights_gradients_and_state_are_those_of_the_model():
    cost, weights = measure_step(flat, OptimConfig(), 4, "fp32"), bytes_of(flat().parameters())
    assert cost.weights == cost.gradients == weights
    assert weights * 2 < cost.state < weights * 2 + 1000  # and counts of steps
    muon = measure_step(flat, OptimConfig(kind="muon"), 4, "fp32").state
    matrices = bytes_of([each for block in flat().backbone.blocks() for each in block.parameters() if each.ndim == 2])
    assert cost.state - muon == pytest.approx(matrices, abs=1000)


def test_activations_grow_with_the_images_and_shrink_in_bf16():
    small, large, low = (
        measure_step(flat, OptimConfig(), images, precision)
        for images, precision in ((4, "fp32"), (8, "fp32"), (8, "bf16"))
    )
    assert 1.8 < large.activations / small.activations < 2.2
    assert low.activations < large.activations


@pytest.mark.parametrize(("build", "rows"), [(flat, 128), (masc, 32)])
def test_a_forward_pass_takes_two_flops_a_weight_and_position_and_four_a_score_and_channel(build, rows):
    dim, layers, positions = CONFIG.dim, CONFIG.num_layers, SHAPE.num_positions
    matrices = layers * (4 * dim * dim + 3 * dim * CONFIG.ffn_dim) + rows * dim
    attention = 4 * layers * dim * positions**2
    assert measure_evaluation(build, 2, "fp32")[1] == 2 * (2 * matrices * positions + attention)


def test_a_model_computes_with_numbers_afterwards():
    tokens, labels = torch.arange(64)[None], torch.zeros(1, dtype=torch.int64)
    before = flat().eval()(tokens, labels)
    measure_step(flat, OptimConfig(), 2, "fp32")
    assert torch.equal(flat().eval()(tokens, labels), before)


def test_a_head_whose_loss_reads_its_tokens_is_measured_as_a_flat_one(monkeypatch):
    monkeypatch.setattr("masc.heads.masc.WHOLE", 0)  # as at any real size
    build = partial(masc, "masc-two-level")
    assert is_measurable(masc, 2) and not is_measurable(build, 2)
    assert with_flat_head(build).head.output.weight.shape == (160, 64)


PROCESS = """
import json, sys
from pathlib import Path
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from test_footprint import LARGE, TOKENS, flat
from llamagen.training.footprint import step_of
from llamagen.training.optim import OptimConfig, build_optimizers

def size(key):
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines[key].split()[0])

def steps(model, images):
    optimizers = build_optimizers(model.train(), OptimConfig(), fused=True)
    for _ in range(2):
        step_of(model, optimizers, OptimConfig(), images, "fp32", SDPBackend.MATH)

steps(flat(), 2)  # loads the code that the other steps use
before = size("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
steps(flat(LARGE, TOKENS), 8)
print(json.dumps(size("VmHWM") - before))
"""
LARGE = ModelConfig(name="large", dim=384, num_layers=6, num_heads=6)
TOKENS = DataShape(num_tokens=16384, num_classes=1000, num_positions=256)


@pytest.mark.slow
def test_the_peak_is_that_of_a_real_process_within_a_tenth(root):
    """Its tensors of 64 KiB and more lie in pages of their own, which go back to the system when they are freed."""
    path = os.pathsep.join(map(str, (root / "tests", root / "tests" / "llamagen" / "training")))
    environment = os.environ | {"PYTHONPATH": path, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROCESS], cwd=root, env=environment, capture_output=True, text=True, check=True
    )
    cost = measure_step(partial(flat, LARGE, TOKENS), OptimConfig(), 8, "fp32", SDPBackend.MATH)
    planned = cost.weights + cost.state + cost.work
    assert json.loads(done.stdout) == pytest.approx(planned, rel=0.1)
