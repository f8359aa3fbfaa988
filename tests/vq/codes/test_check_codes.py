"""Checking codes: a grid to look at, and damage found."""

import numpy as np
import pytest
import torch
from PIL import Image
from user_errors import tells

from masc.runtime.codes import save_codes
from masc.runtime.errors import InputError, MissingArtifact, naming
from vq.codebook import make_codebook
from vq.codes.check_codes import LINE, check_codes
from vq.interface import TokenizerConfig
from vq.pixels import decode_pixels

SMALL = TokenizerConfig(name="s", target="vq.autoencoder:ConvVQ", options={"num_tokens": 64, "width": 16})


@pytest.fixture
def made(tmp_path):
    """A model, its codebook, and codes of three classes of 5, 3 and 2 images."""
    torch.manual_seed(0)
    model = SMALL.build().eval()
    (tmp_path / "weights").write_bytes(b"x")
    codebook = make_codebook(SMALL, tmp_path / "weights", tmp_path / "codebook.npz", model)
    tokens = np.random.default_rng(0).integers(0, 64, (10, 2, 64))
    labels = np.repeat([0, 1, 3], [5, 3, 2])
    names = ["a", "b", "nothing", "d"]
    save_codes(
        tmp_path / "codes", tokens, labels, np.arange(10), names, [], 64, codebook.meta.sha256, {}, keys=["k"] * 10
    )
    return model, codebook, tokens


def test_the_grid_shows_decoded_entries_and_the_classes_are_counted(made, tmp_path):
    model, codebook, tokens = made
    found = check_codes(model, codebook, tmp_path / "codes", tmp_path / "check.png", 10, 0)
    assert (found.num_images, found.num_views, found.num_shards) == (10, 2, 1)
    assert (found.num_classes, found.smallest_class, found.largest_class) == (3, 2, 5)
    grid = np.asarray(Image.open(tmp_path / "check.png"))
    assert grid.shape == (2 * (136 + 3 * LINE), 8 * 136, 3)
    first = grid[4 : 4 + 128 : 4, 4 : 4 + 128 : 4]  # a 32 x 32 image, four times as large
    assert any(np.array_equal(first, image) for image in decode_pixels(model, tokens[0]))
    assert (grid[132 : 132 + 3 * LINE, :128] < 128).any()  # text below


def test_the_seed_chooses_the_entries(made, tmp_path):
    model, codebook, _ = made
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        check_codes(model, codebook, tmp_path / "codes", tmp_path / name, 4, seed)
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b != c


def test_a_damaged_shard_is_named(made, tmp_path):
    model, codebook, _ = made
    damaged = np.load(tmp_path / "codes" / "codes.npy", mmap_mode="r+")
    damaged[3, 0, 0] ^= 1
    damaged.flush()
    with pytest.raises(InputError, match=r"shard 0 of .*images 0 to 9"):
        check_codes(model, codebook, tmp_path / "codes", tmp_path / "check.png", 4, 0)
    assert not (tmp_path / "check.png").exists()


def test_names_that_do_not_fit_are_named_and_views_without_names_are_shown(made, tmp_path):
    model, codebook, _ = made
    meta = tmp_path / "codes" / "meta.json"
    meta.write_text(meta.read_text().replace('"config": {}', '"config": {"views": 3}'))
    check_codes(model, codebook, tmp_path / "codes", tmp_path / "check.png", 4, 0)
    (tmp_path / "codes" / "keys.txt").write_text("k\n")
    with pytest.raises(MissingArtifact, match=r"keys.txt holds 1 names, expected one for each of the 10 images"):
        check_codes(model, codebook, tmp_path / "codes", tmp_path / "check.png", 4, 0)


@pytest.mark.parametrize("is_imported", [False, True])
def test_the_advice_for_damaged_codes_makes_them_again(made, tmp_path, is_imported):
    model, codebook, tokens = made
    config = {"imported": True} if is_imported else {}
    save_codes(tmp_path / "c", tokens, np.zeros(10, int), np.arange(10), ["a"], [], 64, codebook.meta.sha256, config)
    file = tmp_path / "c" / "codes.npy"
    file.write_bytes(file.read_bytes()[:-1] + b"\xff")
    command = "rm -r .*/c && make import-codes DATA=d TOKENIZER=s" if is_imported else "make codes DATA=d TOKENIZER=s"
    with tells(rf"does not match its checksum; type `{command}`"), naming(data="d", tokenizer="s"):
        check_codes(model, codebook, tmp_path / "c", tmp_path / "check.png", 4, 0)
