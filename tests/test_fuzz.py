"""Whatever a file holds, reading it returns a sound value or raises one InputError in one line: no other error, no
endless wait, no memory beyond what the file's size allows.

Every kind of file that the project reads is damaged a few hundred to a few thousand times, with fixed seeds. What is
returned from a file whose bytes were damaged is, where a hash covers it, what was written."""

import io
import json
import logging
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import damaged, retyped, retyped_json
from tiny_artifacts import NUM_TOKENS, make_artifacts

from masc.build import TreeConfig
from masc.layout import Layout
from masc.runtime.artifacts import Codebook
from masc.runtime.codes import load_captions, load_codes, verify_codes
from masc.runtime.errors import InputError
from masc.runtime.run import open_run, read_metrics, read_provenance
from masc.tree import load_tree

MEMORY = 2 * 2**30  # bytes more than the tests use: a size that a file claims must not be allocated


@pytest.fixture(autouse=True, scope="module")
def little_memory():
    """A limit on the memory of this process, so that a claim that is believed is a MemoryError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@dataclass(frozen=True)
class Kind:
    """A kind of file: its place, what reads it, and what must come back unless the read fails."""

    path: Path
    read: Callable[[], Any]
    count: int = 1000  # damaged copies
    is_json: bool = False
    is_hashed: bool = False  # the read returns the contents, which a hash protects


def survives(kind: Kind, copies: Iterator[bytes]) -> tuple[int, int]:
    """Read every copy; return how many were read and how many refused."""
    whole, read, refused = kind.path.read_bytes(), 0, 0
    sound = repr(kind.read()) if kind.is_hashed else None
    try:
        for number, copy in enumerate(copies):
            kind.path.unlink(missing_ok=True)
            kind.path.write_bytes(copy)
            try:
                found = kind.read()
            except InputError as error:
                assert 0 < len(str(error)) < 4000, (number, copy[:200])
                refused += 1
            except Exception as error:
                pytest.fail(f"copy {number} of {kind.path.name} raises {type(error).__name__}: {error}\n{copy[:300]!r}")
            else:
                assert sound is None or repr(found) == sound, (number, copy[:200])
                read += 1
    finally:
        kind.path.write_bytes(whole)
    return read, refused


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    return Layout(make_artifacts(tmp_path_factory.mktemp("artifacts")), "emoji32")


def plain(value: Any) -> Any:
    """Arrays as lists, so that two reads compare."""
    return value.tolist() if isinstance(value, np.ndarray) else value


def check(kind: Kind) -> None:
    """Damage the bytes of a kind of file, and its values if it is JSON; the sound file is read before and after."""
    kind.read()
    _, refused = survives(kind, damaged(kind.path.read_bytes(), np.random.default_rng(0), kind.count))
    assert refused, "no damage was noticed: is the file read?"
    if kind.is_json:
        structure = Kind(kind.path, kind.read)
        survives(structure, retyped_json(kind.path.read_bytes()))
    kind.read()


def npz_with_headers(path: Path) -> Iterator[bytes]:
    """Copies of an artefact whose header is another: the arrays and their hash stay sound."""
    with np.load(path) as archive:
        arrays = dict(archive)
    for header in retyped(json.loads(str(arrays.pop("header")))):
        file = io.BytesIO()
        np.savez(file, header=np.array(json.dumps(header)), **arrays)
        yield file.getvalue()


def test_codebooks(layout):
    kind = Kind(layout.codebook, lambda: plain(Codebook.load(layout.codebook).vectors), is_hashed=True)
    check(kind)
    survives(kind, npz_with_headers(layout.codebook))


@pytest.mark.parametrize("method", ["linkage", "kmeans"])
def test_trees(layout, method):
    codebook = layout.load_codebook()
    tree = TreeConfig(name={"linkage": "masc"}.get(method, method), method=method)
    path = layout.tree(tree, NUM_TOKENS // 2)

    def read():
        made, _ = load_tree(path, codebook)
        return plain(made.merges if method == "linkage" else made.cluster_of)

    kind = Kind(path, read, is_hashed=True)
    check(kind)
    survives(kind, npz_with_headers(path))


@pytest.mark.parametrize("name", ["meta.json", "codes.npy", "labels.npy", "groups.npy", "used.npy", "captions.json"])
def test_codes(layout, name):
    path, sha256 = layout.codes("twemoji", "train"), layout.load_codebook().meta.sha256

    def read():
        verify_codes(path)
        codes = load_codes(path, sha256)
        return [
            plain(codes.tokens),
            plain(codes.labels),
            plain(codes.groups),
            plain(codes.is_used),
            load_captions(path),
        ]

    check(Kind(path / name, read, 500, is_json=name == "meta.json", is_hashed=name.endswith(".npy")))


@pytest.mark.parametrize("name", ["config.yaml", "provenance.json", "metrics.jsonl"])
def test_runs(tmp_path, name):
    config = {"steps": 10, "optim": {"learning_rate": 0.1}, "levels": [1, 2], "name": "é"}
    open_run(tmp_path, config, {"codes": "a" * 64}, (), "masc")
    (tmp_path / "metrics.jsonl").write_text("".join(f'{{"step": {step}, "a": 0.5}}\n' for step in range(9)))

    def read():
        open_run(tmp_path, config, {"codes": "a" * 64}, (), "masc")
        return read_provenance(tmp_path)

    kinds = {
        "config.yaml": Kind(tmp_path / name, read),
        "provenance.json": Kind(tmp_path / name, read, is_json=True),
        "metrics.jsonl": Kind(tmp_path / name, lambda: read_metrics(tmp_path / name)),
    }
    if name == "metrics.jsonl":  # the log never stops a training
        copies = damaged((tmp_path / name).read_bytes(), np.random.default_rng(0), 1000)
        assert survives(kinds[name], copies)[1] == 0
    else:
        check(kinds[name])
