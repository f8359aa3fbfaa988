"""Packed codes: streamed or whole they are the same file, and what is damaged is named."""

import hashlib
import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest

from masc.runtime import marks, verify
from masc.runtime.captions import load_captions
from masc.runtime.codes import load_codes, load_keys, save_codes, used_tokens
from masc.runtime.errors import InputError, MissingArtifact
from masc.runtime.verify import verify_codes, verify_once


def save(path, tokens, count, labels=None, names=("a", "b", "c"), **more):
    labels = np.arange(count) % 3 if labels is None else labels
    save_codes(path, tokens, labels, np.arange(count), list(names), [], 300, "book", {}, **more)


@pytest.fixture
def tokens():
    return np.random.default_rng(0).integers(0, 300, (2500, 2, 9))


def test_shards_of_any_length_give_the_array_they_were_cut_from(tmp_path, tokens):
    save(tmp_path / "whole", tokens, 2500)
    save(tmp_path / "parts", iter(np.split(tokens, [7, 8, 1999])), 2500, keys=["k"] * 2500, failures=["x: broken"])
    whole, parts = (load_codes(tmp_path / name, "book") for name in ("whole", "parts"))
    assert np.array_equal(whole.tokens, tokens) and np.array_equal(parts.tokens, tokens)
    assert whole.sha256 == parts.sha256 and whole.tokens.dtype == np.uint16
    assert np.array_equal(np.load(tmp_path / "parts" / "codes.npy"), tokens)
    assert (verify_codes(tmp_path / "whole"), verify_codes(tmp_path / "parts")) == (3, 4)
    assert (tmp_path / "parts" / "failures.txt").read_text() == "x: broken\n"
    assert not (tmp_path / "whole" / "failures.txt").exists()


def test_a_changed_byte_is_found_in_its_shard(tmp_path, tokens):
    save(tmp_path / "codes", tokens, 2500)
    damaged = np.load(tmp_path / "codes" / "codes.npy", mmap_mode="r+")
    damaged[1500, 1, 3] ^= 1
    damaged.flush()
    load_codes(tmp_path / "codes", "book")  # which does not read all tokens
    with pytest.raises(MissingArtifact, match=r"shard 1 of .*images 1024 to 2047.*its checksum"):
        verify_codes(tmp_path / "codes")


def test_a_truncated_file_and_an_older_version_are_refused(tmp_path, tokens):
    save(tmp_path / "codes", tokens, 2500)
    file, meta = tmp_path / "codes" / "codes.npy", tmp_path / "codes" / "meta.json"
    whole = file.read_bytes()
    file.write_bytes(whole[:-2])
    with pytest.raises(MissingArtifact, match=r"90128 bytes in .*codes.npy.*found 90126; it is truncated"):
        load_codes(tmp_path / "codes", "book")
    file.write_bytes(whole)
    meta.write_text(meta.read_text().replace('"version": 2', '"version": 1'))
    with pytest.raises(InputError, match="expected masc-codes version 2"):
        load_codes(tmp_path / "codes", "book")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": np.arange(2500)}, "run from 0 to 2499, but there are 3 classes"),
        ({"labels": np.arange(2500) % 3 - 1}, "run from -1 to 1, but there are 3 classes"),
        ({"names": ("a", "b")}, "run from 0 to 2, but there are 2 classes"),
    ],
)
def test_labels_outside_of_the_classes_are_refused(tmp_path, tokens, change, words):
    with pytest.raises(InputError, match=words):
        save(tmp_path / "codes", tokens, 2500, **change)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("wrong", "words"), [(300, "token 300 is outside"), (-1, "token -1 is outside")])
def test_tokens_outside_of_the_codebook_are_refused(tmp_path, tokens, wrong, words):
    tokens[2000, 0, 0] = wrong
    with pytest.raises(InputError, match=words):
        save(tmp_path / "codes", tokens, 2500)
    assert not list(tmp_path.iterdir())


def test_shards_that_do_not_add_up_are_refused(tmp_path, tokens):
    with pytest.raises(InputError, match=r"2400 rows for .*codes/codes.npy, expected 2500"):
        save(tmp_path / "codes", iter([tokens[:2400]]), 2500)
    with pytest.raises(InputError, match=r"codes.npy has rows of uint16 \(1, 9\), the first has uint16 \(2, 9\)"):
        save(tmp_path / "codes", iter([tokens[:2400], tokens[2400:, :1]]), 2500)


