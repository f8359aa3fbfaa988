"""Tables over all runs: protocols never mix, seeds are averaged, published rows are in the right table."""

import numpy as np
import pytest
import yaml
from report_runs import MASC, make_run, measured, tables_of

from metrics.results import Results, row
from reports.overview import OverviewConfig, write_overview
from reports.subjects import find_subjects

pytestmark = pytest.mark.usefixtures("elsewhere")


@pytest.mark.parametrize(
    "other",
    [
        {"protocol": "paper", "evaluator": "torch-fidelity"},
        {"reference": "imagenet256-val"},
        {"reference_sha256": "0" * 64},
        {"extractor": "another"},
        {"resize": "pil-bicubic"},
        {"num_images": 5000},
        {"image_size": 384},
        {"captions_sha256": "c" * 64},
    ],
)
def test_numbers_of_two_protocols_never_share_a_table(tmp_path, other):
    directory = make_run(tmp_path)
    measured(directory)
    measured(directory, "default-other", protocol=other)
    tables, _ = tables_of(tmp_path)
    assert [len(table["rows"]) for table in tables] == [1, 1]
    # IS names no reference, and stands with the FID of its own file.
    assert all(len(table["columns"]) == 2 for table in tables)
    assert tables[0]["protocol"] != tables[1]["protocol"]


@pytest.mark.parametrize("other", [{"image_size": 384}, {"captions_sha256": "c" * 64}])
def test_tables_of_other_images_are_told_apart_by_their_titles(tmp_path, other):
    directory = make_run(tmp_path)
    measured(directory)
    measured(directory, "default-other", protocol=other)
    assert len({table["title"] for table in tables_of(tmp_path)[0]}) == 2


def test_the_two_forms_of_is_are_two_columns(tmp_path):
    flat, masc = make_run(tmp_path), make_run(tmp_path, "masc")
    measured(flat)
    measured(masc, protocol=MASC)
    file = masc / "eval" / "default-adm.json"
    file.write_text(file.read_text().replace('"form": "adm"', '"form": "torch-fidelity"'))
    (table,), _ = tables_of(tmp_path)
    assert table["columns"] == ["FID", "IS, form adm", "IS, form torch-fidelity"]
    cells = {row["name"]: [cell is not None for cell in row["cells"]] for row in table["rows"]}
    assert cells == {"llamagen-b flat": [True, True, False], "llamagen-b masc, K = 8192": [True, False, True]}


def test_clip_score_joins_its_protocols_table_and_names_its_own_evaluator(tmp_path):
    directory = make_run(tmp_path)
    measured(directory, protocol={"protocol": "coco", "evaluator": "torch-fidelity", "num_images": 30_000})
    results = Results.load(directory / "eval" / "default-adm.json")
    clip = {"protocol": "coco", "evaluator": "open_clip", "extractor": "ViT-B-32", "num_images": 30_000}
    Results([*results.rows, row("CLIP score", 0.3, clip)]).save(directory / "eval" / "default-adm.json")
    (table,), _ = tables_of(tmp_path)
    assert table["columns"] == ["FID", "IS", "CLIP score"] and table["protocol"]["extractor"] != "ViT-B-32"
    page = write_overview(OverviewConfig(runs=str(tmp_path), output=str(tmp_path / "report"))).read_text()
    assert page.count("extractor: ViT-B-32") == 1


def test_fid_of_few_images_carries_its_number(tmp_path):
    directory = make_run(tmp_path)
    for name, protocol in (
        ("a", {"num_images": 5000}),
        ("b", {}),
        ("c", {"protocol": "coco", "num_images": 30_000}),
        ("d", {"protocol": "coco", "num_images": 10_000}),
    ):
        measured(directory, name, protocol=protocol)
    tables, _ = tables_of(tmp_path)
    headings = {table["rows"][0]["file"]: table["columns"][0] for table in tables}
    assert headings == {"a": "FID (5,000)", "b": "FID", "c": "FID", "d": "FID (10,000)"}


def test_seeds_are_averaged_and_each_keeps_its_interval(tmp_path):
    for seed, fid in enumerate((5.0, 5.4, 5.5)):
        measured(make_run(tmp_path, seed=seed), fid=fid, protocol={"seed": seed, "weights_sha256": str(seed)})
    (table,), _ = tables_of(tmp_path)
    (line,) = table["rows"]
    assert line["seeds"] == [0, 1, 2] and len(line["places"]) == 3
    assert line["cells"][0]["mean"] == pytest.approx(5.3)
    assert line["cells"][0]["sd"] == pytest.approx(np.std([5.0, 5.4, 5.5], ddof=1))
    page = write_overview(OverviewConfig(runs=str(tmp_path), output=str(tmp_path / "report"))).read_text()
    assert "± 0.265 sd" in page and "5.000 [4.950, 5.050]" in page and "5.500 [5.450, 5.550]" in page
    markdown = (tmp_path / "report" / "all.md").read_text()
    assert "| llamagen-b flat | default-adm | 0, 1, 2 |" in markdown and "5.300 ± 0.265 sd" in markdown


