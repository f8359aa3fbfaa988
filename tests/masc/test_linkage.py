"""Which engine makes the tree, and what is refused."""

import numpy as np
import pytest
from linkage_oracle import blobs, grid, same_partition
from sklearn.cluster import AgglomerativeClustering
from sklearn.neighbors import kneighbors_graph

from masc import linkage
from masc.coherence import agreement
from masc.linkage import average_linkage
from masc.runtime.errors import InputError
from masc.tree import Partition, Tree


def test_both_engines_give_one_tree_down_to_any_cut():
    vectors = blobs(300)
    dense, sparse = (average_linkage(vectors, engine) for engine in ("dense", "sparse"))
    np.testing.assert_allclose(dense.merges[:, 2:], sparse.merges[:, 2:], rtol=1e-12)
    assert (dense.engine, sparse.engine, sparse.tied_merges) == ("dense", "sparse", 0)
    for engine in ("dense", "sparse"):
        early = average_linkage(vectors, engine, coarsest=100)
        assert len(early.merges) == 200
        assert same_partition(Tree(early.merges, 300).cut(100).cluster_of, Tree(dense.merges).cut(100).cluster_of)


def test_auto_is_dense_for_few_tokens_sparse_for_many_and_dense_again_for_ties(monkeypatch):
    assert average_linkage(blobs(200)).engine == "dense"
    monkeypatch.setattr(linkage, "SMALL", 100)
    found = average_linkage(blobs(200))
    assert found.engine == "sparse" and "N is above 100" in found.why and "kd-tree" in found.why
    tied = average_linkage(grid(200))
    assert tied.engine == "dense" and tied.tied_merges > 0 and "equally near" in tied.why
    assert np.array_equal(tied.merges, average_linkage(grid(200), "dense").merges)


def test_ties_too_many_for_a_dense_matrix_are_told(monkeypatch, caplog):
    monkeypatch.setattr(linkage, "SMALL", 100)
    monkeypatch.setattr(linkage, "DENSE_FOR_TIES", 150)
    found = average_linkage(grid(200))
    assert found.engine == "sparse" and found.tied_merges > 0
    assert "one of several trees that Algorithm 1 allows" in caplog.text


def test_merging_nearest_neighbours_only_gives_another_tree():
    # What scikit-learn's connectivity does, fast: not an approximation of Algorithm 1 worth having.
    vectors = blobs(1000)
    near = kneighbors_graph(vectors, 32, include_self=False)
    restricted = AgglomerativeClustering(250, linkage="average", connectivity=near).fit_predict(vectors)
    ours = Tree(average_linkage(vectors).merges).cut(250)
    assert agreement(ours, Partition(restricted))["ari"] < 0.9


def test_bad_input_is_refused_with_what_was_found(monkeypatch):
    vectors = blobs(50)
    broken = vectors.copy()
    broken[3, 1] = np.nan
    for wrong, words in (
        ({"vectors": broken}, "finite vectors"),
        ({"vectors": vectors[:1]}, r"N >= 2, found float32 \(1, 8\)"),
        ({"vectors": vectors[:, 0]}, r"found float32 \(50,\)"),
        ({"vectors": vectors, "engine": "fast"}, "auto, dense, sparse, not 'fast'"),
        ({"vectors": vectors, "coarsest": 0}, "between 1 and the 50 tokens, found 0"),
        ({"vectors": vectors, "coarsest": 51}, "between 1 and the 50 tokens, found 51"),
    ):
        with pytest.raises(InputError, match=words):
            average_linkage(**wrong)
    monkeypatch.setattr(linkage, "MAX_DENSE", 40)
    with pytest.raises(InputError, match=r"dense engine stops at 40 tokens, found 50.*tree.engine=sparse"):
        average_linkage(vectors, "dense")
