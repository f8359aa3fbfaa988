"""Codes that are damaged before a training and during it."""

import itertools
import os
import shutil

import numpy as np
import pytest
from run_rows import losses

from llamagen.train import train
from masc.runtime.codes import Codes
from masc.runtime.errors import InputError, MissingArtifact


def overwrite(file):
    """Every token of the file lies outside of the codebook."""
    tokens = np.load(file, mmap_mode="r+")
    tokens[:] = 24
    tokens.flush()


def shorten(file):
    os.truncate(file, file.stat().st_size - 2)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            overwrite,
            r"image \d+, view \d of .*codes.npy holds the token 24, outside the codebook of 24, while it was read",
        ),
        (shorten, r"codes.npy was shortened from \d+ to \d+ bytes while it was read"),
    ],
    ids=["overwritten", "shortened"],
)
@pytest.mark.parametrize("split", ["train", "val"])
def test_damaged_codes_stop_a_training_and_the_next_start_says_how_to_repair_them(
    small_run, artifacts, tmp_path, monkeypatch, damage, words, split
):
    shutil.copytree(artifacts, tmp_path / "artifacts")
    codes = tmp_path / "artifacts" / "emoji32" / "codes" / "twemoji" / split
    config = small_run("head=flat", f"artifacts={tmp_path / 'artifacts'}")
    read, calls = Codes.read, itertools.count()

    def damaged(self, images, views):
        if next(calls) == 7:
            damage(codes / "codes.npy")
        return read(self, images, views)

    with monkeypatch.context() as patch, pytest.raises(InputError, match=words):
        patch.setattr(Codes, "read", damaged)
        train(config)
    with pytest.raises(MissingArtifact, match=r"codes.npy") as error:
        train(config)
    assert error.value.kind == "codes" and error.value.facts == {"data": "twemoji", "tokenizer": "emoji32"}
    shutil.rmtree(codes)
    shutil.copytree(artifacts / codes.relative_to(tmp_path / "artifacts"), codes)
    assert losses(train(config)) == losses(train(small_run("head=flat", f"run_dir={tmp_path / 'unbroken'}")))
