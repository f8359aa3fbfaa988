"""Near codes beside the tokens: read by image and view, verified as the tokens are, absent unless asked for."""

import json
import os

import numpy as np
import pytest
from damage import Kind, check, plain

from masc.runtime.codes import load_codes, save_codes
from masc.runtime.errors import InputError, MissingArtifact
from masc.runtime.near import NearCodes, pack_distances
from masc.runtime.verify import verify_codes, verify_once

IDS = np.random.default_rng(0).integers(0, 300, (30, 2, 9, 4)).astype(np.uint16)
DISTANCES = np.sort(np.random.default_rng(1).random((30, 2, 9, 4)).astype(np.float16))


def save(path, near=True):
    parts = [slice(0, 20), slice(20, 30)]
    codes = iter([IDS[part, ..., 0] for part in parts])
    shards = iter([NearCodes(IDS[part], DISTANCES[part]) for part in parts]) if near else None
    save_codes(path, codes, np.zeros(30), np.arange(30), ["a"], [], 300, "book", {}, near=shards)
    return path


@pytest.fixture
def path(tmp_path):
    return save(tmp_path / "codes")


def test_near_codes_are_read_by_image_and_view(path):
    assert verify_codes(path) == 2
    codes, images = load_codes(path, "book"), np.array([7, 29, 7])
    for views in (np.array([1, 0, 0]), 1):
        ids, distances = codes.read_near(images, views)
        assert (ids.dtype, distances.dtype) == (np.int64, np.float32)
        assert np.array_equal(ids, IDS[images, views]) and np.array_equal(distances, DISTANCES[images, views])
        assert np.array_equal(ids[..., 0], codes.read(images, views))
        assert np.array_equal(codes.read_near(images, views, 3)[0], ids[..., :3])
    with pytest.raises(MissingArtifact, match="codes holds only 4 near codes of each token") as caught:
        codes.read_near(images, 0, 5)
    assert caught.value.overrides == {"near": 5}


def test_codes_without_near_codes_are_the_same_files_and_say_how_to_make_them(tmp_path, path):
    plain_path = save(tmp_path / "plain", near=False)
    meta, plain_meta = (json.loads((folder / "meta.json").read_text()) for folder in (path, plain_path))
    assert meta.pop("near")["count"] == 4 and meta == plain_meta
    assert {file.name for file in path.iterdir()} - {file.name for file in plain_path.iterdir()} == {
        "near.npy",
        "near_distances.npy",
    }
    with pytest.raises(MissingArtifact, match="plain holds no near codes") as caught:
        load_codes(plain_path, "book").read_near(np.array([0]), 0)
    assert (caught.value.kind, caught.value.overrides) == ("codes", {"near": 8})


@pytest.mark.parametrize("name", ["near.npy", "near_distances.npy"])
def test_a_changed_byte_is_found_in_its_shard_also_after_the_codes_were_verified(path, name):
    verify_once(path)
    altered = np.load(path / name, mmap_mode="r+")
    altered[25, 1, 3, 2] += 1
    altered.flush()
    os.utime(path / name, ns=(1, 1))
    with pytest.raises(MissingArtifact, match=rf"shard 1 of {name} in .*images 20 to 29.*checksum") as caught:
        verify_once(path)
    assert caught.value.overrides == {"near": 4}
    (path / name).unlink()
    for read in (verify_once, lambda path: load_codes(path, "book")):
        with pytest.raises(MissingArtifact, match=f"no file at .*{name}"):
            read(path)


def test_near_codes_that_do_not_begin_with_the_token_or_lie_outside_of_the_codebook_are_refused(tmp_path):
    for place, words in ((0, "does not begin with the tokens"), (3, "holds the code 300, outside the codebook of 300")):
        ids = IDS.copy()
        ids[3, 0, 5, place] = 300 if place else (ids[3, 0, 5, 0] + 1) % 300
        near = iter([NearCodes(ids, DISTANCES)])
        save_codes(tmp_path / "codes", IDS[..., 0], np.zeros(30), np.arange(30), ["a"], [], 300, "book", {}, near=near)
        with pytest.raises(MissingArtifact, match=words):
            verify_codes(tmp_path / "codes")
    with pytest.raises(InputError, match=r"image 3, view 0 of .*near.npy holds the token 300, outside"):
        load_codes(tmp_path / "codes", "book").read_near(np.array([1, 3]), 0)


@pytest.mark.parametrize("wrong", [np.inf, np.nan, 70_000])
def test_distances_that_half_precision_does_not_hold_are_refused(wrong):
    assert pack_distances(np.array([0, 2.5])).dtype == np.float16
    with pytest.raises(InputError, match=rf"near codes is {float(wrong)}, more than the 65504"):
        pack_distances(np.array([0.0, wrong]))


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("name", ["near.npy", "near_distances.npy", "meta.json"])
def test_damage(path, name):
    def read():
        verify_codes(path)
        near = load_codes(path, "book").near
        return None if near is None else [plain(near.ids), plain(near.distances)]

    check(Kind(path / name, read, 200, is_json=name == "meta.json", is_hashed=name != "meta.json"))
