"""Extraction: the tokens of every view, whatever the number of processes."""

import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import ilsvrc
import numpy as np
import pytest
import torch
from codes import CodesStage, main
from extraction import NUM_IMAGES, SETTINGS, content
from stage import load_config

from masc.runtime.codes import load_codes
from vq.codebook import make_codebook
from vq.codes import extract
from vq.codes.extract import extract_codes
from vq.codes.shards import ExtractConfig
from vq.crops import Views
from vq.interface import TokenizerConfig, tokenizer_path
from vq.pixels import to_tensor
from vq.pretrained import load_tokenizer


def test_tokens_are_those_of_each_view_and_are_not_made_twice(squares, small, tmp_path, monkeypatch):
    model, codebook = small
    extract_codes(model, squares, Views("center-flip"), codebook, tmp_path / "codes", SETTINGS)
    codes = load_codes(tmp_path / "codes", codebook.meta.sha256)
    images = to_tensor(squares.pixels)
    with torch.no_grad():
        assert np.array_equal(codes.tokens[:, 0], model.encode(images))
        assert np.array_equal(codes.tokens[:, 1], model.encode(images.flip(-1)))
    assert np.array_equal(codes.labels, squares.labels) and np.array_equal(codes.groups, squares.groups)
    assert codes.class_names == ["a", "b"] and codes.config["views"] == ["centre", "centre mirrored"]
    assert json.loads((tmp_path / "codes" / "captions.json").read_text()) == list(squares.captions)
    assert (tmp_path / "codes" / "keys.txt").read_text().split() == list(squares.keys)
    monkeypatch.setattr("vq.codes.extract.save_codes", None)
    extract_codes(model, squares, Views("center-flip"), codebook, tmp_path / "codes", SETTINGS)
    with pytest.raises(TypeError):
        extract_codes(model, squares, Views("center"), codebook, tmp_path / "codes", SETTINGS)


def test_ten_crops_are_tokenized_view_by_view(images, small, tmp_path):
    model, codebook = small
    views, source = Views("ten-crop", (1.1, 1.05)), images()
    extract_codes(model, source, views, codebook, tmp_path / "codes", SETTINGS)
    codes = load_codes(tmp_path / "codes", codebook.meta.sha256)
    assert codes.tokens.shape == (NUM_IMAGES, 20, 16)
    with torch.no_grad():
        expected = model.encode(to_tensor(views(source.image(33), 16)))
    assert np.array_equal(codes.tokens[33], expected)


def test_a_tokenizer_of_buffers_only_is_a_tokenizer(squares, small, tmp_path):
    class Fixed(torch.nn.Module):
        num_tokens, downsample = 32, 4

        def __init__(self):
            super().__init__()
            self.register_buffer("codebook", torch.eye(32))

        def encode(self, images):
            return torch.full((len(images), 16), 7)

    extract_codes(Fixed(), squares, Views("center"), small[1], tmp_path / "codes", SETTINGS)
    assert (load_codes(tmp_path / "codes", small[1].meta.sha256).tokens == 7).all()


def test_the_shards_of_two_processes_make_the_bytes_of_one(images, small, tmp_path, monkeypatch):
    model, codebook = small
    settings = ExtractConfig(num_workers=0, shard_size=7, batch_size=4)
    extract_codes(model, images(), Views("center-flip"), codebook, tmp_path / "one" / "codes", settings)
    monkeypatch.setattr(extract, "gather_object", lambda own: list(range(8)))  # of all processes: all shards are to do
    for index in (1, 0):  # the main process, which joins the shards, comes last
        state = SimpleNamespace(
            process_index=index, num_processes=2, is_main_process=index == 0, wait_for_everyone=lambda: None
        )
        monkeypatch.setattr(extract, "patient_state", lambda state=state: state)
        extract_codes(model, images(), Views("center-flip"), codebook, tmp_path / "two" / "codes", settings)
        if index == 1:
            made = sorted(file.stem for file in (tmp_path / "two" / ".codes.shards").glob("*.npz"))
            assert made == ["000001", "000003", "000005", "000007"]
    assert content(tmp_path / "one" / "codes") == content(tmp_path / "two" / "codes")


@pytest.mark.slow
def test_two_processes_give_the_bytes_of_one(tmp_path, root):
    data = tmp_path / "data"
    for split in ("train", "val"):
        for n in range(24):
            file = data / split / f"class {n % 3}" / f"{n:02d}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"" if n == 13 else ilsvrc.jpeg(10 * n, size=(40, 50)))
    path = tokenizer_path(TokenizerConfig(name="emoji32", target="vq.autoencoder:ConvVQ"), tmp_path)
    config = TokenizerConfig(name="emoji32", target="vq.autoencoder:ConvVQ")
    make_codebook(config, path, tmp_path / "one" / "emoji32" / "codebook.npz", load_tokenizer(path, config))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    options = ["tokenizer=emoji32", "data=folder256", "data.resolution=32", f"data.path={data}"]
    options += ["near=3", "extraction.shard_size=5", "extraction.batch_size=4", "extraction.num_workers=1"]
    main(load_config("codes", CodesStage, [*options, f"artifacts={tmp_path / 'one'}"]))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [sys.executable, *launch, "scripts/codes.py", *options, f"artifacts={tmp_path / 'two'}"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "train: 23 images, 2 view(s) of 64 tokens, 3 near codes of each, 1 not readable" in done.stdout
    for split in ("train", "val"):
        one, two = (content(tmp_path / name / "emoji32" / "codes" / "folder256" / split) for name in ("one", "two"))
        assert one == two and {"failures.txt", "near.npy"} <= one.keys()
