"""Every clustering by its config: made once, stored with what it was made from, refused when that does not fit."""

import numpy as np
import pytest
from linkage_oracle import blobs, same_partition
from stage import load_config
from tree import TreeStage, main
from user_errors import tells

from masc.build import PARTITIONS, TreeConfig, build_tree
from masc.layout import Layout
from masc.runtime.artifacts import Codebook, load_npz
from masc.runtime.codes import save_codes
from masc.runtime.errors import InputError
from masc.tree import SCHEMAS, VERSION, Partition, Tree

N = 48


@pytest.fixture
def layout(tmp_path):
    layout = Layout(tmp_path, "emoji32")
    Codebook.save(layout.codebook, blobs(N, 4), {}, {})
    return layout


def write_codes(layout, codebook, tokens):
    labels = np.zeros(len(tokens), np.int64)
    path = layout.codes("twemoji", "train")
    save_codes(path, tokens, labels, np.arange(len(tokens)), ["x"], [], N, codebook.meta.sha256, {})


def stage(layout, choice, *overrides):
    return load_config("tree", TreeStage, [f"tree={choice}", f"artifacts={layout.root}", *overrides])


LINKAGES = ["single", "complete", "centroid", "ward", "cosine", "geodesic", "mutual-reachability", "local-scaling"]


