"""Damaged, hostile and merely strange files: one clear error each, before anything large is allocated."""

import os
import shutil
import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from damage import MERGES

from masc.runtime.captions import read_lines
from masc.runtime.errors import MissingArtifact
from masc.runtime.reading import (
    Damaged,
    advising,
    damaged_is_missing,
    open_array,
    read_bytes,
    read_json,
    read_npz,
    read_text,
    read_yaml,
)


@dataclass
class Header:
    name: str
    sizes: list[int]


def refused(read, *arguments, words, **options):
    with pytest.raises(Damaged, match=words) as error:
        read(*arguments, **options)
    assert "\n" not in str(error.value)


def test_what_is_no_readable_file_is_refused(tmp_path):
    refused(read_bytes, tmp_path / "a", words="no file at .*/a")
    refused(read_bytes, tmp_path, words="expected a file at .*, found a folder")
    refused(read_bytes, tmp_path / "a\0b", words="cannot read .*null byte")
    os.mkfifo(tmp_path / "pipe")
    refused(read_bytes, tmp_path / "pipe", words="found a device or a pipe")
    (tmp_path / "large").write_bytes(b"12345")
    refused(read_bytes, tmp_path / "large", at_most=4, words="at most 4 bytes in .*/large, found 5")
    refused(read_text, tmp_path / "large" / "inside", words="cannot read .*Not a directory")
    (tmp_path / "bytes").write_bytes(b"\xff")
    refused(read_text, tmp_path / "bytes", words="expected text in UTF-8 in .*/bytes")


def test_json_may_have_a_byte_order_mark_and_utf16_is_called_so(tmp_path):
    (tmp_path / "a").write_text('{"name": "a", "sizes": []}', "utf-8-sig")
    assert read_json(tmp_path / "a", Header) == Header("a", [])
    for name in ("utf-16-le", "utf-16-be"):
        (tmp_path / "a").write_text('\ufeff{"name": "a", "sizes": []}', name)
        shutil.copy(tmp_path / "a", tmp_path / "a.txt")
        for read, file in ((read_json, "a"), (read_text, "a"), (read_yaml, "a"), (read_lines, "a.txt")):
            refused(read, tmp_path / file, words=f"expected text in UTF-8 in .*/{file}, found UTF-16; save it as UTF-8")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "EOF while parsing"),
        ("[1]", "should be an object"),
        ('{"name": "a"}', "Field required at sizes"),
        ('{"name": 1, "sizes": []}', "valid string at name, found 1"),
        ('{"name": "a", "sizes": [1, "2"]}', r"valid integer at sizes.1, found '2'"),
        ('{"name": "a", "sizes": [1, true]}', r"valid integer at sizes.1, found True"),
        ("[" * 100_000, "recursion limit"),
        ('{"name": "\ud800"}'.encode("utf-8", "surrogatepass"), "does not hold what it should"),
    ],
)
def test_json_that_does_not_fit_is_refused_with_the_place(tmp_path, text, words):
    file = tmp_path / "a.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(read_json, file, Header, words=words)


def test_sound_json_is_returned_in_its_types(tmp_path):
    (tmp_path / "a.json").write_text('{"name": "é", "sizes": [1], "later": null}')
    assert read_json(tmp_path / "a.json", Header) == Header("é", [1])
    assert read_json(tmp_path / "a.json") == {"name": "é", "sizes": [1], "later": None}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "keys and values in .*, found nothing"),
        ("- 1", "found a list"),
        ("a: [", "expected YAML of plain values"),
        ("a: !!python/object/apply:os.system [x]", "constructor for the tag"),
        ("a: &b [*b]", "at most 100000 values"),
        (
            "a: &a [1,1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\n"
            "d: &d [*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e]",
            "at most 100000 values",
        ),
        ("a: 2020-01-01", "found a date"),
        ("1: 2", "expected text as keys"),
        ("[" * 5000, "expected YAML of plain values"),
        ("a: \x1b[2J", "expected YAML of plain values"),
        (MERGES.decode(), "a merge key, <<"),
        ("- 1\n" * 20_000, "at most 65536 bytes"),
    ],
)
def test_yaml_of_anything_but_plain_values_is_refused(tmp_path, text, words):
    (tmp_path / "a.yaml").write_text(text)
    refused(read_yaml, tmp_path / "a.yaml", words=words)


