"""A text model's likelihood under its own, another's and the null caption equals the model's own, pair by pair."""

import json

import numpy as np
import pytest
import torch
from stage import load_config
from tiny_artifacts import make_artifacts
from user_errors import tells

from llamagen.conditions.captions import read_captions
from llamagen.conditions.encoders import WordLlama
from llamagen.conditions.features import extract_text_features
from llamagen.evaluation import text
from llamagen.evaluation.lite import likelihood
from llamagen.evaluation.text import (
    EvalTextConfig,
    Pairs,
    draw_galleries,
    evaluate_text,
    is_evaluated,
    others,
    texts_of,
)
from llamagen.runs import Run
from llamagen.train import train
from llamagen.training.config import TrainConfig
from llamagen.training.likelihood import image_nats
from masc.layout import Layout
from masc.runtime.device import build_accelerator
from masc.runtime.errors import InputError
from metrics.results import Results

ANIMALS = [
    "cat",
    "dog",
    "fish",
    "red bird",
    "horse",
    "snake",
    "blue whale",
    "ant",
    "bee",
    "Bee",
]  # the last two are one


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = make_artifacts(tmp_path_factory.mktemp("captioned"))
    for split in ("train", "val"):
        file = Layout(root, "emoji32").codes("twemoji", split) / "captions.json"
        count = len(np.load(file.with_name("labels.npy")))
        file.write_text(json.dumps([ANIMALS[row % 10] for row in range(count)]))
        extract_text_features(read_captions(file), WordLlama(), root / "text" / split)
    small = ["model.dim=32", "model.num_layers=1", "model.num_heads=4", "model.multiple_of=16", "head=masc-two-level"]
    steps = ["steps=12", "batch_size=8", "evaluate_every=12", "log_every=12", "tracking.mode=disabled"]
    places = [f"artifacts={root}", f"captions={root / 'text'}", f"run_dir={root / 'run'}", "precision=fp32"]
    chosen = ["model=llamagen-tiny-text", "data=twemoji", "diagnostics=false"]
    return Run(train(load_config("train", TrainConfig, [*chosen, *small, *steps, *places])))


@pytest.fixture(scope="module")
def results(run):
    return Results.load(evaluate_text(EvalTextConfig(run=str(run.directory), candidates=4)))


def direct(run, image, shown, is_null=False):
    """Nats of a held-out image under the caption of another, from the model's own forward."""
    model, captions = run.load_model(), run.inputs.conditions["val"]
    tokens = torch.from_numpy(run.inputs.held_out.read(np.array([image]), 0))
    condition, mask = captions.batch(np.array([shown]))
    dropped = torch.tensor([True]) if is_null else None
    with torch.no_grad():
        return -float(model(tokens, condition, mask, dropped).sum())


def test_each_likelihood_is_that_of_the_model_under_the_caption(run, results):
    captions, held_out = run.inputs.conditions["val"], run.inputs.held_out
    other, own = others(texts_of(captions)), range(10)
    for name, shown, is_null in (
        ("own caption", own, False),
        ("another's caption", other, False),
        ("null caption", own, True),
    ):
        expected = np.mean([direct(run, image, shown[image], is_null) for image in own]) / held_out.num_positions
        found = results[f"held-out nats per token, {name}"]
        assert found["value"] == pytest.approx(expected, rel=1e-5)
        assert found["protocol"]["captions_sha256"] == captions.features.sha256
    own_row = results["held-out nats per token, own caption"]
    assert own_row["value"] == pytest.approx(likelihood(run)[0]["value"], rel=1e-6)
    of_class = others(texts_of(captions), held_out.labels)
    pairs = [(image, shown) for image, shown in enumerate(of_class) if shown >= 0]  # ten images have nine classes
    expected = np.mean([direct(run, *pair) for pair in pairs]) / held_out.num_positions
    found = results["held-out nats per token, a caption of its class"]
    assert found["value"] == pytest.approx(expected, rel=1e-5) and found["protocol"]["num_images"] == len(pairs) == 2
    gain = results["gain over another's caption"]
    by_hand = results["held-out nats per token, another's caption"]["value"] - own_row["value"]
    assert gain["value"] == pytest.approx(by_hand) and gain["interval"]["low"] <= by_hand <= gain["interval"]["high"]


