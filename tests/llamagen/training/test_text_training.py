"""Training on captions: from the captions of codes through text features to a run, and what does not belong."""

import json

import numpy as np
import pytest
import torch
from text_encoder import WORDS, make_encoder
from tiny_artifacts import make_artifacts
from user_errors import tells

from llamagen.conditions.captions import read_captions
from llamagen.conditions.encoders import T5Encoder
from llamagen.conditions.features import extract_text_features
from llamagen.conditions.images import open_captions
from llamagen.train import train
from llamagen.training.inputs import load_inputs
from llamagen.training.stream import caption_choices
from masc.runtime.codes import load_codes
from masc.runtime.errors import InputError
from masc.runtime.run import read_metrics

TEXT = ["model.condition=text", "model.caption_dim=16", "head=flat"]


@pytest.fixture(scope="module")
def captioned(tmp_path_factory):
    """Artefacts whose images have one to three captions, and the text features of both splits."""
    root = make_artifacts(tmp_path_factory.mktemp("captioned"))
    encoder = make_encoder(tmp_path_factory.mktemp("t5"))
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        file = root / "emoji32" / "codes" / "twemoji" / split / "captions.json"
        count = len(np.load(file.with_name("labels.npy")))
        entries = [
            {"image_id": row, "captions": [" ".join(rng.choice(WORDS, 4)) for _ in range(1 + row % 3)]}
            for row in range(count)
        ]
        entries[0] = "a plain caption"
        file.write_text(json.dumps(entries))
        extract_text_features(read_captions(file), T5Encoder(encoder), root / "text" / split, 8)
    return root


@pytest.fixture
def text_run(small_run, captioned):
    return lambda *more: small_run(*TEXT, f"artifacts={captioned}", f"captions={captioned / 'text'}", *more)


def test_each_image_shows_one_of_its_own_captions(text_run):
    captions = load_inputs(text_run()).conditions["train"]
    images, uniforms = np.array([0, 1, 2, 2, 5]), np.array([0.9, 0.6, 0.0, 0.99, 0.4])
    features, mask = captions.batch(images, uniforms)
    places = captions.starts[images] + np.array([0, 1, 0, 2, 1])
    expected = captions.features.batch(places)
    assert torch.equal(features, expected[0]) and torch.equal(mask, expected[1])
    first, _ = captions.batch(images)
    assert torch.equal(first[0], features[0]) and not torch.equal(first[3], features[3])
    choices = caption_choices(0, 3, slice(None), 10)
    assert np.array_equal(caption_choices(0, 3, slice(4, 7), 10), choices[4:7])


def test_a_text_model_learns_from_its_first_loss_on_and_the_same_twice(text_run, tmp_path):
    unbroken = train(text_run(f"run_dir={tmp_path / 'a'}"))
    train(text_run(f"run_dir={tmp_path / 'b'}"))
    rows = read_metrics(unbroken / "metrics.jsonl")
    assert rows[-1]["train/nats_per_token"] < rows[0]["val/nats_per_token"]
    assert abs(rows[0]["val/nats_per_token"] - np.log(24)) < 1e-5  # the output matrix starts at zero
    two = [read_metrics(tmp_path / name / "metrics.jsonl")[-1]["val/nats_per_token"] for name in "ab"]
    assert two[0] == two[1]


def test_captions_that_do_not_belong_are_refused(text_run, captioned, small_run, tmp_path):
    with pytest.raises(InputError, match=r"needs captions=FOLDER"):
        load_inputs(small_run(*TEXT))
    with pytest.raises(InputError, match=r"a class model takes none"):
        load_inputs(small_run("head=flat", f"captions={captioned / 'text'}"))
    codes_path = captioned / "emoji32" / "codes" / "twemoji" / "train"
    codes = load_codes(codes_path, load_inputs(text_run()).parents["codebook"])
    with tells(r"other captions than those of .*make text-features CAPTIONS="):
        open_captions(codes_path, codes, captioned / "text" / "val")
    with tells(r"no text features at .*none.*make text-features CAPTIONS="):
        open_captions(codes_path, codes, tmp_path / "none")
    with tells(r"no text features at .*make text-features CAPTIONS=.*train/captions.json.*encoder=wordllama"):
        load_inputs(
            small_run("model=llamagen-tiny-text", "head=flat", f"artifacts={captioned}", f"captions={tmp_path}")
        )
