"""The sparse engine gives the tree of the dense one, whatever the search, the threads and the order of rows."""

import subprocess
import sys

import numpy as np
import pytest
from golden import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st
from linkage_oracle import (
    CODEBOOKS,
    assert_follows_algorithm_1,
    blobs,
    grid,
    naive_average_linkage,
    same_partition,
    sphere,
    with_duplicates,
)
from scipy.cluster.hierarchy import fcluster, linkage

from masc.sparse import engine, sparse_linkage
from masc.sparse.clusters import Merges
from masc.sparse.engine import scipy_layout
from masc.tree import Tree

SEARCHES = ("kdtree", "lists")


def distinct(vectors):
    return len(np.unique(vectors, axis=0))


def assert_same_trees(merges, vectors, ks):
    reference = linkage(vectors.astype(np.float64), "average")
    np.testing.assert_allclose(merges[:, 2], reference[: len(merges), 2], rtol=1e-10, atol=1e-9)
    tree = Tree(merges, len(vectors))
    for k in ks:
        assert same_partition(tree.cut(k).cluster_of, fcluster(reference, k, "maxclust") - 1), k


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("kind", CODEBOOKS)
@pytest.mark.parametrize("dims", [3, 8, 48])
def test_the_whole_tree_equals_scipys_at_every_k(search, kind, dims, monkeypatch):
    monkeypatch.setattr(engine, "PATIENCE", np.inf)  # to the root without the dense finish
    vectors = CODEBOOKS[kind](240, dims)
    for finish_at in (1, 60):
        found = sparse_linkage(vectors, search=search, finish_at=finish_at)
        assert len(found.merges) == 239 and (found.finished_from > 0) == (finish_at == 60)
        assert found.tied_merges == 0
        assert_same_trees(found.merges, vectors, range(1, distinct(vectors) + 1))


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("kind", CODEBOOKS)
def test_a_cut_is_certified_without_the_rest_of_the_tree(search, kind, monkeypatch):
    monkeypatch.setattr(engine, "PATIENCE", np.inf)
    vectors = CODEBOOKS[kind](600, 8)
    for k in (distinct(vectors), 300, 150, 40):
        found = sparse_linkage(vectors, coarsest=k, search=search, finish_at=0)
        assert len(found.merges) == 600 - k and not found.finished_from
        assert_same_trees(found.merges, vectors, [k, (k + distinct(vectors)) // 2])


@pytest.mark.parametrize("search", SEARCHES)
def test_the_tree_equals_scipys_at_2048_tokens(search):
    vectors = blobs(2048, 8, seed=3)
    found = sparse_linkage(vectors, search=search)
    assert found.finished_from
    assert_same_trees(found.merges, vectors, [1024, 512, 256, 100, 20, 2])


@pytest.mark.parametrize("name", ["n64_d8", "n256_d256", "n300_d8_dup"])
@pytest.mark.parametrize("search", SEARCHES)
def test_cuts_equal_the_golden_partitions(name, search):
    golden = np.load(GOLDEN / "masc" / f"{name}.npz")
    tree = Tree(sparse_linkage(golden["codebook"], search=search, finish_at=20).merges)
    np.testing.assert_allclose(tree.merges[:, 2], golden["merge_heights"], atol=1e-6)
    for key in golden.files:
        if key.startswith("labels_k"):
            k = int(key.removeprefix("labels_k"))
            assert np.array_equal(tree.cut(k).cluster_of, golden[key]), k


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    n=st.integers(2, 40), dims=st.integers(1, 6), seed=st.integers(0, 10**6), kind=st.sampled_from(sorted(CODEBOOKS))
)
def test_any_small_codebook_gives_algorithm_1(n, dims, seed, kind):
    vectors = CODEBOOKS[kind](max(n, 20 if kind == "with_duplicates" else n), dims, seed)
    found = sparse_linkage(vectors, finish_at=1)
    assert_follows_algorithm_1(vectors, found.merges)
    assert (np.diff(found.merges[:, 2]) >= 0).all()
    k = max(1, distinct(vectors) // 2)
    if not found.tied_merges and n <= 25 and kind != "with_duplicates":
        assert same_partition(Tree(found.merges).cut(k).cluster_of, naive_average_linkage(vectors, k))


@pytest.mark.parametrize("search", SEARCHES)
def test_ties_are_counted_and_give_one_of_the_trees_that_algorithm_1_allows(search):
    signs = (((np.arange(64)[:, None] >> np.arange(6)) & 1) * 2 - 1).astype(np.float32)  # as LFQ's codebook
    for vectors in (grid(120), signs):
        for finish_at in (1, 30):
            found = sparse_linkage(vectors, search=search, finish_at=finish_at)
            assert found.tied_merges > 0
            assert_follows_algorithm_1(vectors, found.merges)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), kind=st.sampled_from(["sphere", "blobs", "with_duplicates", "grid"]))