def test_yaml_is_only_text(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")
    (tmp_path / "a.yaml").write_text("a: ${oc.env:SECRET}\nb: [1, 2.5, null, true]")
    assert read_yaml(tmp_path / "a.yaml") == {"a": "${oc.env:SECRET}", "b": [1, 2.5, None, True]}


@pytest.mark.parametrize("mapped", [False, True])
def test_arrays_come_back_as_numpy_reads_them(tmp_path, mapped):
    for array in (
        np.arange(6, dtype=">u2").reshape(2, 3),
        np.asfortranarray(np.ones((2, 3), "u1")),
        np.empty((0, 3), int),
    ):
        np.save(tmp_path / "a.npy", array)
        found = open_array(tmp_path / "a.npy", "iu", (None, 3), mapped)
        assert np.array_equal(found, array) and found.dtype == array.dtype
        assert isinstance(found, np.memmap) == (mapped and array.size > 0)


def claim(path, dtype, shape, data=b"12"):
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
        file.write(data)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.write_bytes(b""), "an array in NumPy's format"),
        (lambda path: path.write_bytes(b"\x93NUMPY\x01\x00\x10\x00" + b"(" * 16), "an array in NumPy's format"),
        (lambda path: claim(path, "<u2", (10**15,)), "expected 2000000000000128 bytes in .*found 130"),
        (lambda path: claim(path, "<u2", (10**23,)), "truncated, or its header is wrong"),
        (lambda path: claim(path, "<u2", (-1,)), r"the shape \(-1,\)"),
        (lambda path: claim(path, "<u2", (2,), b"123456"), "expected 132 bytes"),
        (lambda path: np.save(path, np.ones(2)), r"expected whole numbers of shape \(any\).*float64"),
        (lambda path: np.save(path, np.ones((1, 2), int)), r"of shape \(any\) in .*found int64 \(1, 2\)"),
        (lambda path: np.save(path, np.array([{}], object), allow_pickle=True), "Python objects"),
    ],
)
def test_headers_that_lie_and_other_arrays_are_refused(tmp_path, spoil, words):
    spoil(tmp_path / "a.npy")
    refused(open_array, tmp_path / "a.npy", "iu", (None,), words=words)


def test_archives_come_back_as_numpy_reads_them(tmp_path):
    arrays: dict[str, Any] = {
        "a": np.arange(5.0),
        "b": np.asfortranarray(np.ones((2, 3))),
        "c": np.array("é"),
        "d": np.empty(0),
    }
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **arrays)
        found = read_npz(tmp_path / "a.npz")
        assert found.keys() == arrays.keys()
        assert all(np.array_equal(found[name], arrays[name]) and found[name].flags.writeable for name in arrays)
        assert read_npz(tmp_path / "a.npz", ["b", "z"]).keys() == {"b"}


def test_an_archive_that_would_inflate_to_gigabytes_is_refused_at_once(tmp_path):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, {"descr": "|u1", "fortran_order": False, "shape": (30 * 2**20,)})
        for _ in range(30):
            member.write(bytes(2**20))
    assert path.stat().st_size < 40_000
    refused(read_npz, path, at_most=2**20, words=r"claim 31457408 bytes.*or 1048576 if they are compressed")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: np.save(path.open("wb"), np.ones(3)), "npz format"),
        (lambda path: path.write_bytes(b"PK\x03\x04"), "npz format"),
        (lambda path: members(path, ("a.npy", 10**15)), "its header claims uint8"),
        (lambda path: members(path, ("a.npy", 1)), "its header claims uint8"),
        (lambda path: members(path, ("a.npy", 2), ("a", 2)), "two arrays with the name 'a'"),
    ],
)
def test_archives_that_lie_are_refused(tmp_path, spoil, words):
    spoil(tmp_path / "a.npz")
    refused(read_npz, tmp_path / "a.npz", words=words)


def members(path, *claims):
    with zipfile.ZipFile(path, "w") as archive:
        for name, length in claims:
            claim(path.with_name("member"), "|u1", (length,))
            archive.write(path.with_name("member"), name)


def test_the_caller_says_what_to_do(tmp_path):
    with pytest.raises(Damaged, match=r"no file at .*/a; train again"), advising("train again"):
        read_bytes(tmp_path / "a")
    with pytest.raises(MissingArtifact, match="no file at") as caught, damaged_is_missing("codes", tmp_path, data="x"):
        read_bytes(tmp_path / "a")
    assert (caught.value.kind, caught.value.facts, caught.value.remove) == ("codes", {"data": "x"}, False)
