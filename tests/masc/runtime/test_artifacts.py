"""Artefacts: whole or absent, and never of something else."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from masc.runtime.artifacts import Codebook, hash_arrays, load_npz, reuse_npz, save_npz
from masc.runtime.codes import load_codes, save_codes
from masc.runtime.errors import InputError, MissingArtifact, naming

VECTORS = np.eye(4, dtype=np.float32)


def test_an_artefact_comes_back_as_it_was(tmp_path):
    saved = Codebook.save(tmp_path / "a" / "codebook.npz", VECTORS, {"x": 1}, {"tokenizer": "abc"})
    loaded = Codebook.load(tmp_path / "a" / "codebook.npz")
    assert np.array_equal(loaded.vectors, VECTORS)
    assert loaded.meta == saved.meta
    assert loaded.meta.parents == {"tokenizer": "abc"}


def test_the_hash_tells_name_type_shape_and_value_apart():
    a = np.zeros(4, np.float32)
    different = [{"a": a}, {"b": a}, {"a": a.astype(np.int32)}, {"a": a.reshape(2, 2)}, {"a": a + 1}]
    assert len({hash_arrays(arrays) for arrays in different}) == len(different)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "no codebook at .*/codebook.npz$"),
        (lambda path: path.write_bytes(path.read_bytes()[:200]), "expected arrays in NumPy's npz format"),
        (lambda path: path.write_bytes(b"hello"), "damaged or another kind of file"),
        (lambda path: np.savez(path, vectors=VECTORS), "not an artefact of this project"),
        (lambda path: save_npz(path, "tree", 1, {"vectors": VECTORS}, {}, {}), "expected a masc-codebook.*masc-tree"),
        (lambda path: save_npz(path, "codebook", 7, {"vectors": VECTORS}, {}, {}), "version 1.*version 7"),
    ],
)
def test_what_is_not_the_artefact_is_refused(tmp_path, spoil, message):
    path = tmp_path / "codebook.npz"
    Codebook.save(path, VECTORS, {}, {})
    spoil(path)
    with pytest.raises(MissingArtifact, match=message):
        Codebook.load(path)


def test_altered_contents_are_noticed(tmp_path):
    path = tmp_path / "codebook.npz"
    Codebook.save(path, VECTORS, {}, {})
    with np.load(path) as archive:
        header = archive["header"]
    np.savez(path, header=header, vectors=VECTORS + 1)
    with pytest.raises(InputError, match="do not match its own SHA-256"):
        Codebook.load(path)


def test_nothing_is_unpickled(tmp_path):
    np.savez(tmp_path / "codebook.npz", header=np.array([{"a": 1}], dtype=object))
    with pytest.raises(InputError, match="Python objects, which are never read"):
        load_npz(tmp_path / "codebook.npz", "codebook", 1, Codebook.SCHEMA)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.array([[0.0, np.nan], [1, 1]]), "row 0 and 0 others are not finite"),
        (np.ones((1, 4)), "at least 2 rows"),
        (np.ones(4), r"float array \(N, d\)"),
        (np.ones((4, 2), int), "found int64"),
    ],
)
def test_a_bad_codebook_is_refused_and_not_written(tmp_path, vectors, message):
    with pytest.raises(InputError, match=message):
        Codebook.save(tmp_path / "codebook.npz", vectors, {}, {})
    assert not list(tmp_path.iterdir())


def test_reuse_needs_the_same_config_and_parents(tmp_path):
    path = tmp_path / "a.npz"
    layout = {"a": ("f", (None, None))}
    save_npz(path, "thing", 1, {"a": VECTORS}, {"k": 1}, {"p": "x"})
    assert reuse_npz(path, "thing", 1, {"k": 1}, {"p": "x"}, layout) is not None
    assert reuse_npz(path, "thing", 1, {"k": 2}, {"p": "x"}, layout) is None
    assert reuse_npz(path, "thing", 1, {"k": 1}, {"p": "y"}, layout) is None
    path.write_bytes(b"broken")
    assert reuse_npz(path, "thing", 1, {"k": 1}, {"p": "x"}, layout) is None


def test_a_missing_artifact_reaches_other_processes_whole():
    inner = MissingArtifact("codes", Path("c"), data="d")
    error = MissingArtifact("tree", Path("t"), "gone", remove=True, overrides={"a": 1}, first=[inner], tree="masc")
    found = pickle.loads(pickle.dumps(error))
    assert vars(found) | {"first": None} == vars(error) | {"first": None} and str(found) == "gone"
    assert [vars(one) for one in found.first] == [vars(inner)]


def test_codes_come_back_and_are_checked(tmp_path):
    tokens = np.arange(24).reshape(3, 2, 4)
    save_codes(
        tmp_path / "c", tokens, np.arange(3), np.arange(3), ["a", "b", "c"], ["x", "y", "z"], 32, "hash", {"k": 1}
    )
    codes = load_codes(tmp_path / "c", "hash")
    assert codes.tokens.dtype == np.uint16
    assert np.array_equal(codes.tokens, tokens)
    assert json.loads((tmp_path / "c" / "captions.json").read_text()) == ["x", "y", "z"]
    assert (codes.num_images, codes.num_positions) == (3, 4)
    with pytest.raises(InputError, match="codebook hash, but the codebook in use is other"):
        load_codes(tmp_path / "c", "other")
    with pytest.raises(MissingArtifact, match=r"no codes at .*/d$") as caught, naming(data="x", tokenizer="y"):
        load_codes(tmp_path / "d", "hash")
    assert (caught.value.kind, caught.value.path) == ("codes", tmp_path / "d")
    assert caught.value.facts == {"data": "x", "tokenizer": "y"}
    with pytest.raises(InputError, match="token 23 is outside the codebook of 23"):
        save_codes(tmp_path / "e", tokens, np.arange(3), np.arange(3), [], [], 23, "hash", {})
    np.save(tmp_path / "c" / "labels.npy", np.array([0, 1, 1]))
    with pytest.raises(InputError, match=r"labels or groups in .* were altered"):
        load_codes(tmp_path / "c", "hash")
    np.save(tmp_path / "c" / "codes.npy", tokens[:1].astype(np.uint16))
    with pytest.raises(InputError, match=r"of shape \(3, 2, 4\) in .*codes.npy, found uint16 \(1, 2, 4\)"):
        load_codes(tmp_path / "c", "hash")


def test_large_vocabularies_take_four_bytes(tmp_path):
    save_codes(tmp_path / "c", np.array([[[70000]]]), np.zeros(1), np.zeros(1), ["a"], [], 262144, "h", {})
    codes = load_codes(tmp_path / "c", "h")
    assert codes.tokens.dtype == np.uint32 and codes.tokens[0, 0, 0] == 70000


def test_the_facts_nearest_to_an_error_count():
    outer, inner = naming({"a": 1, "b": 1}, tokenizer="outer", data="outer"), naming({"b": 2}, data="inner")
    with pytest.raises(MissingArtifact) as caught, outer, inner:
        raise MissingArtifact("codes", Path("x"), overrides={"c": 3})
    assert caught.value.facts == {"tokenizer": "outer", "data": "inner"}
    assert caught.value.overrides == {"a": 1, "b": 2, "c": 3}


def test_several_missing_artefacts_are_one_error_in_their_order():
    missing = [MissingArtifact(kind, Path(kind), remove=kind == "c", number=kind) for kind in "abc"]
    error = MissingArtifact.all_of("all are missing", missing)
    assert str(error) == "all are missing" and list(error.first) == missing[:2]
    assert (error.kind, error.path, error.remove, error.facts) == ("c", Path("c"), True, {"number": "c"})
