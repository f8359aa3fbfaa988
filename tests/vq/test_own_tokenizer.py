"""docs/own-tokenizer.md does what it says: its code is taken from the page itself and run."""

import os
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import stage
import torch
import yaml
from user_errors import tells

from masc.layout import Layout
from masc.runtime.artifacts import Codebook
from masc.runtime.errors import InputError
from vq.codebook import make_codebook
from vq.interface import TokenizerConfig, tokenizer_path
from vq.pixels import to_tensor
from vq.pretrained import load_decoder, load_tokenizer
from vq.readers import load_images

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TITLE = re.compile(r"# (\S+)\n")


@pytest.fixture(scope="module")
def page(root):
    return (root / "docs" / "own-tokenizer.md").read_text()


@pytest.fixture(scope="module")
def folder(page, tmp_path_factory):
    """The files of the page, the weights made by its own script."""
    folder = tmp_path_factory.mktemp("own")
    for language, content in BLOCK.findall(page):
        if language != "sh":
            path = folder / TITLE.match(content)[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
    subprocess.run([sys.executable, "fit_patch_vq.py"], cwd=folder, check=True, timeout=120)
    return folder


@pytest.fixture
def config(folder, monkeypatch):
    """The config of the page, read where its class can be imported."""
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.chdir(folder)
    content = yaml.safe_load((folder / "configs" / "tokenizer" / "patch8.yaml").read_text())
    assert content.pop("defaults") == ["tokenizer_schema"]
    yield TokenizerConfig(**content)
    sys.modules.pop("patch_vq", None)


def test_the_class_is_short(folder):
    lines = [line for line in (folder / "patch_vq.py").read_text().splitlines() if line.strip()]
    assert len(lines) <= 25


def test_images_to_tokens_to_images(config, tmp_path):
    model = load_tokenizer(tokenizer_path(config, tmp_path), config)
    images = to_tensor(load_images("twemoji", "val", 32).pixels[:64])
    tokens = model.encode(images)
    assert tokens.shape == (64, 16) and tokens.dtype == torch.int64
    assert len(tokens.unique()) > 64
    decoded = model.decode(tokens)
    assert decoded.shape == images.shape
    assert torch.equal(model.encode(decoded), tokens)
    assert (decoded - images).square().mean() < 0.5 * images.var()


def test_the_codebook_is_that_of_the_class(config, tmp_path):
    weights = tokenizer_path(config, tmp_path)
    model = load_tokenizer(weights, config)
    saved = make_codebook(config, weights, tmp_path / "codebook.npz", model)
    stored = Codebook.load(tmp_path / "codebook.npz")
    assert saved.num_tokens == model.num_tokens == 256
    np.testing.assert_array_equal(stored.vectors, model.patches.numpy())
    assert stored.meta.config["target"] == "patch_vq:PatchVQ"


def test_a_run_finds_the_class_in_the_config_of_the_name_that_its_codebook_holds(config, folder, tmp_path, monkeypatch):
    layout, weights = Layout(tmp_path, "patch8"), tokenizer_path(config, tmp_path)
    codebook = make_codebook(config, weights, layout.codebook)
    sys.modules.pop("patch_vq")
    with pytest.raises(InputError, match="configs/tokenizer has no config of that name"):
        load_decoder(codebook, layout)
    assert "patch_vq" not in sys.modules  # nothing that only a file names is imported
    monkeypatch.setattr(stage, "CONFIGS", folder / "configs")
    assert stage.named_config("tokenizer", "patch8") == config
    assert load_decoder(codebook, layout).num_tokens == 256
    other = replace(config, options={"num_tokens": 128})
    with tells(r"(?s)options\.num_tokens: 256 there, 128 now.*make codebook TOKENIZER=patch8"):
        load_decoder(codebook, layout, other)


def test_what_does_not_fit_is_refused(config, tmp_path):
    config.options = {"num_tokens": 128}
    with pytest.raises(InputError, match=r"patches is \(256, 192\) there, \(128, 192\) here"):
        load_tokenizer(tokenizer_path(config, tmp_path), config)
    config.options = {"tokens": 128}
    with pytest.raises(InputError, match="has no option tokens; it takes num_tokens, downsample"):
        load_tokenizer(tokenizer_path(config, tmp_path), config)
    config.target = "patch_vq:Nonesuch"
    with pytest.raises(InputError, match="does not import"):
        load_tokenizer(tokenizer_path(config, tmp_path), config)
    config.weights = "weights/elsewhere.pt"
    with pytest.raises(InputError, match=r"no weights of the tokenizer patch8 at weights/elsewhere.pt"):
        tokenizer_path(config, tmp_path)


def test_the_commands_of_the_page_are_targets_of_the_makefile(page, root):
    (commands,) = [content for language, content in BLOCK.findall(page) if language == "sh"]
    targets = re.findall(r"^make (\S+)", commands, re.MULTILINE)
    assert targets == ["codebook", "codes", "tree", "train"]
    for line in commands.splitlines():
        if line.startswith("make "):
            environment = {name: value for name, value in os.environ.items() if name != "MAKEFLAGS"}
            dry = [*line.split(), "--dry-run", "PYTHON=python"]
            found = subprocess.run(dry, cwd=root, env=environment, capture_output=True, text=True)
            assert found.returncode == 0 and "patch8" in found.stdout, found.stderr
