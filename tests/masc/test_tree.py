"""Trees, their cuts, and the clusterings beside them."""

import itertools

import numpy as np
import pytest
from golden import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st
from linkage_oracle import naive_average_linkage, same_partition
from scipy.cluster.hierarchy import fcluster, linkage
from user_errors import tells

from masc.build import TreeConfig, build_tree, make_tree
from masc.kmeans import kmeans
from masc.linkage import average_linkage
from masc.runtime.artifacts import Codebook
from masc.runtime.errors import InputError
from masc.tree import Partition, Tree, load_partition, save_tree


def points(n, d=4, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


@pytest.mark.parametrize("name", ["n64_d8", "n256_d256", "n300_d8_dup"])
def test_cuts_equal_the_golden_partitions_at_every_stored_k(name):
    golden = np.load(GOLDEN / "masc" / f"{name}.npz")
    tree = Tree(average_linkage(golden["codebook"]).merges)
    np.testing.assert_allclose(tree.merges[:, 2], golden["merge_heights"], atol=1e-6)
    ks = [int(key.removeprefix("labels_k")) for key in golden.files if key.startswith("labels_k")]
    assert ks
    for k in ks:
        assert np.array_equal(tree.cut(k).cluster_of, golden[f"labels_k{k}"]), k


def test_the_tree_equals_scipys_and_the_naive_algorithms():
    vectors = points(40)
    tree = Tree(average_linkage(vectors).merges)
    reference = linkage(vectors.astype(np.float64), "average")
    np.testing.assert_allclose(tree.merges[:, 2:], reference[:, 2:], rtol=1e-12)
    for k in (1, 2, 7, 20, 39, 40):
        assert same_partition(tree.cut(k).cluster_of, fcluster(reference, k, "maxclust") - 1)
    assert same_partition(tree.cut(9).cluster_of, naive_average_linkage(vectors, 9))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(n=st.integers(2, 30), seed=st.integers(0, 10**6), data=st.data())
def test_cuts_are_nested_and_have_k_clusters(n, seed, data):
    tree = Tree(average_linkage(points(n, 3, seed)).merges)
    coarse, fine = sorted(data.draw(st.tuples(st.integers(1, n), st.integers(1, n))))
    a, b = tree.cut(coarse), tree.cut(fine)
    assert (a.num_clusters, b.num_clusters) == (coarse, fine)
    for cluster in range(fine):
        members = b.members[b.offsets[cluster] : b.offsets[cluster + 1]]
        assert len(members) == b.sizes[cluster]
        assert len(set(a.cluster_of[members])) == 1


@settings(max_examples=30, deadline=None, derandomize=True)
@given(n=st.integers(3, 25), seed=st.integers(0, 10**6))
def test_the_partition_does_not_depend_on_row_order(n, seed):
    vectors, order = points(n, 3, seed), np.random.default_rng(seed).permutation(n)
    straight = Tree(average_linkage(vectors).merges).cut(n // 2 or 1).cluster_of
    shuffled = Tree(average_linkage(vectors[order]).merges).cut(n // 2 or 1).cluster_of
    assert same_partition(straight[order], shuffled)


def test_labels_are_numbered_by_their_lowest_token():
    assert Partition(np.array([5, 5, 2, 0, 2, 1, 3, 4])).cluster_of.tolist() == [0, 0, 1, 2, 1, 3, 4, 5]


def test_the_random_tree_has_mascs_sizes_at_every_k_and_other_members():
    tree = Tree(average_linkage(points(64)).merges)
    random = tree.shuffled(seed=3)
    for k in (2, 10, 32, 60):
        assert np.array_equal(np.sort(tree.cut(k).sizes), np.sort(random.cut(k).sizes))
    assert not same_partition(tree.cut(10).cluster_of, random.cut(10).cluster_of)
    assert np.array_equal(tree.shuffled(3).merges, random.merges)


def test_several_cuts_come_coarsest_first_and_nested():
    tree = Tree(average_linkage(points(64)).merges)
    levels = tree.cuts([32, 4, 16, 4])
    assert [level.num_clusters for level in levels] == [4, 16, 32]
    for coarse, fine in itertools.pairwise(levels):
        parent = np.full(fine.num_clusters, -1)
        parent[fine.cluster_of] = coarse.cluster_of
        assert np.array_equal(parent[fine.cluster_of], coarse.cluster_of)


def test_a_tree_that_ends_early_gives_its_cuts_and_says_what_it_lacks():
    whole = Tree(average_linkage(points(64)).merges)
    early = Tree(whole.merges[:44], 64)
    assert (whole.coarsest, early.coarsest) == (1, 20)
    for k in (20, 33, 64):
        assert np.array_equal(early.cut(k).cluster_of, whole.cut(k).cluster_of)
    assert early.shuffled(0).coarsest == 20
    with pytest.raises(InputError, match=r"down to 20 clusters only, found k = 19.*tree.coarsest=19"):
        early.cut(19)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(n=st.integers(4, 30), dead=st.integers(0, 10), seed=st.integers(0, 10**6), early=st.booleans())
def test_dead_tokens_are_one_cluster_of_every_cut_but_the_finest(n, dead, seed, early):
    is_used = np.random.default_rng(seed).permutation(np.arange(n + dead) >= dead)
    over_used = Tree(average_linkage(points(n, 3, seed)).merges[: n - 2 if early else n - 1], n)
    tree = over_used.with_dead(is_used)
    assert tree.num_tokens == n + dead and tree.coarsest == over_used.coarsest + bool(dead and early)
    for k in range(max(2, over_used.coarsest), n + 1):
        found = tree.cut(k + (dead > 0))
        expected = over_used.cut(k)
        assert same_partition(found.cluster_of[is_used], expected.cluster_of)
        if dead:
            assert len(set(found.cluster_of[~is_used].tolist())) == 1
            assert not set(found.cluster_of[~is_used].tolist()) & set(found.cluster_of[is_used].tolist())
            assert np.array_equal(expected.with_dead(is_used).cluster_of, found.cluster_of)


@pytest.fixture
def codebook(tmp_path):
    return Codebook.save(tmp_path / "codebook.npz", points(32), {}, {})


def test_a_stored_tree_can_be_cut_at_any_k(codebook, tmp_path):
    made, _ = build_tree(TreeConfig(name="masc", method="linkage"), codebook, 8)
    save_tree(tmp_path / "tree.npz", made, {}, codebook)
    for k in (1, 8, 32):
        partition, _ = load_partition(tmp_path / "tree.npz", k, codebook)
        assert np.array_equal(partition.cluster_of, made.cut(k).cluster_of)


def test_a_tree_that_is_there_is_not_built_again(codebook, tmp_path, monkeypatch):
    config = TreeConfig(name="masc", method="linkage")
    first = make_tree(config, codebook, 8, tmp_path / "tree.npz")
    monkeypatch.setattr("masc.build.build_tree", None)
    assert np.array_equal(make_tree(config, codebook, 8, tmp_path / "tree.npz")[0].merges, first[0].merges)


def test_bad_input_is_refused_with_what_was_found(codebook, tmp_path):
    tree = Tree(average_linkage(codebook.vectors).merges)
    for k in (0, 33):
        with pytest.raises(InputError, match=f"between 1 and the 32 tokens.*{k}"):
            tree.cut(k)
    with pytest.raises(InputError, match=r"clusters \[1\] of 3 have no token"):
        Partition(np.array([0, 2, 2]))
    with pytest.raises(InputError, match="between 1 and the codebook's 32"):
        kmeans(codebook.vectors, 33, seed=0)
    crossed = tree.merges.copy()
    crossed[0, 0] = crossed[1, 0]
    with pytest.raises(InputError, match="at most once"):
        Tree(crossed)
    with pytest.raises(InputError, match="fewer merges than tokens, found 31"):
        Tree(tree.merges, 31)
    with pytest.raises(InputError, match="as many tokens as their two parts"):
        Tree(np.column_stack([tree.merges[:, :3], tree.merges[:, 3] + 1]))
    with pytest.raises(InputError, match="only what exists"):
        Tree(tree.merges + np.array([0.5, 0, 0, 0]))
    with pytest.raises(InputError, match="16 tokens are used, but the tree has 32"):
        tree.with_dead(np.arange(32) < 16)
    with pytest.raises(InputError, match="not descend"):
        Tree(np.concatenate([tree.merges[:, :2], tree.merges[::-1, 2:3], tree.merges[:, 3:]], axis=1))

    save_tree(tmp_path / "kmeans.npz", kmeans(codebook.vectors, 8, 0), {}, codebook)
    with tells(r"8 clusters, not 4.*make tree TREE=... TOKENIZER=... K=4"):
        load_partition(tmp_path / "kmeans.npz", 4, codebook)
    other = Codebook.save(tmp_path / "other.npz", points(32, seed=1), {}, {})
    with pytest.raises(InputError, match=f"{codebook.meta.sha256[:12]}.*{other.meta.sha256[:12]}"):
        load_partition(tmp_path / "kmeans.npz", 8, other)
    with pytest.raises(InputError, match="32 tokens, the codebook 16"):
        save_tree(tmp_path / "x.npz", tree, {}, Codebook.save(tmp_path / "small.npz", points(16), {}, {}))
    assert not (tmp_path / "x.npz").exists()