def test_used_tokens_are_recorded_with_the_codes_and_counted_in_codes_without_the_record(tmp_path, tokens):
    tokens[tokens == 7] = 8
    save(tmp_path / "codes", iter([tokens[:0], tokens[:10], tokens[10:]]), 2500)
    expected = np.isin(np.arange(300), tokens)
    recorded = load_codes(tmp_path / "codes", "book")
    assert not expected[7] and np.array_equal(used_tokens(recorded), expected)
    assert np.array_equal(used_tokens(replace(recorded, is_used=None)), expected)
    (tmp_path / "codes" / "used.npy").unlink()
    file = tmp_path / "codes" / "meta.json"
    meta = json.loads(file.read_text())
    file.write_text(json.dumps({key: value for key, value in meta.items() if key != "used_sha256"}))
    assert load_codes(tmp_path / "codes", "book").is_used is None


def test_an_altered_record_of_used_tokens_is_refused(tmp_path, tokens):
    save(tmp_path / "codes", tokens, 2500)
    np.save(tmp_path / "codes" / "used.npy", np.ones(300, np.bool_) & (np.arange(300) > 0))
    with pytest.raises(InputError, match=r"used.npy was altered"):
        load_codes(tmp_path / "codes", "book")


def respell(path, change):
    """Rewrite meta.json with the function `change` of its content."""
    file = path / "meta.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda meta: [meta], "meta.json does not hold what it should"),
        (lambda meta: {key: meta[key] for key in meta if key != "shape"}, "Field required at shape"),
        (lambda meta: meta | {"num_tokens": "300"}, "valid integer at num_tokens, found '300'"),
        (lambda meta: meta | {"shape": [2500, 2, -9]}, "which no codes have"),
        (lambda meta: meta | {"num_tokens": 10**15}, "which no codes have"),
        (lambda meta: meta | {"num_tokens": 70_000}, "expected uint32 in .*codes.npy for 70000 tokens, found uint16"),
        (lambda meta: meta | {"shape": [2500, 2, 10]}, r"of shape \(2500, 2, 10\) in .*codes.npy"),
        (lambda meta: meta | {"class_names": ["a"]}, "run from 0 to 2, but there are 1 classes"),
    ],
)
def test_metadata_that_lies_is_refused(tmp_path, tokens, change, words):
    save(tmp_path / "codes", tokens, 2500)
    respell(tmp_path / "codes", change)
    with pytest.raises(MissingArtifact, match=words):
        load_codes(tmp_path / "codes", "book")


@pytest.mark.parametrize("dtype", ["<u4", "<f2", ">u2", "<i2"])
def test_another_type_of_tokens_is_named_as_such(tmp_path, tokens, dtype):
    save(tmp_path / "codes", tokens, 2500)
    np.save(tmp_path / "codes" / "codes.npy", tokens.astype(dtype))
    with pytest.raises(MissingArtifact, match=f"found ({np.dtype(dtype)}|{dtype})"):
        load_codes(tmp_path / "codes", "book")


def test_groups_with_gaps_are_refused(tmp_path, tokens):
    with pytest.raises(InputError, match=r"groups in .* run from 1 to 2500, expected every number"):
        save_codes(tmp_path / "codes", tokens, np.zeros(2500, int), np.arange(2500) + 1, ["a"], [], 300, "book", {})


@pytest.mark.parametrize("content", ["{}", '[{"captions": "a"}]', "[1]", "[", '[{"captions": [null]}]'])
def test_captions_of_another_form_are_refused(tmp_path, tokens, content):
    save(tmp_path / "codes", tokens, 2500)
    (tmp_path / "codes" / "captions.json").write_text(content)
    with pytest.raises(MissingArtifact, match=r"captions.json does not hold what it should"):
        load_captions(tmp_path / "codes")


@pytest.fixture
def reads(monkeypatch):
    """A list that grows by one each time when all tokens are read."""
    found = []
    original = verify._verify
    monkeypatch.setattr(verify, "_verify", lambda *arguments: found.append(1) or original(*arguments))
    return found


def flip(path):
    damaged = np.load(path / "codes.npy", mmap_mode="r+")
    damaged[1500, 1, 3] ^= 1
    damaged.flush()


def test_codes_are_verified_once_and_again_when_they_change(tmp_path, tokens, reads):
    path = tmp_path / "codes"
    save(path, tokens, 2500)
    for _ in range(3):
        verify_once(path)
    assert len(reads) == 1
    (path / "meta.json").write_text((path / "meta.json").read_text() + "\n")
    verify_once(path)
    assert len(reads) == 2
    flip(path)
    for _ in range(2):
        with pytest.raises(MissingArtifact, match=r"shard 1 of .*its checksum"):
            verify_once(path)
    assert len(reads) == 4
    save(path, tokens, 2500)
    verify_once(path)
    shutil.copytree(path, tmp_path / "copy")
    verify_once(tmp_path / "copy")
    assert len(reads) == 6


