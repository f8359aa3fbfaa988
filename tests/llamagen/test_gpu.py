"""What only a GPU shows: `pytest -m gpu`."""

import numpy as np
import pytest
import torch
from golden import load_golden, load_state
from golden_adapter import build_gpt, load_gpt_state

from llamagen.sampling.filters import SamplingConfig
from llamagen.sampling.generate import generate, image_uniforms
from llamagen.train import train
from llamagen.training.loop import Loop

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture
def model():
    built = build_gpt(load_golden("c2i_a")[0]["config"]).eval()
    load_gpt_state(built, load_state("c2i_a"))
    return built.cuda()


def test_guided_greedy_tokens_are_the_released_ones(model):
    meta, arrays = load_golden("c2i_a")
    for key, case in meta["generate"].items():
        config = SamplingConfig(guidance=case["cfg_scale"], guidance_interval=case["cfg_interval"], top_k=1)
        labels = torch.from_numpy(arrays["gen_cond"]).cuda()
        uniforms = torch.zeros(len(labels), case["steps"], 1, dtype=torch.float64)
        for compiled in (False, True):
            tokens = generate(model, labels, uniforms, config, compiled=compiled)
            assert np.array_equal(tokens.cpu(), arrays[f"gen_{key}"]), (key, compiled)


def test_the_compiled_step_draws_in_bf16_what_the_plain_one_nearly_does(model):
    model, labels = model.to(torch.bfloat16), torch.arange(10).repeat(20).cuda()
    uniforms = image_uniforms(0, range(200), 16, 1)
    plain, compiled = (
        generate(model, labels, uniforms, SamplingConfig(guidance=2.0), compiled=compiled) for compiled in (False, True)
    )
    # Rounding differs; a first token changes only where its uniform number falls beside a boundary.
    assert (plain[:, 0] == compiled[:, 0]).float().mean() > 0.95
    repeated = generate(model, labels, uniforms, SamplingConfig(guidance=2.0), compiled=True)
    assert torch.equal(repeated, compiled)


@pytest.mark.parametrize("head", ["flat", "masc"])
@pytest.mark.parametrize("switch", ["on", "off"])
def test_the_host_never_waits_for_the_gpu_in_a_training_step(small_run, monkeypatch, head, switch):
    step = Loop.step

    def watched(loop, number):
        torch.cuda.set_sync_debug_mode("error" if number > 1 else "default")  # the first steps make tables and code
        try:
            return step(loop, number)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Loop, "step", watched)
    train(small_run(f"head={head}", "steps=6", "precision=bf16", "ema_decay=0.9", f"compute.compile={switch}"))
