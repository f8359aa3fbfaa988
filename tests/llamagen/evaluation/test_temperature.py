"""The likelihood at a fitted temperature."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from head_cases import HEADS_TO_TEST, TREE, D, N, config_of, randomised

from llamagen.evaluation.lite import likelihood
from llamagen.evaluation.temperature import TEMPERATURES, TemperedNats, fitted
from llamagen.runs import Run
from llamagen.train import train
from llamagen.training.likelihood import image_nats
from masc.heads.registry import build_head

ONE = TEMPERATURES.index(1.0)


@pytest.mark.parametrize("kind", ["flat", "masc", "masc-two-level", "ctf"])
def test_temperature_one_is_the_likelihood_and_leaves_uniform_choices_alone(kind):
    kind, more = HEADS_TO_TEST[kind]
    config = config_of(kind, 12, False, **more)
    head = randomised(build_head(config, D, N, TREE if config.uses_tree else None, None), 0).eval()
    hidden, tokens, watch = torch.randn(3, 4, D), torch.randint(N, (3, 4)), TemperedNats()
    with torch.no_grad():
        watch(head, np.array([2, 0, 1]), hidden, tokens)
        log_probs = head.log_probs(hidden, tokens)
    assert watch.by_image()[[2, 0, 1], ONE] == pytest.approx(-log_probs.sum((1, 2)).numpy(), abs=1e-4)
    if kind == "masc":
        uniform = -log_probs[..., 1].sum(1)
        hot = watch.by_image()[[2, 0, 1], -1] - uniform.numpy()
        logits = head.output(hidden).log_softmax(-1) / 2
        own = logits.log_softmax(-1).gather(-1, head.cluster_of[tokens][..., None])[..., 0]
        assert hot == pytest.approx(-own.sum(1).detach().numpy(), abs=1e-4)


def test_a_temperature_is_fitted_to_the_other_half():
    nats = np.full((4, len(TEMPERATURES)), 5.0)
    nats[::2, 3] = 4.0  # images 0 and 2 like one temperature, 1 and 3 another one
    nats[1::2, 7] = 3.0
    found, temperatures = fitted(nats)
    assert temperatures == [TEMPERATURES[7], TEMPERATURES[3]] and found.tolist() == [5.0] * 4
    nats[:, 5] = 1.0
    assert fitted(nats)[0].tolist() == [1.0] * 4


def test_logits_that_are_twice_too_large_are_mended(small_run):
    run = Run(train(small_run("head=flat", "steps=40", "optim.learning_rate=0.01")))
    model, inputs = run.load_model(), run.inputs
    plain = {each["metric"]: each for each in likelihood(run)}
    watch = TemperedNats()
    with torch.no_grad():
        model.head.output.weight.mul_(2)
    image_nats(Accelerator(cpu=True), model, inputs.held_out, inputs.conditions["val"], watch=watch)
    name = "held-out nats per token at a fitted temperature"
    expected, own = plain[name]["value"], plain["held-out nats per token"]["value"]
    assert fitted(watch.by_image() / 9)[0].mean() == pytest.approx(expected, abs=0.02)
    assert expected < own + 0.01 and all(each in TEMPERATURES for each in plain[name]["protocol"]["temperatures"])
