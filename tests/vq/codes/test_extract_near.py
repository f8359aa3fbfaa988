"""Extraction with near codes: those of every view, the same tokens as without, resumed to the same bytes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from extraction import SETTINGS, content, stop_after
from user_errors import tells

from masc.runtime.codes import load_codes, save_codes
from masc.runtime.errors import InputError, naming
from vq.codes import extract
from vq.codes.extract import extract_codes
from vq.codes.shards import ExtractConfig
from vq.crops import Views
from vq.ibq import IBQ
from vq.magvit2 import OpenMAGVIT2
from vq.pixels import to_tensor

VIEWS = Views("center-flip")


def test_near_codes_are_those_of_each_view_and_the_other_files_stay_as_they_are(squares, small, tmp_path):
    model, codebook = small
    extract_codes(model, squares, VIEWS, codebook, tmp_path / "plain", SETTINGS)
    extract_codes(model, squares, VIEWS, codebook, tmp_path / "near", SETTINGS, near=5)
    images = to_tensor(squares.pixels)
    codes = load_codes(tmp_path / "near", codebook.meta.sha256)
    for view, pixels in enumerate((images, images.flip(-1))):
        ids, distances = codes.read_near(np.arange(len(squares)), view)
        expected_ids, expected = model.encode_near(pixels, 5)
        assert np.array_equal(ids[..., 0], codes.tokens[:, view])
        np.testing.assert_allclose(distances, expected, rtol=1e-3, atol=1e-6)
        assert (ids == expected_ids.numpy()).mean() > 0.999  # batches of another size round differently
    plain, near = content(tmp_path / "plain"), content(tmp_path / "near")
    assert near.keys() - plain.keys() == {"near.npy", "near_distances.npy"}
    assert {name for name in plain if plain[name] != near[name]} == {"meta.json"}


def test_an_interrupted_extraction_and_two_processes_give_the_bytes_of_one(images, small, tmp_path, monkeypatch):
    model, codebook = small
    settings = ExtractConfig(batch_size=10, shard_size=8, num_workers=0, max_failed_share=0.1)
    for key in images().keys[48:]:  # all of the last shard
        (tmp_path / "images" / "train" / key).write_bytes(b"no image")
    sources = [images() for _ in range(5)]
    extract_codes(model, sources[0], VIEWS, codebook, tmp_path / "whole", settings, near=3)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, 3)
        extract_codes(model, sources[1], VIEWS, codebook, tmp_path / "broken", settings, near=3)
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        extract_codes(model, sources[2], VIEWS, codebook, tmp_path / "broken", settings, near=3)
    monkeypatch.setattr(extract, "gather_object", lambda own: list(range(7)))
    for index in (1, 0):
        state = SimpleNamespace(
            process_index=index, num_processes=2, is_main_process=index == 0, wait_for_everyone=lambda: None
        )
        monkeypatch.setattr(extract, "patient_state", lambda state=state: state)
        extract_codes(model, sources[3 + index], VIEWS, codebook, tmp_path / "two", settings, near=3)
    assert content(tmp_path / "whole") == content(tmp_path / "broken") == content(tmp_path / "two")


def test_codes_with_fewer_near_codes_than_asked_for_are_made_again(squares, small, tmp_path, monkeypatch, caplog):
    model, codebook = small
    path = tmp_path / "codes"
    for near in (0, 4):
        extract_codes(model, squares, VIEWS, codebook, path, SETTINGS, near=near)
    assert "holds 0 near codes of a token, not 4; it is made again" in caplog.text
    monkeypatch.setattr("vq.codes.extract.save_codes", None)
    whole = content(path)
    for near in (4, 2, 0):
        extract_codes(model, squares, VIEWS, codebook, path, SETTINGS, near=near)
    assert content(path) == whole


def test_shards_without_near_codes_are_made_again(squares, small, tmp_path, monkeypatch, caplog):
    model, codebook = small
    settings = ExtractConfig(shard_size=20, num_workers=0)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, 2)
        extract_codes(model, squares, VIEWS, codebook, tmp_path / "codes", settings)
    extract_codes(model, squares, VIEWS, codebook, tmp_path / "codes", settings, near=2)
    extract_codes(model, squares, VIEWS, codebook, tmp_path / "fresh", settings, near=2)
    assert content(tmp_path / "codes") == content(tmp_path / "fresh")


@pytest.mark.parametrize("name", ["near.npy", "near_distances.npy"])
def test_damaged_near_codes_are_made_again(squares, small, tmp_path, name):
    model, codebook = small
    path = tmp_path / "codes"
    extract_codes(model, squares, VIEWS, codebook, path, SETTINGS, near=3)
    whole = content(path)
    for damage in (whole[name][:-1] + bytes([whole[name][-1] ^ 1]), whole[name][:-2]):
        (path / name).write_bytes(damage)
        extract_codes(model, squares, VIEWS, codebook, path, SETTINGS, near=3)
        assert content(path) == whole
    (path / name).write_bytes(whole[name][:-2])
    with (
        tells("it is truncated.*`make codes DATA=squares TOKENIZER=small ARGS=near=3`"),
        naming(data="squares", tokenizer="small"),
    ):
        load_codes(path, codebook.meta.sha256)


class Bare(torch.nn.Module):
    """A tokenizer of the user's own, without `encode_near`."""

    num_tokens, downsample = 32, 4

    def encode(self, images):
        return torch.zeros(len(images), 16, dtype=torch.int64)


SIGNS = {"channels": 32, "channel_multipliers": [1, 1, 1], "num_blocks": 1}


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (Bare(), "Bare"),
        (IBQ(num_tokens=32, code_dim=8, z_channels=8, **SIGNS), "IBQ"),
        (OpenMAGVIT2(num_tokens=32, **SIGNS), "OpenMAGVIT2"),
    ],
    ids=["own", "IBQ", "OpenMAGVIT2"],
)
def test_tokenizers_whose_token_is_not_the_nearest_code_are_refused(squares, small, tmp_path, model, name):
    with pytest.raises(InputError, match=f"near=4 asks for the codes nearest .*, but {name} does not find tokens by"):
        extract_codes(model, squares, VIEWS, small[1], tmp_path / "codes", SETTINGS, near=4)


@pytest.mark.parametrize("near", [-1, 33])
def test_more_near_codes_than_there_are_codes_are_refused(squares, small, tmp_path, near):
    with pytest.raises(InputError, match=rf"near must lie in 0..32, the number of tokens, found {near}"):
        extract_codes(small[0], squares, VIEWS, small[1], tmp_path / "codes", SETTINGS, near=near)


def test_imported_codes_are_never_replaced_for_their_near_codes(squares, small, tmp_path):
    model, codebook = small
    tokens, count = np.zeros((50, 1, 16), int), 50
    config = {"imported": True}
    save_codes(
        tmp_path / "codes", tokens, np.zeros(count), np.arange(count), ["a"], [], 32, codebook.meta.sha256, config
    )
    extract_codes(model, squares, VIEWS, codebook, tmp_path / "codes", SETTINGS)
    with pytest.raises(InputError, match=r"holds imported codes, which have no near codes; delete them with rm -r "):
        extract_codes(model, squares, VIEWS, codebook, tmp_path / "codes", SETTINGS, near=2)
