"""Runs with another loss than cross-entropy: resumed, shared, judged and sampled as any run."""

import shutil

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from run_rows import losses
from safetensors.torch import load_file

from llamagen.model import build_model, count_parameters
from llamagen.runs import Run
from llamagen.train import train
from llamagen.training.checkpoint import weights_file
from llamagen.training.inputs import load_inputs
from llamagen.training.likelihood import evaluate
from masc.layout import Layout
from masc.runtime.codes import load_codes, save_codes
from masc.runtime.errors import InputError, MissingArtifact
from masc.runtime.near import NearCodes

REAR = ["loss=rear", "loss.width=16"]
LOSSES = {
    "label-smoothing": ["loss=label-smoothing"],
    "soft-codes": ["loss=soft-codes", "loss.neighbours=4"],
    "soft-tree": ["loss=soft-tree", "loss.levels=[4,12]"],
    "cluster": ["loss=cluster"],
    "context-noise": ["loss=context-noise"],
    "rear": REAR,
}


def but_slow(names, *fast):
    """The names as parameters, slow but for the fast ones."""
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in names]


def test_a_run_without_weight_beside_the_likelihood_is_the_plain_run(small_run, tmp_path):
    plain = train(small_run("head=flat", f"run_dir={tmp_path / 'plain'}"))
    for name, more in (
        ("cluster", []),
        ("soft-codes", ["loss.neighbours=4"]),
        ("context-noise", ["loss.noise_rate=0"]),
    ):
        zero = [] if name == "context-noise" else ["loss.weight=0"]
        other = train(small_run("head=flat", f"loss={name}", *zero, *more, f"run_dir={tmp_path / name}"))
        nats, same = (
            [row["val/nats_per_token"] for row in losses(each) if "val/nats_per_token" in row]
            for each in (plain, other)
        )
        assert nats == pytest.approx(same, abs=1e-4)
        assert "train/loss" in losses(other)[-1] and "train/nats_per_token" not in losses(other)[-1]


@pytest.mark.parametrize("name", but_slow(LOSSES, "soft-codes", "rear"))
def test_a_run_with_a_loss_resumes_learns_and_is_judged_by_its_head_alone(small_run, tmp_path, dies, name):
    settings = ["head=flat", *LOSSES[name], "optim.learning_rate=0.01", "ema_decay=0.5"]
    unbroken = train(small_run(*settings, f"run_dir={tmp_path / 'a'}"))
    config = small_run(*settings, f"run_dir={tmp_path / 'b'}")
    dies(config, 7)
    assert losses(train(config)) == losses(unbroken)
    rows = losses(unbroken)
    assert rows[-1]["val/nats_per_token"] < rows[0]["val/nats_per_token"] == pytest.approx(np.log(24), abs=1e-4)
    run = Run(unbroken)
    model = run.load_model()
    assert model.loss is None and run.config.label == f"flat-with-{name}"
    assert evaluate(Accelerator(cpu=True), model, run.inputs)["val/nats_per_token"] == pytest.approx(
        rows[-1]["val/nats_per_token"], abs=1e-5
    )
    assert Run(unbroken, averaged=True).load_model().loss is None


@pytest.mark.parametrize("name", but_slow(LOSSES, "rear"))
def test_parts_of_a_batch_give_the_losses_of_the_whole(small_run, tmp_path, name):
    one, two = (
        losses(
            train(small_run("head=flat", *LOSSES[name], f"micro_batches={parts}", f"run_dir={tmp_path / str(parts)}"))
        )
        for parts in (1, 2)
    )
    for whole, part in zip(one, two, strict=True):
        assert whole == pytest.approx(part, rel=1e-3, abs=2e-4)


def test_a_loss_changes_no_first_weight_and_learns_beside_the_model(small_run):
    config = small_run("head=flat", *REAR)
    inputs = load_inputs(config)
    given = config.model, config.head, inputs.shape, inputs.tree, config.seed
    plain, other = build_model(*given), build_model(*given, None, config.loss, inputs.vectors)
    state = other.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in plain.state_dict().items())
    assert count_parameters(plain) == count_parameters(other)
    before = {name: value.clone() for name, value in state.items()}
    after = load_file(weights_file(train(config)))
    learned = [name for name in after if name.startswith("loss.")]
    assert len(learned) == 12 and all(not torch.equal(after[name], before[name]) for name in learned)


def test_a_run_with_a_loss_starts_another_one(small_run, tmp_path):
    first = train(small_run("head=flat", *REAR, f"run_dir={tmp_path / 'first'}"))
    for name, loss in (("plain", []), ("rear", REAR)):
        rows = losses(train(small_run("head=flat", *loss, f"init={first}", f"run_dir={tmp_path / name}")))
        assert rows[0]["val/nats_per_token"] == pytest.approx(losses(first)[-1]["val/nats_per_token"], abs=1e-5)