def test_the_order_of_rows_changes_no_bit(seed, kind):
    vectors = grid(90, seed=seed) if kind == "grid" else CODEBOOKS[kind](90, 4, seed)
    order = np.random.default_rng(seed).permutation(90)
    straight, shuffled = (sparse_linkage(rows, finish_at=10).merges for rows in (vectors, vectors[order]))
    assert np.array_equal(straight[:, 2:], shuffled[:, 2:])
    for k in (distinct(vectors), distinct(vectors) // 2, 5, 2):
        assert same_partition(Tree(straight).cut(k).cluster_of[order], Tree(shuffled).cut(k).cluster_of)


def test_the_number_of_threads_changes_no_bit(root):
    code = (
        "import hashlib, sys; sys.path.insert(0, 'tests')\n"
        "from linkage_oracle import blobs, grid, with_duplicates\n"
        "from masc.sparse import sparse_linkage\n"
        "cases = [('kdtree', blobs(3000)), ('lists', blobs(3000, 40))]\n"
        "cases += [('kdtree', grid(1000)), ('kdtree', with_duplicates(1000)), ('lists', with_duplicates(1000, 40))]\n"
        "for search, vectors in cases:\n"
        "    made = [sparse_linkage(vectors, search=search, threads=n).merges.tobytes() for n in (1, 2, 4)]\n"
        "    assert made[0] == made[1] == made[2], search\n"
        "import numba; assert numba.config.NUMBA_NUM_THREADS == 4\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        env={"PATH": "/usr/bin:/bin", "NUMBA_NUM_THREADS": "4"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_duplicates_merge_first_at_height_0_whatever_their_sign_of_zero():
    vectors = np.array([[0.0, 1], [-0.0, 1], [2, 2], [0.0, 1], [2, 2]], np.float32)
    merges = sparse_linkage(vectors).merges
    assert merges[:3, 2].tolist() == [0, 0, 0] and merges[3, 2] == pytest.approx(5**0.5)
    assert Tree(merges).cut(2).cluster_of.tolist() == [0, 0, 1, 0, 1]
    same = sparse_linkage(np.ones((4, 3), np.float32)).merges
    assert same[:, 2].tolist() == [0, 0, 0] and same[-1, 3] == 4


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize(("scale", "offset"), [(1e-15, 0), (1e15, 0), (1, 1e4)])
def test_scale_and_offset_change_nothing(search, scale, offset):
    vectors = (blobs(200, 40) * np.float32(scale) + np.float32(offset)).astype(np.float32)
    found = sparse_linkage(vectors, search=search, finish_at=20)
    reference = linkage(vectors.astype(np.float64), "average")
    np.testing.assert_allclose(found.merges[:, 2], reference[:, 2], rtol=1e-9)
    assert same_partition(Tree(found.merges).cut(100).cluster_of, fcluster(reference, 100, "maxclust") - 1)


def test_where_bounds_exclude_nothing_the_dense_finish_takes_over():
    noise = np.random.default_rng(0).standard_normal((700, 128)).astype(np.float32)
    found = sparse_linkage(noise, coarsest=20, finish_at=0)
    assert found.finished_from > 20 and len(found.merges) == 680
    assert_same_trees(found.merges, noise, [20, 200])


def test_the_finish_starts_from_clusters_of_any_size():
    vectors = with_duplicates(500, 8)
    expected = sparse_linkage(vectors, finish_at=1).merges
    for finish_at in (2, 50, 250, 500):
        found = sparse_linkage(vectors, finish_at=finish_at)
        np.testing.assert_allclose(found.merges[:, 2], expected[:, 2], rtol=1e-12, atol=1e-12)
        assert same_partition(Tree(found.merges).cut(30).cluster_of, Tree(expected).cut(30).cluster_of)


def test_ties_that_rounding_parts_do_not_stop_a_cut(monkeypatch):
    simplices = np.zeros((3100, 32), np.float32)  # all pairs of a block are equally far apart
    for block in range(100):
        simplices[31 * block : 31 * block + 31, :31] = np.eye(31)
        simplices[31 * block : 31 * block + 31, 31] = 100 * block
    assert [len(sparse_linkage(simplices, k).merges) for k in (618, 706)] == [3100 - 618, 3100 - 706]
    monkeypatch.setattr(engine, "PATIENCE", np.inf)
    for count, k, search in ((40, 16, "kdtree"), (70, 47, "lists")):
        merges = sparse_linkage(np.eye(count, dtype=np.float32), k, search, finish_at=1).merges
        np.testing.assert_allclose(merges[:, 2], 2**0.5, rtol=1e-12)
        assert_follows_algorithm_1(np.eye(count), merges)


def test_a_round_that_finds_no_pair_searches_anew_then_finishes_densely_or_gives_up(monkeypatch):
    monkeypatch.setattr(engine, "_mutual", lambda *arguments: np.empty(0, np.int64))
    found = sparse_linkage(sphere(50, 3), finish_at=1)
    assert found.finished_from == 50 and found.rounds == 2
    assert_follows_algorithm_1(sphere(50, 3), found.merges)
    monkeypatch.setattr(engine, "LARGEST_FINISH", 40)
    with pytest.raises(RuntimeError, match="no two of 50 clusters"):
        sparse_linkage(sphere(50, 3), finish_at=1)


def test_the_layout_is_sorted_by_height_and_lifts_what_rounding_lowered():
    nodes = np.array([[3, 2], [0, 1], [5, 4]])
    merges = scipy_layout(Merges(nodes, np.array([1.0, 0.5, 1.0 - 1e-16]), np.array([2.0, 2.0, 4.0])), 4)
    assert merges.tolist() == [[0, 1, 0.5, 2], [2, 3, 1.0, 2], [4, 5, 1.0, 4]]
    Tree(merges)
