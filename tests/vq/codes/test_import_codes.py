"""LlamaGen's own codes come in as they are, and equal our extraction of the same images."""

import io
import shutil
from dataclasses import replace

import ilsvrc
import numpy as np
import pytest
import torch
from golden import GOLDEN
from import_codes import ImportStage
from user_errors import tells

from masc.runtime.artifacts import Codebook
from masc.runtime.codes import load_codes
from masc.runtime.errors import InputError
from vq.codebook import make_codebook
from vq.codes.extract import extract_codes
from vq.codes.import_codes import import_codes
from vq.codes.shards import ExtractConfig
from vq.data import DataConfig
from vq.interface import TokenizerConfig
from vq.readers import load_images
from vq.readers.imagenet import wnids


@pytest.fixture
def codebook(tmp_path):
    vectors = np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32)
    return Codebook.save(tmp_path / "codebook.npz", vectors, {}, {"tokenizer": "x"})


def config(crops="center-flip", ranges=(1.1,), source="imagenet"):
    return DataConfig(name="x", source=source, resolution=32, tokenizer="x", crops=crops, crop_ranges=list(ranges))


def released(name, folder="imagenet32_codes"):
    return np.concatenate([np.load(GOLDEN / "codes" / name / folder / f"{n}.npy") for n in range(4)])


@pytest.mark.parametrize(("name", "crops"), [("code_c2i_flip", "center-flip"), ("code_c2i_flip_ten_crop", "ten-crop")])
def test_the_official_files_come_in_as_they_are(codebook, tmp_path, name, crops):
    assert import_codes([GOLDEN / "codes" / name], config(crops), "train", codebook, tmp_path / "codes", 4) == 4
    codes = load_codes(tmp_path / "codes", codebook.meta.sha256)
    assert np.array_equal(codes.tokens, released(name)) and codes.tokens.dtype == np.uint16
    assert codes.labels.tolist() == [0, 0, 1, 1] and codes.class_names == list(wnids())
    assert codes.config["views"] == config(crops).views("train").names


def test_both_ranges_of_ten_crop_are_one_set_of_twenty_views(codebook, tmp_path):
    folder = GOLDEN / "codes" / "code_c2i_flip_ten_crop"
    data, other = config("ten-crop", (1.1, 1.05)), shutil.copytree(folder, tmp_path / "ten_crop_105")
    import_codes([folder, other], data, "train", codebook, tmp_path / "codes", num_images=4)
    codes = load_codes(tmp_path / "codes", codebook.meta.sha256)
    assert np.array_equal(codes.tokens, np.concatenate([released(folder.name)] * 2, axis=1))
    with pytest.raises(InputError, match=r"the same folder was named twice"):
        import_codes([folder, folder], data, "train", codebook, tmp_path / "codes", num_images=4)
    with pytest.raises(InputError, match=r"needs a folder each, found 1"):
        import_codes([folder], data, "train", codebook, tmp_path / "codes")


def test_folders_of_different_numbers_of_files_are_refused_with_both_numbers(codebook, tmp_path):
    for name, count in (("one", 3), ("two", 4)):
        (tmp_path / name).mkdir()
        for n in range(count):
            np.save(tmp_path / name / f"{n}.npy", np.zeros((1, 10, 16), int))
    sets, data = [tmp_path / "one", tmp_path / "two"], config("ten-crop", (1.1, 1.05), source="coco")
    for folders in (sets, sets[::-1]):
        with pytest.raises(InputError, match=r"found \d in .*/(one|two), \d in .*; .* num_images=N") as error:
            import_codes(folders, data, "train", codebook, tmp_path / "codes")
        assert f"3 in {tmp_path}/one" in str(error.value) and f"4 in {tmp_path}/two" in str(error.value)
    assert import_codes(sets, data, "train", codebook, tmp_path / "codes", num_images=3) == 3


