"""Images of a sample set: their pixels, the names of their files, and what else may lie beside them."""

from unittest.mock import Mock

import numpy as np
import pytest
import torch
from golden import load_golden
from sample_files import images_of

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
