"""The published grid: it is complete, unknown keys are errors, and rows match by protocol."""

from collections import Counter

import pytest
import yaml
from stage import CONFIGS

from metrics.evaluators import RESIZE, SHA256_PREFIX
from reports.published import (
    METRICS,
    PublishedRow,
    matching,
    parse_published,
    published,
    rows_for,
)

B_256 = {
    "model": "llamagen-b",
    "release": "c2i_B_256",
    "head": "flat",
    "drawn_at": 256,
    "evaluator": "adm",
    "num_images": 50_000,
    "reference": "adm-imagenet256",
    "guidance": 2.0,
    "temperature": 1.0,
    "top_k": 0,
}
GROUP = {"source": "a paper, Table 1", "confidence": "paper", "model": "m", "rows": [{"FID": 3}]}


def find(**wanted):
    return [row for row in published() if all(getattr(row, key) == value for key, value in wanted.items())]


def test_rows_that_everyone_cites_are_there():
    (best,) = find(release="c2i_B_256", guidance=2.0, kind="result")
    assert best.values == {"FID": 5.464, "IS": 193.613, "sFID": 7.503, "precision": 0.839, "recall": 0.457}
    (masc,) = find(model="llamagen-xl", head="masc", K=4096)
    assert masc.values == {"FID": 2.49, "IS": 269.8} and masc.acceleration_percent == 63
    (adm,) = find(model="admnet-guided-upsampled", kind="result")
    assert adm.values["sFID"] == 6.14043
    (ceiling,) = find(kind="real")
    assert ceiling.values["FID"] == 1.684


def test_no_number_stands_twice():
    def identity(row):
        return (*(repr(value) for key, value in vars(row).items() if key not in ("values", "cause")), row.values.keys())

    counts = Counter(str(identity(row)) for row in published())
    assert not [key for key, count in counts.items() if count > 1]


def test_values_are_of_their_metric():
    ranges = {"FID": (1.4, 40), "IS": (30, 330), "sFID": (3, 300), "rFID": (0.5, 10), "PSNR": (15, 30)}
    for row in published():
        for metric, value in row.values.items():
            low, high = ranges.get(metric, (0.4, 0.9))
            assert low <= value <= high, (row.source, metric, value)


def test_the_presets_are_those_that_the_sampler_takes():
    presets = {row.release: row for row in published() if row.preset}
    files = {file.stem: yaml.safe_load(file.read_text()) for file in (CONFIGS / "sampling").glob("c2i_*.yaml")}
    assert {name: row.guidance for name, row in presets.items()} == {n: f["guidance"] for n, f in files.items()}
    for release in presets:
        assert (CONFIGS / "release" / f"{release}.yaml").exists()


def test_a_release_is_its_best_measured_guidance():
    for row in published():
        if row.preset:
            others = find(release=row.release, kind="result")
            assert row.values["FID"] == min(other.values["FID"] for other in others)


def test_models_that_are_ours_bear_our_names():
    ours = {file.stem for file in (CONFIGS / "model").glob("*.yaml")}
    named = {row.model for row in published() if str(row.model).startswith("llamagen")}
    assert named and named <= ours


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"guidence": 2.0}, "guidence"),
        ({"kind": "rumour"}, "rumour"),
        ({"confidence": "sure"}, "sure"),
        ({"cause": "a typing error"}, "cause"),
        ({"kind": "report"}, "cause"),
        ({"rows": [{}]}, "values"),
    ],
)
def test_a_mistyped_group_is_refused_by_name(change, word):
    with pytest.raises(ValueError, match=word):
        parse_published([GROUP | change])


def test_a_row_overrides_its_group():
    (row,) = parse_published([GROUP | {"epochs": 300, "rows": [{"epochs": 50, "FID": 3}]}])
    assert row.epochs == 50 and row.values == {"FID": 3.0}
    assert set(METRICS) >= set(row.values)


def test_a_release_matches_its_own_row_only():
    (row,) = matching(B_256)
    assert row.values["FID"] == 5.464


@pytest.mark.parametrize(
    "change",
    [
        {"evaluator": "torch-fidelity"},
        {"num_images": 10_000},
        {"num_images": None},
        {"drawn_at": 384},
        {"model": "llamagen-l"},
        {"head": "masc"},
        {"guidance": 1.9},
        {"reference": "imagenet256-val"},
        {"top_k": 100},
        {"release": "c2i_B_384"},
        {"extractor_sha256": "5" * 64},
        {"resize": "half-pixel-bilinear"},
    ],
)
def test_another_protocol_matches_nothing(change):
    assert matching(B_256 | change) == []


def test_the_extractor_and_the_resizes_are_those_of_the_code():
    protocols = [yaml.safe_load(file.read_text()) for file in (CONFIGS / "protocol").glob("*.yaml")]
    assert len(protocols) > 4
    for protocol in protocols:
        assert protocol.get("resize", "tf1-bilinear") == RESIZE[protocol["evaluator"]]
    assert matching(B_256 | {"extractor_sha256": SHA256_PREFIX + "0" * 56, "resize": "tf1-bilinear"}) == matching(B_256)


def test_what_one_side_does_not_know_is_passed_over():
    # The guidance of MASC's rows is not stated; adm-imagenet256 holds the statistics of the training images.
    run = {k: v for k, v in B_256.items() if k != "release"} | {"head": "masc", "tree": "masc", "K": 8192}
    (row,) = matching(run | {"evaluator": "torch-fidelity", "guidance": 1.5})
    assert row.source == "MASC, Table 1" and row.values["FID"] == 4.81
    assert matching(run | {"evaluator": "torch-fidelity", "K": 4096}) == []


@pytest.mark.parametrize("tree", ["kmeans", "kmeans-sklearn"])
def test_k_means_is_compared_with_k_means_whichever_library_made_it(tree):
    run = {k: v for k, v in B_256.items() if k != "release"} | {"head": "masc", "tree": tree, "K": 8192}
    (row,) = matching(run | {"evaluator": "torch-fidelity"})
    assert row.values["FID"] == 5.72


def test_a_run_matches_rows_of_its_own_length_of_training():
    run = {key: value for key, value in B_256.items() if key != "release"}
    assert {row.epochs for row in matching(run)} == {50, 300}
    assert [row.epochs for row in matching(run | {"images_seen": 300 * 1_281_000})] == [300]
    assert matching(run | {"images_seen": 10 * 1_281_167}) == []


def test_guidance_below_one_is_none():
    assert [row.guidance for row in matching(B_256 | {"guidance": 0.0})] == [1.0]


def test_a_key_can_be_passed_over():
    assert len(matching(B_256, ignoring=("guidance",))) == 6
    assert matching(B_256 | {"reference": "imagenet256-val"}, ignoring=("reference",)) == matching(B_256)


def test_rows_of_a_model_and_label_name_their_protocols():
    rows = rows_for("llamagen-b", "flat")
    assert {row.kind for row in rows} == {"result"}
    assert {row.evaluator for row in rows} == {"adm", "torch-fidelity"}
    assert len({row.protocol for row in rows}) > 6
    assert "50000 images" in rows[0].protocol and "adm" in rows[0].protocol
    (kmeans,) = rows_for("llamagen-xl", "masc-on-kmeans")
    assert kmeans.values["FID"] == 3.09


def test_the_label_is_that_of_a_runs_directory():
    row = PublishedRow(source="s", confidence="paper", values={"FID": 1.0}, head="masc", tree="kmeans")
    assert row.label == "masc-on-kmeans"
    assert PublishedRow(source="s", confidence="paper", values={"FID": 1.0}, head="flat", tree="masc").label == "flat"
