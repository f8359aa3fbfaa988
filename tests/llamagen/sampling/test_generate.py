"""Sampling: what is drawn depends on seed and image index, and follows the model's own likelihood."""

import shutil

import numpy as np
import pytest
import torch
from golden import load_golden, load_state
from golden_adapter import build_gpt, load_gpt_state
from hypothesis import given, settings
from hypothesis import strategies as st

from llamagen.backbones.base import DataShape
from llamagen.backbones.config import ModelConfig
from llamagen.backbones.decoding import CompiledStep
from llamagen.model import build_model
from llamagen.sampling.filters import SamplingConfig, draw, filter_logits
from llamagen.sampling.generate import SamplingPick, generate, image_uniforms
from masc.heads.config import (
    AdaptiveConfig,
    BitsConfig,
    CtfConfig,
    FlatConfig,
    MascConfig,
    MascRefineConfig,
    MascTreeConfig,
    MascTwoLevelConfig,
    SubtokenConfig,
    TreeSharedConfig,
)
from masc.runtime.errors import InputError
from masc.tree import Partition

SHAPE = DataShape(num_tokens=12, num_classes=3, num_positions=4)
PARTITION = Partition(np.array([0, 0, 0, 1, 1, 2, 3, 3, 3, 3, 4, 5]))
HEADS = [
    FlatConfig(name="flat"),
    MascConfig(name="masc", num_clusters=6, context="cluster"),
    MascTwoLevelConfig(name="masc-two-level", num_clusters=6),
    MascTreeConfig(name="masc-tree", levels=[6]),
    MascConfig(name="masc-frequency", num_clusters=6, members="frequency"),
    TreeSharedConfig(name="tree-shared", levels=[6]),
    MascRefineConfig(name="masc-refine", num_clusters=6, width=8, num_heads=2),
    CtfConfig(name="ctf", num_clusters=6, width=8, num_heads=2, num_layers=2),
    SubtokenConfig(name="subtoken", num_clusters=6, width=8, num_heads=2),
    BitsConfig(name="bits", num_clusters=6),
    BitsConfig(name="bits-chain", num_clusters=6, chain=True),
    AdaptiveConfig(name="adaptive"),
]


def model_of(head, class_dropout=0.1):
    config = ModelConfig(
        name="t", dim=32, num_layers=2, num_heads=4, num_kv_heads=2, multiple_of=16, class_dropout=class_dropout
    )
    tree = PARTITION if head.uses_tree else None
    model = build_model(config, head, SHAPE, tree, seed=0, counts=np.arange(12) if head.uses_counts else None).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8.0 if parameter.ndim > 1 else 1.0)
        for table in model.tables():
            if not table.any():
                table.normal_(std=0.5, generator=generator)
    return model


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.name)
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_an_image_does_not_depend_on_the_batch_it_is_in(head, guidance):
    model, config = model_of(head), SamplingConfig(guidance=guidance)
    labels, indices = torch.arange(16) % 3, np.arange(16)

    def sample(rows):
        uniforms = image_uniforms(5, indices[rows], 4, model.head.num_decisions)
        return generate(model, labels[rows], uniforms, config)

    whole = sample(slice(None))
    parts = torch.cat([sample(slice(start, start + 3)) for start in range(0, 16, 3)])
    assert torch.equal(whole, parts)
    assert len(torch.unique(whole, dim=0)) > 1


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.name)
def test_samples_follow_the_models_likelihood(head):
    # The mean log-likelihood of samples is minus the entropy. Both are of the first two positions, of which the model
    # gives all likelihoods; of the whole image for ctf, whose members read all clusters. False-alarm rate 1e-4 (z 3.9).
    model, draws = model_of(head), 6000
    labels, length = torch.ones(draws, dtype=torch.long), 4 if head.kind == "ctf" else 2
    tokens = generate(model, labels, image_uniforms(0, np.arange(draws), 4, model.head.num_decisions), SamplingConfig())
    every = torch.cartesian_prod(*[torch.arange(12)] * length)
    padded = torch.nn.functional.pad(every, (0, 4 - length))
    with torch.no_grad():
        log_p = model(padded, torch.ones(len(every), dtype=torch.long)).sum(-1)[:, :length].sum(1).double()
    probs = log_p.exp()
    assert abs(probs.sum().item() - 1) < 1e-5
    observed = log_p[tokens[:, :length] @ 12 ** torch.arange(length).flip(0)]
    mean = (probs * log_p).sum()
    deviation = ((probs * (log_p - mean) ** 2).sum() / draws).sqrt()
    assert abs(observed.mean() - mean) / deviation < 3.9


@torch.no_grad()
def test_guided_halves_choose_alike_and_stay_in_the_cluster():
    head = model_of(HEADS[2]).head
    uniforms = torch.from_numpy(np.random.default_rng(0).random((50, 2)))
    chosen = []

    class Spy(SamplingPick):
        def __call__(self, logits):
            chosen.append(super().__call__(logits))
            return chosen[-1]

    both = torch.randn(100, 32, generator=torch.Generator().manual_seed(1))
    tokens = head.sample(both, Spy(SamplingConfig(guidance=4.0), uniforms, 4.0))
    assert torch.equal(tokens[:50], tokens[50:])
    assert torch.equal(head.path(tokens), torch.stack(chosen))


def test_another_seed_gives_other_images_and_the_same_seed_the_same():
    a, b = (image_uniforms(seed, np.arange(3), 4, 2) for seed in (0, 1))
    assert not torch.equal(a, b)
    assert torch.equal(a, image_uniforms(0, np.arange(3), 4, 2))
    assert torch.equal(a[2:], image_uniforms(0, np.array([2]), 4, 2))