def test_pairs_are_images_under_the_captions_of_others_in_batches_of_any_size(run):
    captions, codes = run.inputs.conditions["val"], run.inputs.held_out
    images, shown = np.array([0, 0, 3, 9]), np.array([0, 4, 1, 9])
    pairs = Pairs(codes, captions, images, shown)
    accelerator, model = build_accelerator(), run.load_model()
    expected = [direct(run, *pair) for pair in zip(images, shown, strict=True)]
    for size in (1, 3, 64):
        found = image_nats(accelerator, model, pairs, pairs, batch_size=size).sum(1)
        assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_a_model_that_reads_no_text_gains_nothing_and_retrieves_at_chance(run, monkeypatch):
    # Captions of as many positions, whose features all become zero.
    model, codes, captions = run.load_model(), run.inputs.held_out, run.inputs.conditions["val"]
    torch.nn.init.zeros_(model.backbone.cls_embedding.cap_proj["fc2"].weight)
    monkeypatch.setattr(Run, "load_model", lambda self: model)
    batch, full = captions.batch, np.ones((1, 20), bool)
    monkeypatch.setattr(
        type(captions), "batch", lambda self, rows: (batch(rows)[0], torch.from_numpy(full.repeat(len(rows), 0)))
    )
    rows = {row["metric"]: row["value"] for row in text.measure(run, codes, captions, {"candidates": 4})}
    for name in ("another's caption", "a caption of its class", "null caption"):
        assert rows[f"gain over {name}"] == pytest.approx(0, abs=1e-6)
    for search in ("captions by image", "images by caption, over the null caption"):
        assert rows[f"recall@1 of {search}"] == pytest.approx(1 / 4)


def test_another_caption_has_another_text_and_a_gallery_each_text_once(run):
    texts = texts_of(run.inputs.conditions["val"])
    assert len(set(texts)) == 9  # cleaned captions are equal that differ in case
    other = others(texts)
    assert all(texts[image] != texts[shown] for image, shown in enumerate(other))
    galleries = draw_galleries(texts, 4)
    assert [len({texts[image] for image in gallery}) for gallery in galleries] == [4, 4]
    assert not set(galleries[0]) & set(galleries[1])
    assert len(draw_galleries([str(number) for number in range(100)], 3)) == text.GALLERIES
    with pytest.raises(InputError, match=r"expected 50 held-out images with captions of their own, found 9; set cand"):
        draw_galleries(texts, 50)
    with pytest.raises(InputError, match="expected held-out images with different captions, found 3"):
        others(["cat"] * 3)
    assert others(["cat", "dog", "fish", "bee"], np.array([0, 1, 0, 2])).tolist() == [2, -1, 0, -1]
    with pytest.raises(InputError, match="with different captions in a class, found 2"):
        others(["cat", "dog"], np.array([0, 1]))


def test_results_of_these_weights_are_kept_and_of_other_galleries_measured_again(run, results, monkeypatch):
    config = EvalTextConfig(run=str(run.directory), candidates=4)
    assert is_evaluated(config) and not is_evaluated(EvalTextConfig(run=str(run.directory), candidates=5))
    monkeypatch.setattr(text, "measure", lambda *_: pytest.fail("measured again"))
    evaluate_text(config)


def test_a_run_on_classes_is_refused(small_run, tmp_path):
    train(small_run("head=flat", "steps=2", "diagnostics=false"))
    with tells(r"expected a run on captions .* model\.condition=class .*train a text model such as llamagen-tiny-text"):
        evaluate_text(EvalTextConfig(run=str(tmp_path / "run")))