@pytest.mark.parametrize("choice", ["masc", "random", *LINKAGES, *PARTITIONS])
def test_every_clustering_is_made_stored_and_described(layout, choice, capsys):
    config = stage(layout, choice)
    main(config)
    printed = capsys.readouterr().out
    assert f"N = {N}, d = 4; 0 duplicate rows; dead codes unknown" in printed
    codebook = layout.load_codebook()
    partition, _ = layout.load_partition(config.tree, N // 2, codebook)
    assert partition.num_clusters == N // 2
    assert f"{N // 2:9d} {partition.sizes.max():9d}" in printed
    _, meta = load_npz(layout.tree(config.tree, N // 2), "tree", VERSION, *SCHEMAS)
    assert meta.parents == {"codebook": codebook.meta.sha256}
    assert meta.about["packages"]["numpy"] == np.__version__ and meta.about["seconds"] >= 0


def test_a_tree_is_built_again_only_for_a_finer_end_or_an_engine_asked_for(layout, monkeypatch):
    codebook, config = layout.load_codebook(), TreeConfig(name="masc", method="linkage", coarsest=8)
    first, _ = layout.make_tree(config, N, codebook)
    assert first.coarsest == 8
    other = TreeConfig(name="masc", method="linkage", coarsest=20)
    with monkeypatch.context() as patch:
        patch.setattr("masc.build.build_tree", None)
        again, _ = layout.make_tree(other, N, codebook)
        assert np.array_equal(again.merges, first.merges)
    further, _ = layout.make_tree(TreeConfig(name="masc", method="linkage"), N, codebook)
    assert further.coarsest == 1
    assert np.array_equal(further.merges[: N - 8], first.merges)
    sparse = TreeConfig(name="masc", method="linkage", engine="sparse")
    for _ in range(2):
        made, meta = layout.make_tree(sparse, N, codebook)
        assert meta.about["engine"] == "sparse"
        np.testing.assert_allclose(made.merges, further.merges, rtol=1e-12)


def test_a_clustering_is_not_replaced_by_another_of_its_name(layout):
    codebook = layout.load_codebook()
    layout.make_tree(TreeConfig(name="masc", method="linkage"), N, codebook)
    ward = TreeConfig(name="masc", method="linkage", linkage="ward")
    with pytest.raises(InputError, match=r"linkage: 'average' there, 'ward' now[^$]*another name[^$]*rm "):
        layout.make_tree(ward, N, codebook)
    Codebook.save(layout.codebook, blobs(N, 4, seed=9), {}, {})  # but one of another codebook is of no use
    assert layout.make_tree(ward, N, layout.load_codebook())[1].config["linkage"] == "ward"


def test_a_tree_ends_where_it_is_told_to_with_dead_tokens_too(layout):
    codebook = layout.load_codebook()
    write_codes(layout, codebook, np.flatnonzero(np.arange(N) % 3 > 0).reshape(2, 4, 4))
    for coarsest in (1, 2, 20, 33):  # 32 used tokens and the dead
        config = TreeConfig(name="masc", method="linkage", separate_dead="twemoji", coarsest=coarsest)
        layout.tree(config, N).unlink(missing_ok=True)
        made, meta = layout.make_tree(config, N, codebook)
        assert made.coarsest == (coarsest if coarsest > 2 else 1)  # from two, the last merge costs nothing
        assert layout.make_tree(config, N, codebook)[1].about["at"] == meta.about["at"]
    with pytest.raises(InputError, match=f"must not exceed the {N} tokens"):
        build_tree(TreeConfig(name="x", method="linkage", coarsest=N + 1), codebook, N)
    kmeans = TreeConfig(name="kmeans", method="kmeans", separate_dead="twemoji")
    with pytest.raises(InputError, match="between 2 and 33, found 40"):
        layout.make_tree(kmeans, 40, codebook)


@pytest.mark.parametrize("method", ["linkage", "random", "kmeans", "random-balanced"])
def test_dead_codes_are_kept_apart_on_request_and_recorded(layout, method, capsys):
    codebook = layout.load_codebook()
    alive = np.arange(N) % 3 > 0
    write_codes(layout, codebook, np.flatnonzero(alive).reshape(2, 4, 4))
    config = TreeConfig(name="masc", method=method, separate_dead="twemoji")
    made, meta = layout.make_tree(config, 10, codebook)
    cut = made.cut(10) if isinstance(made, Tree) else made
    assert cut.num_clusters == 10
    dead = cut.cluster_of[~alive]
    assert (dead == dead[0]).all() and (cut.cluster_of[alive] != dead[0]).all()
    if method == "linkage":
        plain = TreeConfig(name="masc", method="linkage")
        over_used = Codebook(codebook.vectors[alive], codebook.meta)
        assert same_partition(cut.cluster_of[alive], build_tree(plain, over_used, 9)[0].cut(9).cluster_of)
    assert meta.config["separate_dead"] == "twemoji" and "twemoji-dead-apart" in layout.tree(config, 10).name
    assert layout.load_partition(config, 10, codebook)[0].num_clusters == 10

    write_codes(layout, codebook, np.flatnonzero(alive).reshape(2, 4, 4)[::-1])
    with tells(r"made from the codes .* but the codes in use.*ARGS=tree.separate_dead=twemoji"):
        layout.load_partition(config, 10, codebook)
    main(stage(layout, "masc"))
    assert f"16 of {N} never used by twemoji" in capsys.readouterr().out
    Codebook.save(layout.codebook, blobs(N, 4, seed=5), {}, {})
    main(stage(layout, "masc"))  # the codes are another codebook's
    assert "dead codes unknown" in capsys.readouterr().out


def test_a_k_out_of_range_is_refused_before_anything_is_built(layout):
    codebook = layout.load_codebook()
    for k in (0, N + 1):
        for method in ("linkage", "kmeans"):
            config = TreeConfig(name=method, method=method)
            with pytest.raises(
                InputError, match=rf"between 1 and the {N} tokens of emoji32, found {k}; try K={N // 2}"
            ):
                layout.make_tree(config, k, codebook)
            assert not layout.tree(config, k).exists()


def test_dead_codes_need_codes(layout):
    config = TreeConfig(name="masc", method="linkage", separate_dead="twemoji")
    with tells(r"no codes at .*make codes DATA=twemoji TOKENIZER=emoji32"):
        layout.make_tree(config, 10, layout.load_codebook())
    assert not layout.tree(config, 10).exists()


def test_a_mapping_is_imported_with_its_hash(layout, tmp_path):
    codebook, cluster_of = layout.load_codebook(), np.arange(N) % 6
    np.save(tmp_path / "mapping.npy", cluster_of)
    config = TreeConfig(name="mapping", method="mapping", mapping=str(tmp_path / "mapping.npy"))
    made, meta = layout.make_tree(config, 6, codebook)
    assert isinstance(made, Partition) and same_partition(made.cluster_of, cluster_of)
    np.save(tmp_path / "mapping.npy", cluster_of[::-1].copy())
    again, other = layout.make_tree(config, 6, codebook)  # another file of that name is another mapping
    assert meta.parents["mapping"] != other.parents["mapping"]
    assert same_partition(again.cluster_of, cluster_of[::-1])
    with pytest.raises(InputError, match=r"6 clusters, not 7.*K=6"):
        layout.make_tree(config, 7, codebook)
    assert not layout.tree(config, 7).exists()
    for wrong, words in ((None, "ARGS=tree.mapping=PATH"), (str(tmp_path / "none.npy"), "no mapping at")):
        with pytest.raises(InputError, match=words):
            layout.make_tree(TreeConfig(name="mapping", method="mapping", mapping=wrong), 6, codebook)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("tree.method=average", "tree.method must be one of linkage, random"),
        ("tree.linkage=median", "tree.linkage must be one of average"),
        ("tree.metric=manhattan", "tree.metric must be one of euclidean"),
        ("tree.engine=gpu", "tree.engine must be one of auto"),
        ("tree.coarsest=0", "tree.coarsest must be at least 1"),
        ("tree=ward tree.coarsest=4", "other trees end at the root"),
        ("tree=iar tree.separate_dead=twemoji", "an imported mapping has all tokens"),
    ],
)
def test_a_bad_choice_is_refused_by_name(override, words):
    with pytest.raises(InputError, match=words):
        load_config("tree", TreeStage, override.split())


def test_a_broken_or_foreign_file_is_refused_and_built_anew(layout, tmp_path):
    codebook, config = layout.load_codebook(), TreeConfig(name="masc", method="linkage")
    layout.make_tree(config, N, codebook)
    path = layout.tree(config, N)
    whole = path.read_bytes()
    np.savez(tmp_path / "foreign.npz", merges=np.zeros((3, 4)))
    for broken in (
        whole[: len(whole) // 2],
        b"",
        (tmp_path / "foreign.npz").read_bytes(),
        layout.codebook.read_bytes(),
    ):
        path.write_bytes(broken)
        with tells("make tree TREE=masc TOKENIZER=emoji32"):
            layout.load_partition(config, 8, codebook)
    layout.make_tree(config, N, codebook)
    assert layout.load_partition(config, 8, codebook)[0].num_clusters == 8
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_codes_that_a_killed_process_had_renamed_are_found_by_every_reader(layout):
    codebook = layout.load_codebook()
    write_codes(layout, codebook, np.flatnonzero(np.arange(N) % 3 > 0).reshape(2, 4, 4))
    path = layout.codes("twemoji", "train")
    for read in (lambda: layout.usage("twemoji", codebook).is_used, lambda: layout.dead_tokens(codebook)["twemoji"]):
        path.rename(path.with_name(".train.old"))
        assert len(read()) and path.is_dir()