@pytest.mark.parametrize("extra", ["codes", "labels"])
def test_more_labels_than_codes_or_fewer_are_refused(codebook, tmp_path, folder, extra):
    shutil.copy(folder / f"folder32_{extra}" / "3.npy", folder / f"folder32_{extra}" / "4.npy")
    words = {"codes": r"5 in .*/folder32_codes, 4 in .*/folder32_labels", "labels": r"4 in .*_codes, 5 in .*_labels"}
    with pytest.raises(InputError, match=words[extra]):
        import_codes([folder], config(source="folder"), "train", codebook, tmp_path / "codes")
    assert import_codes([folder], config(source="folder"), "train", codebook, tmp_path / "codes", 4) == 4


@pytest.mark.parametrize("order", [1, -1])
def test_a_folder_of_ten_crops_without_labels_is_named(codebook, tmp_path, order):
    shutil.copytree(GOLDEN / "codes" / "code_c2i_flip_ten_crop", tmp_path / "one")
    shutil.copytree(tmp_path / "one" / "imagenet32_codes", tmp_path / "two")
    with pytest.raises(InputError, match=r"no labels beside .*/two: expected .*/two/imagenet32_labels/0.npy"):
        folders = [tmp_path / "one", tmp_path / "two"][::order]
        import_codes(folders, config("ten-crop", (1.1, 1.05)), "train", codebook, tmp_path / "codes", 4)


@pytest.mark.parametrize("number", [0, -1])
def test_a_number_of_images_below_one_is_refused(codebook, tmp_path, folder, number):
    with pytest.raises(InputError, match=f"num_images must be 1 or more, found {number}"):
        import_codes([folder], config(source="folder"), "train", codebook, tmp_path / "codes", number)
    with pytest.raises(ValueError, match="num_images"):
        ImportStage(tokenizer=None, data=None, num_images=number)


def test_held_out_codes_of_ten_crop_are_the_centre_crops(codebook, tmp_path):
    import_codes([GOLDEN / "codes" / "code_c2i_flip"], config("ten-crop"), "val", codebook, tmp_path / "codes", 4)
    codes = load_codes(tmp_path / "codes", codebook.meta.sha256)
    assert np.array_equal(codes.tokens, released("code_c2i_flip")[:, :1])


def test_they_equal_our_extraction_of_the_same_images(tmp_path, monkeypatch):
    torch.manual_seed(0)
    tokenizer = TokenizerConfig(name="s", target="vq.autoencoder:ConvVQ", options={"num_tokens": 64, "width": 16})
    model = tokenizer.build().eval()
    (tmp_path / "weights").write_bytes(b"x")
    codebook = make_codebook(tokenizer, tmp_path / "weights", tmp_path / "codebook.npz", model)
    ilsvrc.class_folders(tmp_path / "imagenet")
    images = load_images("imagenet", "train", 32, tmp_path / "imagenet")
    settings = ExtractConfig(num_workers=0, max_failed_share=1.0)
    extract_codes(model, images, config().views("train"), codebook, tmp_path / "ours", settings)
    ours = load_codes(tmp_path / "ours", codebook.meta.sha256)
    for kind in ("codes", "labels"):
        (tmp_path / f"imagenet32_{kind}").mkdir()
    for n in range(1003):  # three more, as the sampler pads
        np.save(tmp_path / "imagenet32_codes" / f"{n}.npy", ours.tokens[n % 1000][None].astype(np.int64))
        np.save(tmp_path / "imagenet32_labels" / f"{n}.npy", ours.labels[[n % 1000]])
    monkeypatch.setitem(import_codes.__globals__["NUM_IMAGES"], "train", 1000)
    assert import_codes([tmp_path], config(), "train", codebook, tmp_path / "theirs") == 1000
    theirs = load_codes(tmp_path / "theirs", codebook.meta.sha256)
    assert np.array_equal(theirs.tokens, ours.tokens) and theirs.sha256 == ours.sha256
    assert np.array_equal(theirs.labels, ours.labels) and theirs.class_names == ours.class_names
    extract_codes(model, images, config().views("train"), codebook, tmp_path / "theirs", settings)
    assert load_codes(tmp_path / "theirs", codebook.meta.sha256).config["imported"]  # not overwritten
    other = Codebook.save(
        tmp_path / "other.npz", codebook.vectors[::-1].copy(), codebook.meta.config, {"tokenizer": "y"}
    )
    with tells(r"theirs was made with the codebook .*rm -r .*make import-codes"):
        extract_codes(model, images, config().views("train"), other, tmp_path / "theirs", settings)
    assert load_codes(tmp_path / "theirs", codebook.meta.sha256).config["imported"]
    coarse = replace(config(), resolution=64)
    for kind in ("codes", "labels"):
        shutil.copytree(tmp_path / f"imagenet32_{kind}", tmp_path / f"imagenet64_{kind}")
    with pytest.raises(InputError, match=r"0.npy has shape \(1, 2, 64\), expected \(1, 2, 256\)"):
        import_codes([tmp_path], coarse, "train", codebook, tmp_path / "again", tokenizer=tokenizer)
    np.save(tmp_path / "imagenet32_labels" / "7.npy", [900])
    with pytest.raises(InputError, match=r"not those of ImageNet train .* 999 classes, .* breaks after 6.npy"):
        import_codes([tmp_path], config(), "train", codebook, tmp_path / "again")
    monkeypatch.setitem(import_codes.__globals__["NUM_IMAGES"], "train", 1004)
    with pytest.raises(InputError, match=r"1 of the 1004 files .* missing .* num_images=N"):  # an unfinished extraction
        import_codes([tmp_path], config(), "train", codebook, tmp_path / "again")


