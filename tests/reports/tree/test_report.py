"""The page about a tree: its content, and its numbers, which equal those of the partitions."""

import json
import re

import numpy as np
import pytest
import torch
from messages import command_for
from scipy.cluster.hierarchy import linkage
from stage import load_config
from tiny_artifacts import NUM_TOKENS, make_artifacts
from tree_report import TreeReportStage, main

from masc.build import TreeConfig, make_tree
from masc.coherence import agreement, intra_cluster_distance, intra_cluster_similarity, residual_variance
from masc.layout import Layout
from masc.runtime.codes import load_codes
from masc.runtime.errors import InputError, MissingArtifact
from masc.tree import Partition, Tree, save_tree
from reports.tree import figures as tree_figures
from reports.tree import report as tree_report
from reports.tree import token_map
from reports.tree.figures import by_sizes, cut_height, size_bin, upper_tree
from reports.tree.report import TreeReportInputs, load_clusterings, write_tree_report
from reports.tree.token_map import TokenMap, atlas, map_tokens, token_colours

K = NUM_TOKENS // 2
AVERAGE = TreeConfig(name="masc", method="linkage")


class FlatColours(torch.nn.Module):
    """A tokenizer whose image of a token is one flat colour."""

    num_tokens, downsample = NUM_TOKENS, 4

    def __init__(self):
        super().__init__()
        self.register_buffer("codebook", torch.zeros(NUM_TOKENS, 4))

    def decode(self, tokens):
        side = round(tokens.shape[1] ** 0.5)
        grey = (tokens.float() / NUM_TOKENS * 2 - 1).reshape(-1, 1, side, side).repeat(1, 3, 1, 1)
        return grey.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    return Layout(make_artifacts(tmp_path_factory.mktemp("artifacts")), "emoji32")


@pytest.fixture(scope="module")
def stage(layout):
    return load_config("tree_report", TreeReportStage, [f"artifacts={layout.root}"])


@pytest.fixture(scope="module")
def report(layout, stage):
    """The page with everything, its numbers, and what they were made from."""
    codebook = layout.load_codebook()
    clusterings, missing = load_clusterings(layout, stage.trees, K, codebook)
    codes = load_codes(layout.codes("twemoji", "train"), codebook.meta.sha256)
    inputs = TreeReportInputs("emoji32", codebook, K, clusterings, missing, FlatColours(), codes, num_images=30)
    page = write_tree_report(inputs, layout.root / "whole")
    return page.read_text(), json.loads(page.with_suffix(".json").read_text()), inputs


def ladder(num_tokens):
    """A chain: token i joins the cluster of tokens 0..i-1 at height i."""
    last = np.concatenate([[0], np.arange(num_tokens, 2 * num_tokens - 2)])
    steps = np.arange(1, num_tokens)
    pairs = np.sort(np.stack([last, steps], axis=1), axis=1)
    return Tree(np.column_stack([pairs, steps, steps + 1]).astype(np.float64))