@pytest.mark.parametrize("head", but_slow(["masc", "masc-two-level", "masc-tree", "tree-shared"], "masc-two-level"))
def test_soft_codes_train_every_kind_of_head(small_run, head):
    rows = losses(train(small_run(f"head={head}", *LOSSES["soft-codes"], "optim.learning_rate=0.01")))
    assert rows[-1]["val/nats_per_token"] < rows[0]["val/nats_per_token"]


def test_what_a_loss_cannot_train_is_refused_in_one_sentence(small_run):
    with pytest.raises(InputError, match="which heads of one softmax have"):
        train(small_run("head=masc", "loss=cluster", "loss.num_clusters=12"))
    with pytest.raises(InputError, match="and the model has 2 blocks"):
        train(small_run("head=flat", *REAR, "loss.decode_block=2"))
    with pytest.raises(InputError, match=r"makes one partition, but the run cuts at \[5, 12\]"):
        train(small_run("head=masc", "tree=kmeans", "loss=context-noise", "loss.num_clusters=5"))


def test_only_a_loss_that_stays_lets_a_run_be_lengthened(small_run, tmp_path):
    for name, loss, words in (
        ("falls", LOSSES["soft-codes"], "its learning rate or its loss changes"),
        ("stays", LOSSES["cluster"], None),
    ):
        config = ["head=flat", *loss, "optim.final_share=1", f"run_dir={tmp_path / name}"]
        train(small_run(*config))
        if words is None:
            assert losses(train(small_run(*config, "steps=16")))[-1]["step"] == 16
        else:
            with pytest.raises(InputError, match=words):
                train(small_run(*config, "steps=16"))


@pytest.fixture
def with_near(artifacts, tmp_path):
    """Overrides of runs on the tiny codes with three near codes of each training token."""
    shutil.copytree(artifacts, tmp_path / "near")
    layout = Layout(tmp_path / "near", "emoji32")
    codes = load_codes(layout.codes("twemoji", "train"), layout.load_codebook().meta.sha256)
    tokens = np.array(codes.tokens)
    ids = ((tokens[..., None] + np.arange(3)) % 24).astype(np.uint16)
    distances = np.broadcast_to(np.array([0.1, 0.3, 0.9], np.float16), ids.shape)
    about = codes.labels, codes.groups, codes.class_names, [], 24, codes.codebook_sha256, {}
    save_codes(layout.codes("twemoji", "train"), tokens, *about, near=[NearCodes(ids, distances)])
    return ["head=flat", f"artifacts={tmp_path / 'near'}", "loss=soft-encoder", "loss.neighbours=3"]


@pytest.mark.parametrize("draws", [False, True])
def test_targets_of_the_encoder_train_on_codes_that_hold_their_near_codes(small_run, with_near, tmp_path, dies, draws):
    settings = [*with_near, f"loss.draw_context={str(draws).lower()}", "optim.learning_rate=0.01"]
    unbroken = train(small_run(*settings, f"run_dir={tmp_path / 'a'}"))
    config = small_run(*settings, f"run_dir={tmp_path / 'b'}")
    dies(config, 7)
    rows = losses(train(config))
    assert rows == losses(unbroken) and rows[-1]["val/nats_per_token"] < rows[0]["val/nats_per_token"]


def test_codes_without_near_codes_are_refused_before_the_first_step(small_run, with_near, artifacts):
    with pytest.raises(MissingArtifact, match="holds no near codes of each token") as caught:
        train(small_run(*with_near, f"artifacts={artifacts}"))
    assert caught.value.overrides == {"near": 3} and caught.value.facts["data"] == "twemoji"
    with pytest.raises(MissingArtifact, match="holds only 3 near codes"):
        train(small_run(*with_near, "loss.neighbours=4"))


def test_a_run_goes_on_from_a_checkpoint_with_its_own_kind_of_loss(small_run, tmp_path):
    first = train(small_run("head=flat", *REAR, f"run_dir={tmp_path / 'first'}"))
    on = [f"from_checkpoint={first / 'checkpoints' / 'step-00000008'}", "steps=16", f"run_dir={tmp_path / 'second'}"]
    with pytest.raises(InputError, match=r"loss.kind: 'rear' there, 'ce' now"):
        train(small_run("head=flat", *on))
    with pytest.raises(InputError, match=r"train_share: 1.0 there, 0.5 now"):
        train(small_run("head=flat", *REAR, "train_share=0.5", *on))
    assert losses(train(small_run("head=flat", *REAR, "loss.weight=0.5", *on)))[-1]["step"] == 16