def test_the_centre_of_ten_crops_is_the_fifth(codebook, tmp_path):
    folder = GOLDEN / "codes" / "code_c2i_flip_ten_crop"
    import_codes([folder], config("center"), "val", codebook, tmp_path / "codes", num_images=4)
    codes = load_codes(tmp_path / "codes", codebook.meta.sha256)
    assert np.array_equal(codes.tokens, released(folder.name)[:, 4:5]) and codes.config["views"] == ["centre"]
    twenty = tmp_path / "twenty"
    shutil.copytree(folder, twenty)
    np.save(twenty / "imagenet32_codes" / "0.npy", np.zeros((1, 20, 256), int))
    with pytest.raises(InputError, match=r"0.npy has shape \(1, 20, 256\)"):
        import_codes([twenty], config("center"), "val", codebook, tmp_path / "none", num_images=4)


def test_codes_of_captions_have_no_labels(codebook, tmp_path):
    for n in range(5):
        np.save(tmp_path / f"{n}.npy", np.full((1, 16), n))
    import_codes([tmp_path], config("center", source="coco"), "train", codebook, tmp_path / "codes")
    codes = load_codes(tmp_path / "codes", codebook.meta.sha256)
    assert codes.tokens.shape == (5, 1, 16) and codes.tokens[:, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert codes.labels.tolist() == [0] * 5
    with pytest.raises(InputError, match="no labels beside"):
        import_codes([tmp_path], config("center"), "train", codebook, tmp_path / "codes", 5)


def broken_copy(tmp_path, file, array):
    folder = tmp_path / "copy"
    shutil.copytree(GOLDEN / "codes" / "code_c2i_flip", folder)
    if array is None:
        (folder / file).unlink()
    elif isinstance(array, bytes):
        (folder / file).write_bytes(array)
    else:
        np.save(folder / file, array)
    return folder


@pytest.mark.parametrize(
    ("file", "array", "words"),
    [
        ("imagenet32_codes/2.npy", None, r"1 of the 4 files .* the first is 2.npy"),
        ("imagenet32_codes/2.npy", b"\x93NUMPY", r"imagenet32_codes/2.npy, which is damaged or another kind of file"),
        ("imagenet32_codes/2.npy", np.full((1, 2, 256), 64), r"token 64 is outside the codebook of 64 .*/2.npy"),
        (
            "imagenet32_codes/2.npy",
            np.zeros((1, 10, 256), int),
            r"2.npy has shape \(1, 10, 256\), expected \(1, 2, 256\)",
        ),
        ("imagenet32_codes/2.npy", np.zeros((1, 2, 64), int), r"2.npy has shape \(1, 2, 64\), expected \(1, 2, 256\)"),
        ("imagenet32_codes/2.npy", np.zeros((1, 2, 256)), r"expected whole numbers in .*2.npy, found float64"),
        (
            "imagenet32_labels/1.npy",
            np.array([1000]),
            r"imagenet32_labels/1.npy holds the label 1000, outside of 0..999",
        ),
        ("imagenet32_labels/1.npy", np.array([-1]), r"1.npy holds \[-1\], expected one label from 0 up"),
        ("imagenet32_labels/1.npy", None, r"no file at .*imagenet32_labels/1.npy; extract it again"),
    ],
)
def test_what_is_wrong_is_named_by_file(codebook, tmp_path, file, array, words):
    folder = broken_copy(tmp_path, file, array)
    with pytest.raises(InputError, match=words):
        import_codes([folder], config(), "train", codebook, tmp_path / "codes", 4)
    assert not (tmp_path / "codes").exists()
    assert (tmp_path / "codes-missing.txt").exists() == words.startswith("1 of the 4 files")


def test_a_folder_without_codes_is_refused(codebook, tmp_path):
    with pytest.raises(InputError, match=r"no codes of LlamaGen in .*expected imagenet32_codes/0.npy"):
        import_codes([tmp_path], config(), "train", codebook, tmp_path / "codes")


def claiming(shape):
    """The header of a .npy file of numbers of 8 bytes, without the numbers."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<i8", "fortran_order": False, "shape": shape})
    return header.getvalue()


@pytest.fixture
def folder(tmp_path):
    """A folder of four codes with labels, as LlamaGen writes it, for data of other class folders."""
    for kind, shape, top in (("codes", (1, 2, 64), 64), ("labels", (1,), 2)):
        (tmp_path / "f" / f"folder32_{kind}").mkdir(parents=True)
        for n in range(4):
            array = np.random.default_rng(n).integers(0, top, shape)
            np.save(tmp_path / "f" / f"folder32_{kind}" / f"{n}.npy", array)
    return tmp_path / "f"


def test_files_of_other_names_are_not_read(codebook, tmp_path, folder):
    for name in ("\u00b2", "00", "x", "1e3"):
        (folder / "folder32_codes" / f"{name}.npy").write_bytes(b"")
    assert import_codes([folder], config(source="folder"), "train", codebook, tmp_path / "codes") == 4


@pytest.mark.parametrize(
    ("kind", "name", "content", "words"),
    [
        ("codes", "2", np.zeros((1, 2, 0), int), r"2.npy has shape \(1, 2, 0\), expected \(1, 2, T\)"),
        ("codes", "2", np.array(3), r"2.npy has shape \(\), expected"),
        ("codes", "2", claiming((1, 2, 10**15)), r"expected 16000000000000128 bytes in .*/2.npy for .*, found 128"),
        ("codes", "99999999999", np.zeros((1, 2, 64), int), "expected 100000000000 files .* found 5; name the number"),
        (
            "labels",
            "2",
            np.array([2**63 + 5], np.uint64),
            r"2.npy holds \[9223372036854775813\], expected one label from 0",
        ),
        ("labels", "2", np.array([10**9]), r"2.npy holds \[1000000000\], expected one label from 0 up, below 1000000"),
        ("labels", "2", np.zeros(10**6, int), "2.npy holds 1000000 numbers, expected one label"),
    ],
)
def test_files_that_hold_something_else_are_named(codebook, tmp_path, folder, kind, name, content, words):
    file = folder / f"folder32_{kind}" / f"{name}.npy"
    file.write_bytes(content) if isinstance(content, bytes) else np.save(file, content)
    with pytest.raises(InputError, match=words):
        import_codes([folder], config(source="folder"), "train", codebook, tmp_path / "codes")
    assert not (tmp_path / "codes").exists()
