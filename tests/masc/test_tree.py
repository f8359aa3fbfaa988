"""Trees, their cuts, and the clusterings beside them."""

import numpy as np
import pytest
from golden import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import fcluster, linkage

from masc.artifacts import Codebook, InputError
from masc.build import TreeConfig, build_tree, make_tree
from masc.kmeans import kmeans
from masc.linkage import average_linkage
from masc.tree import Partition, Tree, load_partition, save_tree


def points(n, d=4, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def same_partition(a, b):
    return np.array_equal(Partition(np.asarray(a)).cluster_of, Partition(np.asarray(b)).cluster_of)


def naive_average_linkage(vectors, num_clusters):
    """Algorithm 1 word by word: merge the two clusters of least mean distance until K are left."""
    distances = np.linalg.norm(vectors[:, None].astype(float) - vectors[None], axis=-1)
    clusters = [[i] for i in range(len(vectors))]
    while len(clusters) > num_clusters:
        pairs = [
            (distances[np.ix_(a, b)].mean(), i, j) for i, a in enumerate(clusters) for j, b in enumerate(clusters[:i])
        ]
        _, i, j = min(pairs)
        clusters[j] += clusters.pop(i)
    labels = np.empty(len(vectors), int)
    for label, cluster in enumerate(clusters):
        labels[cluster] = label
    return labels


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


def test_kmeans_gives_k_nonempty_clusters_and_beats_random_ones():
    vectors = points(200, 4)
    made = kmeans(vectors, 50, seed=0)
    assert made.num_clusters == 50
    assert same_partition(made.cluster_of, kmeans(vectors, 50, seed=0).cluster_of)

    def inertia(labels):
        centres = np.stack([vectors[labels == label].mean(0) for label in range(50)])
        return np.square(vectors - centres[labels]).sum()

    shuffled = np.random.default_rng(0).permutation(made.cluster_of)
    assert inertia(made.cluster_of) < 0.5 * inertia(shuffled)


def test_kmeans_fills_every_cluster_even_with_duplicate_rows():
    vectors = np.repeat(points(10), 4, axis=0)
    assert kmeans(vectors, 20, seed=0).num_clusters == 20


@pytest.fixture
def codebook(tmp_path):
    return Codebook.save(tmp_path / "codebook.npz", points(32), {}, {})


def test_a_stored_tree_can_be_cut_at_any_k(codebook, tmp_path):
    made, _ = build_tree(TreeConfig(name="masc", method="linkage"), codebook, 8)
    save_tree(tmp_path / "tree.npz", made, {}, codebook)
    for k in (1, 8, 32):
        partition, _ = load_partition(tmp_path / "tree.npz", k, codebook, "make tree")
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
    with pytest.raises(InputError, match="exactly once"):
        Tree(crossed)
    with pytest.raises(InputError, match="must not descend"):
        Tree(np.concatenate([tree.merges[:, :2], tree.merges[::-1, 2:3], tree.merges[:, 3:]], axis=1))

    save_tree(tmp_path / "kmeans.npz", kmeans(codebook.vectors, 8, 0), {}, codebook)
    with pytest.raises(InputError, match=r"8 clusters, not 4.*make tree TREE=kmeans K=4"):
        load_partition(tmp_path / "kmeans.npz", 4, codebook, "make tree TREE=kmeans")
    other = Codebook.save(tmp_path / "other.npz", points(32, seed=1), {}, {})
    with pytest.raises(InputError, match=f"{codebook.meta.sha256[:12]}.*{other.meta.sha256[:12]}"):
        load_partition(tmp_path / "kmeans.npz", 8, other, "make tree")
    with pytest.raises(InputError, match="32 tokens, the codebook 16"):
        save_tree(tmp_path / "x.npz", tree, {}, Codebook.save(tmp_path / "small.npz", points(16), {}, {}))
    assert not (tmp_path / "x.npz").exists()
