"""Tokenizers on the page over all runs: image sets never mix, published rows are in the right table."""

import json

import pytest
from PIL import Image
from report_runs import make_run
from user_errors import tells

from masc.runtime.errors import InputError
from masc.runtime.files import write_json
from metrics.results import row
from reports.overview import OverviewConfig, write_overview
from reports.tokenizer_tables import find_tokenizers, read_tokenizer_results, tokenizer_tables

INCEPTION = {"extractor": "inception-2015-12-05", "extractor_sha256": "6726825d" + "e" * 56, "image_size": 256}
LITE0 = {"extractor": "efficientnet-lite0", "extractor_sha256": "5" * 64, "image_size": 256}
LPIPS = {"version": "0.1", "backbone": "alex"}


def about(name, num_images=50_000, images="imagenet val", images_sha256="c" * 64):
    return {"tokenizer": name, "tokenizer_sha256": "a" * 64, "images": images, "images_sha256": images_sha256} | {
        "num_images": num_images
    }


def reconstructed(root, name="vq16", rfid=2.2, space=INCEPTION, lpips=LPIPS, **more):
    """tokenizer.json as `make eval-tokenizer` writes it."""
    common, is_inception = about(name, **more), space["extractor"] == INCEPTION["extractor"]
    rows = [
        row("PSNR (dB)", 20.8, common | {"pixels": "uint8"}),
        row("LPIPS", 0.28, common | lpips),
        row("rFID" if is_inception else "rFD-lite0", rfid, common | space),
        row("SSIM (LlamaGen's)", 0.676, common | {"by": "scikit-image"}),
        row("codebook usage", 0.97, common),
    ]
    write_json(root / name / "eval" / "tokenizer.json", {"inputs": {}, "reconstruction": rows})
    return root / name / "eval" / "tokenizer.json"


def replaced(root, name="vq16", sd=0.09, image=True):
    """replacement.json and replacement.png as `make eval-replacement` writes them."""
    common = about(name) | {"seeds": [0, 1], "against": "plain reconstruction"}
    over = {"sd_over_seeds": sd, "by_seed": [27.1, 27.3]}
    cases = [
        {"tree": tree, "K": k, "largest_cluster": 43}
        | {"metrics": [row("PSNR (dB)", 27.2 - place, common | {"tree": tree, "K": k} | over)]}
        for place, (tree, k) in enumerate((("masc", 512), ("kmeans", 512), ("masc", 256)))
    ]
    write_json(root / name / "eval" / "replacement.json", {"inputs": {}, "replacement": cases})
    if image:
        Image.new("RGB", (1694, 66)).save(root / name / "eval" / "replacement.png")
    return root / name / "eval" / "replacement.json"


def tables_of(root):
    found, skipped = find_tokenizers(root)
    assert not skipped
    return tokenizer_tables(found)


def page_of(root, runs="none"):
    """The page, all.md and all.json."""
    config = OverviewConfig(runs=str(root / runs), artifacts=str(root / "artifacts"), output=str(root / "report"))
    page = write_overview(config)
    return page.read_text(), page.with_name("all.md").read_text(), json.loads(page.with_name("all.json").read_text())


@pytest.mark.parametrize("other", [{"num_images": 1000}, {"images": "ffhq val"}, {"images_sha256": "d" * 64}])
def test_numbers_of_other_images_never_share_a_table(tmp_path, other):
    reconstructed(tmp_path)
    reconstructed(tmp_path, "mine")
    reconstructed(tmp_path, "other", **other)
    tables, _ = tables_of(tmp_path)
    names = [[line["about"]["tokenizer"] for line in table["rows"]] for table in tables]
    assert sorted(names) == [["mine", "vq16"], ["other"]]
    assert len({table["title"] for table in tables}) == 2


def test_frechet_distances_of_two_spaces_have_columns_of_their_own(tmp_path):
    reconstructed(tmp_path, "inception")
    reconstructed(tmp_path, "lite0", space=LITE0)
    (table,), _ = tables_of(tmp_path)
    assert table["columns"] == ["PSNR (dB)", "LPIPS", "rFID", "SSIM (LlamaGen's)", "codebook usage", "rFD-lite0"]
    known = {line["about"]["tokenizer"]: [cell is not None for cell in line["cells"]] for line in table["rows"]}
    assert known == {"inception": [True] * 5 + [False], "lite0": [True, True, False, True, True, True]}


def test_a_metric_measured_in_two_ways_is_two_columns_that_say_so(tmp_path):
    reconstructed(tmp_path, "a")
    reconstructed(tmp_path, "b", lpips=LPIPS | {"backbone": "vgg"})
    (table,), _ = tables_of(tmp_path)
    assert [name for name in table["columns"] if "LPIPS" in name] == ["LPIPS, backbone alex", "LPIPS, backbone vgg"]


def test_published_rows_stand_beside_as_many_images_of_the_same_set(tmp_path):
    reconstructed(tmp_path)
    (table,), others = tables_of(tmp_path)
    (line,) = table["published"]
    assert line["source"] == "LlamaGen paper, Tables 3 and 4"
    assert dict(zip(table["columns"], line["cells"], strict=True)) == {
        "PSNR (dB)": 20.79,
        "LPIPS": None,
        "rFID": 2.19,
        "SSIM (LlamaGen's)": 0.675,
        "codebook usage": None,
    }
    # The other sizes, and COCO; nothing of vq8, which was not measured.
    assert sorted(line["values"]["rFID"] for line in others) == [0.7, 0.94, 8.11]


