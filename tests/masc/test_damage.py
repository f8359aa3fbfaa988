"""Artefacts and runs, damaged: see tests/damage.py."""

import numpy as np
import pytest
from damage import Kind, check, damaged, npz_with_headers, plain, survives
from tiny_artifacts import NUM_TOKENS, make_artifacts

from masc.build import TreeConfig
from masc.layout import Layout
from masc.runtime.artifacts import Codebook
from masc.runtime.captions import load_captions
from masc.runtime.codes import load_codes
from masc.runtime.run import begin_run, check_run, read_metrics, read_provenance
from masc.runtime.verify import verify_codes
from masc.tree import load_tree

pytestmark = [pytest.mark.usefixtures("little_memory"), pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    return Layout(make_artifacts(tmp_path_factory.mktemp("artifacts")), "emoji32")


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
    config = {"steps": 10, "loss": {"weight": 0.1}, "levels": [1, 2], "name": "é"}
    begin_run(tmp_path, config, {"codes": "a" * 64}, (), "masc")
    (tmp_path / "metrics.jsonl").write_text("".join(f'{{"step": {step}, "a": 0.5}}\n' for step in range(9)))

    def read():
        check_run(tmp_path, config, {"codes": "a" * 64}, ())
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