def test_the_page_needs_nothing_but_itself(report):
    page = report[0]
    assert "<script" not in page and "<link" not in page
    addresses = re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?(?!data:|#)([^\"')>\s]*)", page)
    assert not [address for address in addresses if address]
    assert set(re.findall(r"http://([\w.]*)", page)) <= {"www.w3.org"}
    assert "--accent: #2e7fb8" in page  # the style sheet that it shares with the other report


def test_the_page_names_every_clustering_and_shows_each_part(report):
    page, numbers, inputs = report
    assert numbers["agreement"]["names"] == list(inputs.clusterings) == ["masc", "kmeans", "random"]
    for name in inputs.clusterings:
        assert f'alt="clusters of {name} as decoded patches"' in page
    for title in ("Dendrogram", "Map of the codebook", "Atlas", "Cluster sizes", "Coherence over K", "Agreement at K"):
        assert f"<h2>{title}" in page
    assert page.count('alt="dendrogram of') == 1  # the random tree's is MASC's over other tokens
    assert "left out</span>" not in page
    assert numbers["codebook_sha256"] in page and inputs.clusterings["kmeans"].sha256[K] in page


def test_numbers_are_those_of_the_partitions(report):
    _, numbers, inputs = report
    vectors = inputs.codebook.vectors
    assert [(row["clustering"], row["K"]) for row in numbers["rows"]] == [
        *[("masc", k) for k in (12, 6, 3)],
        ("kmeans", 12),  # made for one K at a time
        *[("random", k) for k in (12, 6, 3)],
    ]
    for row in numbers["rows"]:
        cut = inputs.clusterings[row["clustering"]].partitions[row["K"]]
        assert row["largest"] == cut.sizes.max() and row["median_size"] == np.median(cut.sizes)
        assert row["singletons"] == pytest.approx(np.mean(cut.sizes == 1))
        assert row["residual_variance"] == pytest.approx(residual_variance(vectors, cut))
        assert row["distance"] == pytest.approx(intra_cluster_distance(vectors, cut).overall)
        assert row["similarity"] == pytest.approx(intra_cluster_similarity(vectors, cut).overall)
    cuts = inputs.cuts(K)
    wanted = agreement(cuts["masc"], cuts["kmeans"])
    for measure in ("ari", "ami"):
        matrix = np.array(numbers["agreement"][measure])
        assert matrix[0, 1] == matrix[1, 0] == pytest.approx(wanted[measure]) and (np.diag(matrix) == 1).all()
    assert numbers["one_cluster"]["residual_variance"] == pytest.approx(1)


def test_numbers_on_the_page_are_those_in_the_json(report):
    page, numbers, _ = report
    for row in numbers["rows"]:
        assert f"<td>{row['residual_variance']:.3f}</td>" in page and f"<td>{row['distance']:.3f}</td>" in page


def test_clusterings_not_made_are_named_with_their_commands(layout, stage, tmp_path):
    trees = {**stage.trees, "ward": TreeConfig(name="ward", method="linkage")}
    codebook = layout.load_codebook()
    clusterings, missing = load_clusterings(layout, trees, 5, codebook)
    assert list(clusterings) == ["masc", "random"]  # kmeans was made for K = 12 only
    commands = {name: command_for(error) for name, error in missing.items()}
    assert commands == {
        "kmeans": "make tree TREE=kmeans TOKENIZER=emoji32 K=5",
        "ward": "make tree TREE=ward TOKENIZER=emoji32",
    }
    inputs = TreeReportInputs("emoji32", codebook, 5, clusterings, commands, no_patches="no codes")
    page = write_tree_report(inputs, tmp_path).read_text()
    for name, command in commands.items():
        assert f"{name} has not been made; make it with <code>{command}</code>" in page


def test_without_the_tree_that_is_looked_at_there_is_no_page(layout, stage, tmp_path):
    codebook = layout.load_codebook()
    elsewhere = Layout(tmp_path, "emoji32")
    with pytest.raises(MissingArtifact, match=r"no tree at .*masc.npz") as caught:
        load_clusterings(elsewhere, stage.trees, K, codebook)
    assert command_for(caught.value) == "make tree TREE=masc TOKENIZER=emoji32"
    with pytest.raises(InputError, match="name at least one"):
        load_clusterings(layout, {}, K, codebook)
    with pytest.raises(InputError, match="name at least one"):
        write_tree_report(TreeReportInputs("emoji32", codebook, K, {}), tmp_path)


def test_a_partition_made_at_several_k_is_measured_at_each(layout):
    config, codebook = TreeConfig(name="several", method="kmeans"), layout.load_codebook()
    for k in (K, K // 2):
        make_tree(config, codebook, k, layout.tree(config, k))
    found = load_clusterings(layout, {"several": config}, K, codebook)[0]["several"]
    assert {k: cut.num_clusters for k, cut in found.partitions.items()} == {12: 12, 6: 6}
    assert found.sha256[12] != found.sha256[6] and found.tree is None


def test_the_stage_says_which_command_brings_the_patches(layout, stage, capsys, tmp_path):
    stage.data.name, stage.output, whole = "elsewhere", str(tmp_path), stage.data.name
    try:
        main(stage)
    finally:
        stage.data.name, stage.output = whole, None
    assert capsys.readouterr().out.strip() == f"{tmp_path}/tree-report.html"
    page, numbers = ((tmp_path / f"tree-report.{kind}").read_text() for kind in ("html", "json"))
    assert "make codes DATA=elsewhere TOKENIZER=emoji32" in page and "<h2>Atlas" not in page
    assert json.loads(numbers)["patches"] is None


def test_distances_that_would_take_too_long_are_left_out_and_the_page_says_so(layout, stage, tmp_path, monkeypatch):
    monkeypatch.setattr(tree_report, "MAX_PAIRS", 100)  # one cluster of all 24 has 276
    codebook = layout.load_codebook()
    inputs = TreeReportInputs("emoji32", codebook, K, load_clusterings(layout, {"masc": AVERAGE}, K, codebook)[0])
    page = write_tree_report(inputs, tmp_path).read_text()
    assert json.loads((tmp_path / "tree-report.json").read_text())["one_cluster"]["distance"] is None
    assert "<td>left out</td>" in page and "Left out: more than 100 pairs" in page


def test_the_upper_part_of_a_tree_is_its_partition_with_so_many_clusters():
    tree = Tree(linkage(np.random.default_rng(3).standard_normal((200, 3)), "average"))
    upper = upper_tree(tree, 20)
    assert len(upper.leaves) == 20 and len(upper.opened) == 19 and upper.num_roots == 1
    sizes = np.concatenate([np.ones(200), tree.merges[:, 3]])
    assert sorted(sizes[upper.leaves]) == sorted(tree.cut(20).sizes)
    assert sorted(upper_tree(tree, 200).leaves) == list(range(200))


def test_a_deep_tree_is_drawn_without_recursion():
    tree = ladder(5000)
    assert upper_tree(tree, 5000).leaves == list(range(5000))  # the larger part left
    assert tree_figures.dendrogram(tree, 2500).startswith("data:image/png;base64,")


def test_a_tree_that_ends_early_is_shown_by_its_largest_clusters(layout, tmp_path):
    whole = load_clusterings(layout, {"masc": AVERAGE}, K, layout.load_codebook())[0]["masc"].tree
    early = Tree(whole.merges[:-7], NUM_TOKENS)  # ends in 8 clusters
    sizes = np.concatenate([np.ones(NUM_TOKENS), whole.merges[:, 3]])
    upper = upper_tree(early, 12)
    assert upper.num_roots == 8 and len(upper.roots) == 3
    assert sizes[upper.roots].tolist() == sorted(whole.cut(8).sizes, reverse=True)[:3]
    assert sizes[upper.leaves].sum() == sizes[upper.roots].sum()  # nothing is lost below them
    assert upper_tree(early, 32).num_roots == len(upper_tree(early, 32).roots) == 8

    codebook, config = layout.load_codebook(), TreeConfig(name="early", method="linkage", coarsest=8)
    save_tree(layout.tree(config, K), early, config.settings(K), codebook)
    clusterings, _ = load_clusterings(layout, {"early": config}, K, codebook)
    assert list(clusterings["early"].partitions) == [12]  # 6 and 3 are beyond it
    inputs = TreeReportInputs("emoji32", codebook, K, clusterings)
    page = write_tree_report(inputs, tmp_path).read_text()
    assert 'alt="dendrogram of early with its cut"' in page and "<h2>Agreement" not in page


def test_the_cut_lies_between_the_last_merge_done_and_the_next():
    tree = ladder(10)  # heights 1 to 9
    assert cut_height(tree, 4) == 6.5
    assert [cut_height(tree, k) for k in (10, 1)] == [1, 9]


def test_sizes_are_binned_by_powers_of_two_and_equal_ones_share_a_name():
    assert size_bin(np.array([1, 2, 3, 4, 5, 8, 9, 16, 17])).tolist() == [0, 1, 2, 2, 3, 3, 4, 4, 5]
    a, b, c = (Partition(np.array(labels)) for labels in ([0, 0, 1], [0, 1, 1], [0, 1, 2]))
    assert list(by_sizes({"a": a, "b": b, "c": c})) == ["a, b", "c"]


def test_a_map_of_a_large_codebook_is_a_seeded_sample(monkeypatch):
    monkeypatch.setattr(token_map, "MAX_POINTS", 40)
    vectors = np.random.default_rng(0).standard_normal((100, 4)).astype(np.float32)
    first, again, other = (map_tokens(vectors, seed) for seed in (0, 0, 1))
    assert len(first.tokens) == 40 and (np.diff(first.tokens) > 0).all() and first.perplexity == 13
    np.testing.assert_array_equal(first.tokens, again.tokens)
    np.testing.assert_array_equal(first.points, again.points)
    assert not np.array_equal(first.tokens, other.tokens)


def test_only_the_largest_clusters_have_a_colour_of_their_own():
    labels = np.concatenate([np.repeat(np.arange(25), np.arange(27, 2, -1)), [25]])  # sizes 27 to 3, and 1
    colours = token_colours(Partition(labels))
    per_cluster = [np.unique(colours[labels == cluster], axis=0) for cluster in range(26)]
    assert all(len(found) == 1 for found in per_cluster)
    assert len({tuple(found[0]) for found in per_cluster[:20]}) == 20
    assert len({tuple(found[0]) for found in per_cluster[20:25]}) == 1
    assert per_cluster[25][0].min() > per_cluster[20][0].max()  # alone: the lightest


def test_an_atlas_keeps_a_map_that_is_a_grid_already():
    rows, columns = np.divmod(np.arange(16), 4)
    place = np.random.default_rng(0).permutation(16)  # of token t
    points = np.stack([columns[place], -rows[place]], axis=1).astype(float)
    patches = np.broadcast_to((np.arange(16) * 10).astype(np.uint8)[:, None, None, None], (16, 6, 6, 3))
    found = TokenMap(np.arange(16), points, perplexity=5, seed=0)
    image = atlas(found, patches, np.ones(16, bool), Partition(np.arange(16)))
    side = image.shape[0] // 4
    centres = image[side // 2 :: side, side // 2 :: side, 0]
    np.testing.assert_array_equal(centres.ravel()[place], np.arange(16) * 10)
    without = atlas(found, patches, np.arange(16) < 9, Partition(np.arange(16)))  # nine patches: three by three
    assert without.shape[0] == without.shape[1] == 3 * side