def test_guidance_needs_a_null_class():
    model = model_of(HEADS[0], class_dropout=0.0)
    with pytest.raises(InputError, match=r"trained without a null condition .*sampling.guidance=1"):
        generate(
            model, torch.zeros(1, dtype=torch.long), image_uniforms(0, np.arange(1), 4, 1), SamplingConfig(guidance=2)
        )


def test_a_guidance_of_one_is_no_guidance():
    model = model_of(HEADS[0])
    uniforms = image_uniforms(0, np.arange(4), 4, 1)
    labels = torch.arange(4) % 3
    assert torch.equal(
        generate(model, labels, uniforms, SamplingConfig(guidance=1.0)),
        generate(model, labels, uniforms, SamplingConfig(guidance=0.0)),
    )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), uniform=st.sampled_from([0.0, 1e-12, 0.5, 1 - 2**-53]))
def test_a_choice_of_probability_zero_is_never_drawn(seed, uniform):
    rng = np.random.default_rng(seed)
    probs = torch.from_numpy(rng.random((4, 9)) * (rng.random((4, 9)) < 0.4))
    probs[:, rng.integers(9)] += 0.1
    chosen = draw(probs / probs.sum(-1, keepdim=True), torch.full((4,), uniform, dtype=torch.float64))
    assert (probs.gather(1, chosen[:, None]) > 0).all()


def test_filters_leave_their_input_alone():
    logits = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    before = logits.clone()
    filter_logits(logits, 3, 0.5)
    assert torch.equal(logits, before)


def test_guidance_schedules_run_as_their_sources_say():
    def scales(schedule, **more):
        config = SamplingConfig(guidance=4.0, guidance_schedule=schedule, **more)
        return np.array([config.scale(position, 256) for position in range(256)])

    assert (scales("constant") == 4.0).all()
    linear = scales("linear")
    assert linear[0] == 1.0 and np.allclose(np.diff(linear), 3 / 256)
    t = np.arange(256) / 256
    np.testing.assert_allclose(scales("cosine"), 1 + 3 * (1 - np.cos(np.pi * t**2.75)) / 2)  # RAR, generate
    step = scales("step")
    assert (step == 1.0).sum() == 47 and (step[47:] == 4.0).all()  # GigaTok: none in the first 18%
    interval = scales("constant", guidance_interval=3)
    assert (interval[:5] == 4.0).all() and (interval[5:] == 1.0).all()  # the first interval + 2 tokens


def test_unguided_positions_of_a_schedule_are_drawn_from_the_condition_alone():
    model, labels = model_of(HEADS[0]), torch.arange(8) % 3
    uniforms = image_uniforms(0, np.arange(8), 4, 1)
    stepped = SamplingConfig(guidance=9.0, guidance_schedule="step", guidance_start=0.5)
    guided = generate(model, labels, uniforms, stepped)
    plain = generate(model, labels, uniforms, SamplingConfig())
    assert torch.equal(guided[:, :2], plain[:, :2]) and not torch.equal(guided, plain)


@pytest.mark.parametrize(
    "bad", [{"guidance_schedule": "square"}, {"guidance_power": 0.0}, {"guidance_start": 2.0}, {"top_p": 1.5}]
)
def test_bad_sampling_settings_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        SamplingConfig(**bad)


def as_it_is(step, **options):
    return step


NEEDS_COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")


def draws_what_the_growing_cache_draws():
    meta, arrays = load_golden("c2i_a")
    model = build_gpt(meta["config"]).eval()
    load_gpt_state(model, load_state("c2i_a"))
    labels, uniforms = torch.from_numpy(arrays["gen_cond"]), image_uniforms(0, range(3), 16, 1)
    settings = SamplingConfig(guidance=2.0)
    plain = generate(model, labels, uniforms, settings)
    assert torch.equal(generate(model, labels, uniforms, settings, compiled=True), plain)
    again = generate(model, labels.flip(0), uniforms, settings, compiled=True)  # the caches of before are reused
    assert torch.equal(again, generate(model, labels.flip(0), uniforms, settings)) and not torch.equal(again, plain)


@pytest.mark.parametrize(
    "compiler",
    [
        pytest.param(as_it_is, id="not-compiled"),  # the same step over the same caches of fixed length
        pytest.param(torch.compile, marks=[pytest.mark.slow, NEEDS_COMPILER], id="compiled"),
    ],
)
def test_the_compiled_step_draws_what_the_growing_cache_draws(compiler, monkeypatch):
    monkeypatch.setattr(torch, "compile", compiler)
    draws_what_the_growing_cache_draws()
    assert not CompiledStep.fails


def does_not_compile(step, **options):
    raise RuntimeError("torch.compile is not supported")


def fails_as_it_runs(step, **options):
    def run(tokens, position, *others):
        if position == 3:
            raise FileNotFoundError("Failed to find C compiler")
        return step(tokens, position, *others)

    return run


@pytest.mark.parametrize("compiler", [does_not_compile, fails_as_it_runs])
def test_a_step_that_cannot_be_compiled_is_drawn_without_and_told_once(compiler, monkeypatch, caplog):
    monkeypatch.setattr(CompiledStep, "fails", False)
    monkeypatch.setattr(torch, "compile", compiler)
    draws_what_the_growing_cache_draws()
    assert caplog.text.count("torch.compile failed (") == 1 and "g++" in caplog.text


@pytest.mark.slow
def test_without_a_compiler_the_images_are_drawn_without_it(monkeypatch, caplog, tmp_path):
    from torch._inductor import config

    torch._dynamo.reset()  # of what another test has compiled
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(CompiledStep, "fails", False)
    monkeypatch.setattr(config.cpp, "cxx", (None, "/nonexistent/g++"))
    draws_what_the_growing_cache_draws()
    assert caplog.text.count("No working C++ compiler found") == 1
