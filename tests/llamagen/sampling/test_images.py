"""Images of a sample set: their pixels, the names of their files, and what else may lie beside them."""

import shutil
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from golden import load_golden
from PIL import Image
from sample_files import contents, images_of

from llamagen.sampling import draw as sampling
from llamagen.sampling.images import finish, png_path
from masc.runtime.errors import InputError


def test_images_are_resized_before_they_are_rounded():
    meta, arrays = load_golden("postproc")
    for i, size in enumerate(meta["sizes"]):
        found = finish(torch.from_numpy(arrays[f"in_{i}"]).float(), size["image_size_eval"])
        difference = np.abs(found.astype(int) - arrays[f"u8_{i}"].astype(int))
        assert difference.max() <= 1 and (difference > 0).mean() < 1e-3


@pytest.mark.parametrize("num_images", [1, 50_000, 1_000_000, 1_000_001, 20_000_000])
def test_the_names_of_the_images_are_in_their_order_in_a_set_of_any_size(tmp_path, num_images):
    indices = sorted({0, min(9, num_images - 1), num_images // 10, num_images // 2, num_images - 1})
    names = [png_path(tmp_path, index, num_images).name for index in indices]
    assert names == sorted(names) and len(set(map(len, names))) == 1
    assert (names[0] == "000000.png") == (num_images <= 1_000_000)


def test_pieces_of_a_set_of_any_size_are_found(tmp_path):
    names = {"00000000-00000008.npy": slice(0, 8), "99999996-100000004.npy": slice(99_999_996, 100_000_004)}
    for name in (*names, "1-2.npy", "notes.npy"):
        (tmp_path / name).touch()
    assert {file.name: rows for file, rows in sampling._pieces(tmp_path).items()} == names


@pytest.mark.parametrize("name", ["Copy.png", "000021.png", "5.png", "000003.PNG", "more/000003.png", "a.jpg", "a.zip"])
def test_a_foreign_image_in_an_unfinished_set_is_named_before_anything_is_drawn(draw, monkeypatch, tmp_path, name):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sampling, "_finish", Mock(side_effect=KeyboardInterrupt))
        draw(form="png")
    folder = tmp_path / "runs" / "c2i_tiny" / "samples" / ".default.unfinished" / "images"
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes((folder / "000003.png").read_bytes())
    (folder / "notes.txt").touch()  # counts as no image
    with (
        monkeypatch.context() as patch,
        pytest.raises(InputError, match=rf"only images of these samples in .*, found {name}; move"),
    ):
        patch.setattr(sampling, "_draw_tokens", None)
        draw(form="png")
    (folder / name).rename(tmp_path / "elsewhere")
    assert len(images_of(draw(form="png"))) == 21


def test_a_foreign_image_that_comes_while_a_set_is_drawn_is_named_at_the_end(draw, monkeypatch):
    decode = sampling.decode_units

    def and_another(accelerator, tokenizer, tokens, folder, *others):
        decode(accelerator, tokenizer, tokens, folder, *others)
        (folder / "Copy.png").touch()

    monkeypatch.setattr(sampling, "decode_units", and_another)
    with pytest.raises(InputError, match=r"only images of these samples in .*, found Copy.png"):
        draw(form="png")


def cut(piece):
    piece.write_bytes(piece.read_bytes()[:-20])


def stored(array):
    return lambda piece: np.save(piece, array)


DAMAGE = {  # form, piece of 21 images, damage
    "cut tokens": ("npz", "tokens/00000008-00000016.npy", cut),
    "cut unit": ("npz", "images/unit-00000016.npy", cut),
    "cut image": ("png", "images/000003.png", cut),
    "too few tokens": ("npz", "tokens/00000008-00000016.npy", stored(np.zeros((7, 16), np.int64))),
    "other grid": ("npz", "tokens/00000008-00000016.npy", stored(np.zeros((8, 15), np.int64))),
    "unknown token": ("npz", "tokens/00000008-00000016.npy", stored(np.full((8, 16), 70000))),
    "negative token": ("npz", "tokens/00000008-00000016.npy", stored(np.full((8, 16), -3))),
    "short unit": ("npz", "images/unit-00000000.npy", stored(np.zeros((15, 12, 12, 3), np.uint8))),
    "other pixels": ("png", "images/000003.png", lambda piece: Image.new("RGB", (9, 9)).save(piece)),
}


def test_pieces_that_are_damaged_are_drawn_again(draw, monkeypatch, caplog):
    for form in ("npz", "png"):
        whole = contents(draw(name=form, form=form))
        shutil.rmtree(Path(f"runs/c2i_tiny/samples/{form}"))
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(sampling, "_finish", Mock(side_effect=KeyboardInterrupt))
            draw(name=form, form=form, batch_size=8)
        work, before = Path(f"runs/c2i_tiny/samples/.{form}.unfinished"), Path(f"before-{form}")
        shutil.copytree(work, before)
        for _, piece, damage in (each for each in DAMAGE.values() if each[0] == form):
            shutil.copytree(before, work, dirs_exist_ok=True)
            damage(work / piece)
            caplog.clear()
            assert contents(draw(name=form, form=form, batch_size=8)) == whole, piece
            assert caplog.text.count("making a piece of the samples again") == 1
            shutil.rmtree(Path(f"runs/c2i_tiny/samples/{form}"))