@pytest.mark.parametrize(
    "other",
    [
        {"num_images": 5000},
        {"images": "imagenet train"},
        {"images": "coco val", "num_images": 5000},
        {"space": INCEPTION | {"image_size": 384}},
    ],
)
def test_a_table_of_other_images_has_no_published_rows(tmp_path, other):
    reconstructed(tmp_path, **other)
    (table,), others = tables_of(tmp_path)
    assert not table["published"] and 2.19 in [line["values"]["rFID"] for line in others]


def test_rfid_of_other_weights_has_no_published_value_beside_it(tmp_path):
    reconstructed(tmp_path, space=INCEPTION | {"extractor_sha256": "5" * 64})
    (table,), _ = tables_of(tmp_path)
    (line,) = table["published"]
    assert line["cells"][table["columns"].index("rFID")] is None


def test_a_tokenizer_that_nothing_is_published_of_has_nothing_beside_it(tmp_path):
    reconstructed(tmp_path, "mine")
    (table,), others = tables_of(tmp_path)
    assert not table["published"] and not others


def test_replacement_is_a_table_a_tokenizer_with_a_row_a_tree_and_k(tmp_path):
    replaced(tmp_path, "a")
    replaced(tmp_path, "b", sd=None)
    (first, second), _ = tables_of(tmp_path)
    assert [line["about"] for line in first["rows"]] == [
        {"tree": tree, "K": k, "largest cluster": 43} for tree, k in (("masc", 512), ("kmeans", 512), ("masc", 256))
    ]
    assert first["columns"] == ["PSNR (dB)"] and first["rows"][1]["cells"] == [{"mean": 26.2, "sd": 0.09}]
    assert second["rows"][1]["cells"] == [{"mean": 26.2, "sd": None}]


def test_tokenizers_alone_make_a_report(tmp_path):
    reconstructed(tmp_path / "artifacts")
    replaced(tmp_path / "artifacts")
    page, text, content = page_of(tmp_path)
    assert "0 runs and 1 tokenizer in" in page and ">Reconstruction<" in page and ">Semantic replacement<" in page
    assert '27.200<span class="spread">± 0.090 sd</span>' in page
    assert page.count('src="data:image/png;base64,') == 1
    assert "| masc | 512 | 43 |" in text and "| 27.200 ± 0.090 sd |" in text
    assert "| vq16 (published) | LlamaGen paper, Tables 3 and 4 | 20.79 |" in text
    assert [table["kind"] for table in content["tokenizers"]] == ["reconstruction", "replacement"]
    assert {each["file"] for each in content["protocols"]} == {"tokenizer.json", "replacement.json"}
    assert page.count('class="published"') == 1 and "drawn at 384 px" in page


def test_tokenizers_stand_beside_runs(tmp_path):
    make_run(tmp_path / "runs")
    reconstructed(tmp_path / "artifacts")
    page, text, content = page_of(tmp_path, "runs")
    assert "1 run and 1 tokenizer in" in page and text.startswith("# Runs: 1, tokenizers: 1")
    assert (content["num_runs"], content["num_tokenizers"]) == (1, 1)


ROW = row("PSNR (dB)", 20.8, about("vq16"))


@pytest.mark.parametrize(
    ("part", "content", "words"),
    [
        ("tokenizer", "{", "JSON"),
        ("tokenizer", [], "an object"),
        ("tokenizer", {"reconstruction": []}, "one or more rows"),
        ("tokenizer", {"reconstruction": [ROW | {"value": "high"}]}, "at 0.value, found"),
        ("tokenizer", {"reconstruction": [ROW | {"protocol": {}}]}, "lacks tokenizer, images, num_images"),
        ("replacement", {"replacement": [{"tree": "masc", "K": 512}]}, "at 0.largest_cluster"),
        ("replacement", {"replacement": [{"tree": "masc", "K": 2, "largest_cluster": 3, "metrics": []}]}, "one or"),
        ("replacement", {"replacement": []}, "found none"),
    ],
)
def test_a_broken_file_is_named_and_the_others_are_shown(tmp_path, part, content, words):
    artifacts = tmp_path / "artifacts"
    reconstructed(artifacts, "whole")
    files = {"tokenizer": reconstructed(artifacts), "replacement": replaced(artifacts)}
    files[part].write_text(content if isinstance(content, str) else json.dumps(content))
    page, text, found = page_of(tmp_path)
    (skipped,) = found["skipped"]
    assert skipped["place"] == str(files[part]) and words in skipped["reason"]
    assert "measure again" in skipped["reason"] and words in page and words in text
    with tells(rf"type `rm -r .*{files[part].name} && make eval-tokenizer TOKENIZER=vq16`"):
        read_tokenizer_results(files[part], {"tokenizer": "reconstruction"}.get(part, part))
    places = {line["place"] for table in found["tokenizers"] for line in table["rows"]}
    assert places == {str(artifacts / name / "eval") for name in ("vq16", "whole")}


def test_a_broken_image_is_named_and_its_numbers_are_shown(tmp_path):
    replaced(tmp_path / "artifacts").with_name("replacement.png").write_bytes(b"\x89PNG")
    page, _, content = page_of(tmp_path)
    assert "replacement.png" in content["skipped"][0]["place"] and content["tokenizers"] and "<img" not in page


def test_nothing_at_all_is_an_error_still(tmp_path):
    with pytest.raises(InputError, match="no run and no results"):
        page_of(tmp_path)