def test_damage_that_keeps_the_times_is_found_by_a_full_check_and_then_remembered(tmp_path, tokens, reads):
    path = tmp_path / "codes"
    save(path, tokens, 2500)
    verify_once(path)
    times = (path / "codes.npy").stat()
    flip(path)
    os.utime(path / "codes.npy", ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(MissingArtifact, match="its checksum"):
        verify_codes(path)
    with pytest.raises(MissingArtifact, match="its checksum"):
        verify_once(path)


def test_tokens_are_read_by_image_and_view(tmp_path, tokens):
    save(tmp_path / "codes", tokens, 2500)
    codes, images = load_codes(tmp_path / "codes", "book"), np.array([7, 2499, 7])
    read = codes.read(images, np.array([1, 0, 0]))
    assert read.dtype == np.int64 and np.array_equal(read, tokens[images, [1, 0, 0]])
    assert np.array_equal(codes.read(images, 1), tokens[images, 1])
    assert codes.read(images[:0], 1).shape == (0, 9)


def overwrite(path):
    """One token beyond the codebook, in the file that is open elsewhere."""
    altered = np.load(path / "codes.npy", mmap_mode="r+")
    altered[1500, 1, 3] = 301
    altered.flush()


def shorten(path):
    os.truncate(path / "codes.npy", 40_000)


@pytest.mark.parametrize(
    ("damage", "words", "found"),
    [
        (
            overwrite,
            r"image 1500, view 1 of .*codes.npy holds the token 301, outside the codebook of 300, while",
            "shard 1",
        ),
        (shorten, r"codes.npy was shortened from 90128 to 40000 bytes while", "90128 bytes in .*found 40000"),
    ],
)
@pytest.mark.parametrize("views", [1, np.array([0, 1])])
def test_damage_after_the_codes_were_opened_is_named_and_found_by_the_next_start(
    tmp_path, tokens, damage, words, found, views
):
    path = tmp_path / "codes"
    save(path, tokens, 2500)
    codes, times = load_codes(path, "book"), (path / "codes.npy").stat()
    verify_once(path)
    damage(path)
    os.utime(path / "codes.npy", ns=(times.st_atime_ns, times.st_mtime_ns))  # the disk, not a program
    with pytest.raises(InputError, match=f"{words} it was read; the same command "):
        codes.read(np.array([3, 1500]), views)
    with pytest.raises(MissingArtifact, match=found):
        load_codes(path, "book")
        verify_once(path)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"codes": [1, 2, 3], "meta_sha256": "x"}'])
def test_a_damaged_mark_is_no_mark(tmp_path, tokens, reads, content):
    save(tmp_path / "codes", tokens, 2500)
    (tmp_path / ".codes.verified.json").write_text(content)
    verify_once(tmp_path / "codes")
    verify_once(tmp_path / "codes")
    assert len(reads) == 1


def test_codes_on_a_read_only_disk_are_verified_each_time(tmp_path, tokens, reads, monkeypatch):
    def refuse(*_):
        raise InputError("the file system is read-only")

    save(tmp_path / "codes", tokens, 2500)
    monkeypatch.setattr(marks, "write_json", refuse)
    verify_once(tmp_path / "codes")
    verify_once(tmp_path / "codes")
    assert len(reads) == 2


def test_a_token_outside_of_the_codebook_is_found_although_its_checksum_fits(tmp_path, tokens):
    save(tmp_path / "codes", tokens, 2500)
    altered = np.load(tmp_path / "codes" / "codes.npy", mmap_mode="r+")
    altered[7, 1, 2] = 300
    altered.flush()
    meta = json.loads((tmp_path / "codes" / "meta.json").read_text())
    meta["shards"][0]["sha256"] = hashlib.sha256(altered[:1024].tobytes()).hexdigest()
    (tmp_path / "codes" / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(MissingArtifact, match=r"images 0 to 1023\) holds the token 300, outside the codebook of 300"):
        verify_codes(tmp_path / "codes")


@pytest.mark.parametrize(("text", "words"), [(None, "no file at"), ("a\nb\n", "2 names, expected one for each of the")])
def test_names_of_images_that_are_missing_are_said(tmp_path, tokens, text, words):
    save(tmp_path / "codes", tokens, 2500, keys=["k"] * 2500)
    assert load_keys(tmp_path / "codes") == ["k"] * 2500
    (tmp_path / "codes" / "keys.txt").unlink()
    if text:
        (tmp_path / "codes" / "keys.txt").write_text(text)
    with pytest.raises(MissingArtifact, match=words):
        load_keys(tmp_path / "codes")
