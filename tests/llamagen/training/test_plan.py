"""Plans of trainings that are not started."""

import dataclasses

import pytest
import stage
from stage import load_config

from llamagen.training.plan import GIB, PlanConfig, make_plan
from llamagen.training.plan_page import page
from masc.runtime.errors import InputError

SMALL = ("model=llamagen-tiny", "model.num_layers=1", "data=imagenet256", "batch_size=256")


def plan_of(*words):
    config = load_config("train", PlanConfig, list(words))
    return make_plan(config, stage.named_config("tokenizer", config.tokenizer_name))


@pytest.fixture(scope="module")
def eight():
    return plan_of(*SMALL, "head=masc", "gpus=8", "ema_decay=0.999")


def test_masc_predicts_clusters_and_a_plan_reads_no_artefacts(eight, elsewhere):
    clusters, dim = 8192, 192
    block = 4 * dim * dim + 3 * dim * 512
    assert eight.of_head == clusters * dim
    assert eight.parameters == 2 * clusters * dim + block + 3 * dim + 1001 * dim  # three norms, classes
    assert eight.image_flops == 2 * 256 * (block + clusters * dim) + 4 * dim * 256**2
    assert eight.codes == (1_281_167 * 20 + 50_000) * 256 * 2


def test_fsdp_shares_what_is_held_and_recomputed_activations_take_less(eight):
    ways = {(way.parallel, way.recomputes): way for way in eight.memory}
    ddp, fsdp = ways["ddp", False], ways["fsdp", False]
    for part in ("weights", "optimizer", "average"):
        assert getattr(fsdp, part) == getattr(ddp, part) / 8
    assert ddp.gradients == ddp.weights and fsdp.gradients == 0  # they come as activations go
    assert fsdp.validation == ddp.validation + ddp.weights  # a whole copy
    for parallel in ("ddp", "fsdp"):
        assert ways[parallel, True].each < ways[parallel, False].each / 1.5


def test_the_images_that_fit_do_and_one_more_does_not(eight):
    for way in eight.memory:
        for capacity in (2 * GIB, 8 * GIB):
            images = way.fitting(capacity)
            assert way.peak(images) <= capacity < way.peak(images + 1)
        assert way.fitting(0.01 * GIB) == 0


def test_hours_are_flops_over_the_share_of_the_peak(eight):
    run = eight.step_flops * eight.config.steps
    assert eight.step_flops == 3 * 256 * eight.image_flops
    assert eight.hours(run) * 3600 == pytest.approx(run / (8 * 989e12 * 0.4))
    config = dataclasses.replace(eight.config, gpus=1, peak_tflops=100, mfu=0.5)
    assert dataclasses.replace(eight, config=config).hours(5e13) * 3600 == pytest.approx(1)


def test_a_page_says_all(eight):
    text = page(eight)
    for words in ("parameters", "FLOPs", "hours", "codes 13.1 GB", "ddp recompute", "fsdp recompute", "fit"):
        assert words in text


@pytest.mark.parametrize(
    ("words", "problem"),
    [(["gpu=tpu"], "gpu must be one of"), (["mfu=1.5"], "mfu at most 1"), (["gpus=0"], "must be positive")],
)
def test_a_machine_that_cannot_be_is_refused(words, problem):
    with pytest.raises(InputError, match=problem):
        plan_of(*SMALL, *words)


def test_images_that_the_tokenizer_cannot_cut_are_refused():
    with pytest.raises(InputError, match=r"250 pixels a side, and a token of vq16 covers 16"):
        plan_of(*SMALL, "data.resolution=250")


@pytest.mark.slow
@pytest.mark.parametrize("head", sorted(file.stem for file in (stage.CONFIGS / "head").glob("*.yaml")))
def test_every_head_and_captions_have_a_plan(head):
    model = "llamagen-xl-text" if head == "flat" else "llamagen-tiny"
    plan = plan_of(f"model={model}", "model.num_layers=2", "data=imagenet256", f"head={head}", "gpus=2")
    assert len(plan.memory) == 4 and "GiB" in page(plan)


def test_a_plan_refuses_a_loss_that_it_does_not_count():
    with pytest.raises(InputError, match="trained by cross-entropy, found the loss soft-codes; leave LOSS out"):
        plan_of(*SMALL, "head=flat", "loss=soft-codes")