@pytest.mark.parametrize("change", [{"guidance": 1.5}, {"weights": "average"}, {"step": 10}])
def test_seeds_that_differ_in_more_are_not_averaged(tmp_path, change):
    measured(make_run(tmp_path, seed=0))
    measured(make_run(tmp_path, seed=1), protocol=change)
    (table,), _ = tables_of(tmp_path)
    assert [line["seeds"] for line in table["rows"]] == [[0], [1]]


def test_runs_of_another_config_are_not_averaged_and_are_told_apart(tmp_path):
    measured(make_run(tmp_path / "one", seed=0))
    other = make_run(tmp_path / "two", seed=1)
    config = yaml.safe_load((other / "config.yaml").read_text()) | {"batch_size": 512}
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    measured(other)
    (table,), _ = tables_of(tmp_path)
    assert len({line["name"] for line in table["rows"]}) == 2
    assert all(str(tmp_path) in line["name"] for line in table["rows"])


def test_the_same_seed_twice_is_two_rows(tmp_path):
    measured(make_run(tmp_path / "one"))
    measured(make_run(tmp_path / "two"))
    (table,), _ = tables_of(tmp_path)
    assert [line["seeds"] for line in table["rows"]] == [[0], [0]]


def test_published_rows_stand_with_their_own_evaluator_only(tmp_path):
    measured(make_run(tmp_path), protocol={"images_seen": 300 * 1_281_167})
    masc = make_run(tmp_path, "masc")
    measured(masc, "default-paper", 4.9, {**MASC, "protocol": "paper", "evaluator": "torch-fidelity"})
    tables, others = tables_of(tmp_path)
    by_evaluator = {table["protocol"]["evaluator"]: table for table in tables}
    adm, paper = by_evaluator["adm"]["published"], by_evaluator["torch-fidelity"]["published"]
    assert {line["source"] for line in adm} == {"LlamaGen paper, Table 8"}
    assert {line["name"] for line in adm} == {"llamagen-b flat"}
    assert [line["values"]["FID"] for line in adm if line["same_settings"]] == [5.464]
    assert [(line["name"], line["cells"]) for line in paper] == [("llamagen-b masc, K = 8192", [4.81, 206.4])]
    # MASC's own row of flat is by torch-fidelity, and no flat run was measured so; Table 9's are drawn at 384 pixels.
    apart = {(line["source"], line["values"]["FID"]) for line in others}
    assert ("MASC, Table 1", 5.56) in apart and ("LlamaGen paper, Tables 9 and 10", 6.092) in apart
    assert not apart & {(line["source"], line["values"]["FID"]) for line in adm + paper}


@pytest.mark.parametrize(
    "other", [{"num_images": 5000}, {"extractor_sha256": "5" * 64}, {"resize": "half-pixel-bilinear"}]
)
def test_a_table_measured_otherwise_has_no_published_rows(tmp_path, other):
    measured(make_run(tmp_path), protocol=other)
    (table,), others = tables_of(tmp_path)
    assert table["published"] == [] and len(others) > 10
    page = write_overview(OverviewConfig(runs=str(tmp_path), output=str(tmp_path / "report"))).read_text()
    assert "other protocol" in page and ("FID (5,000)" in page) == ("num_images" in other)


def test_embedded_metrics_and_likelihood_have_their_own_tables(tmp_path):
    directory = make_run(tmp_path)
    measured(directory)
    lite = {"images": "samples", "num_images": 1000, "extractor": "efficientnet-lite0", "guidance": 2.0}
    Results([row("FD-lite0", 80.0, lite | {"reference": "twemoji train"}), row("IS-lite0", 9.0, lite)]).save(
        directory / "eval" / "default.json"
    )
    nats = {"num_images": 10, "codes_sha256": "c" * 64, "standard_error_over_images": 0.0123}
    Results([row("held-out nats per token", 5.0, nats)]).save(directory / "eval" / "likelihood.json")
    tables, _ = tables_of(tmp_path)
    assert [table["kind"] for table in tables] == ["images", "embedded", "likelihood"]
    assert [table["columns"] for table in tables[1:]] == [["FD-lite0", "IS-lite0"], ["held-out nats per token"]]
    page = write_overview(OverviewConfig(runs=str(tmp_path), output=str(tmp_path / "report"))).read_text()
    assert "± 0.012 se" in page


def test_a_release_and_results_from_elsewhere_count_without_curves(tmp_path):
    release = tmp_path / "runs" / "c2i_B_256"
    measured(release, fid=5.46, protocol={"release": "c2i_B_256"})
    measured(tmp_path / "pictures", "mine-adm", protocol={"images": "mine", "model": None, "head": None})
    outside = tmp_path / "pictures" / "eval" / "mine-adm.json"
    subjects, skipped = find_subjects(tmp_path / "runs", [outside])
    assert not skipped and [subject.name for subject in subjects] == ["c2i_B_256", str(outside)]
    (table,), _ = tables_of(tmp_path / "runs", [outside])
    assert len(table["rows"]) == 2
    assert {line["source"] for line in table["published"]} == {"LlamaGen paper, Table 8"}


def test_results_that_are_found_are_not_counted_again_when_named(tmp_path):
    directory = make_run(tmp_path)
    measured(directory)
    (table,), _ = tables_of(tmp_path, [directory / "eval" / "default-adm.json"])
    assert len(table["rows"]) == 1
