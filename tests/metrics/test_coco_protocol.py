"""Captions and reference images of the COCO protocol, on a small COCO in the official layout."""

import json

import numpy as np
import pytest
from coco_folder import file_name, make_coco
from PIL import Image
from torchvision import transforms
from user_errors import tells

from llamagen.conditions.captions import read_captions
from llamagen.evaluation.coco import ChoiceConfig, make_captions
from masc.runtime.errors import InputError
from masc.runtime.files import hash_file
from metrics.coco_protocol import (
    CaptionList,
    CocoProtocolConfig,
    CroppedImages,
    choose_captions,
    coco_source,
    describe,
    lanczos_crop,
    load_captions,
    save_captions,
)
from metrics.streams import NpzImages, SourceImages
from vq.crops import center_crop

RNG = np.random.default_rng(0)
QUOTED = '"Head shot" of a zebra, with grass'


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    return make_coco(tmp_path_factory.mktemp("coco"))


def protocol(**changes):
    return CocoProtocolConfig(**{"name": "coco", "evaluator": "torch-fidelity", "metrics": ["FID"], **changes})


def test_a_choice_has_one_own_caption_an_image_in_the_order_of_the_ids(coco):
    chosen = choose_captions(coco, "val2014", 12, 0)
    assert len(chosen) == len(set(chosen.image_ids)) == 12 and chosen.image_ids == sorted(chosen.image_ids)
    content = json.loads((coco / "annotations" / "captions_val2014.json").read_text())
    of = {row["id"]: row for row in content["annotations"]}
    for text, image, own in zip(chosen.texts, chosen.image_ids, chosen.caption_ids, strict=True):
        assert of[own]["image_id"] == image and text == " ".join(of[own]["caption"].splitlines()).strip()
    ranks = [
        sorted(row["id"] for row in of.values() if row["image_id"] == image).index(own)
        for image, own in zip(chosen.image_ids, chosen.caption_ids, strict=True)
    ]
    assert len(set(ranks)) > 1  # not always the first


def test_a_choice_depends_on_the_seed_and_not_on_the_order_of_the_file(coco, tmp_path):
    chosen = choose_captions(coco, "val2014", 12, 0)
    turned = choose_captions(make_coco(tmp_path, reverse=True), "val2014", 12, 0)
    assert (turned.texts, turned.image_ids, turned.caption_ids) == (chosen.texts, chosen.image_ids, chosen.caption_ids)
    assert turned.ids_sha256 == chosen.ids_sha256 and turned.sha256 == chosen.sha256
    assert choose_captions(coco, "val2014", 12, 1).ids_sha256 != chosen.ids_sha256
    fewer = choose_captions(coco, "val2014", 5, 0)
    assert set(fewer.ids.splitlines()) < set(chosen.ids.splitlines())


def test_hashes_change_with_the_content():
    one = CaptionList(["a", "b"], [1, 2], [10, 20], {})
    assert CaptionList(["a", "c"], [1, 2], [10, 20], {}).sha256 != one.sha256
    assert CaptionList(["a", "c"], [1, 2], [10, 20], {}).ids_sha256 == one.ids_sha256
    assert CaptionList(["a", "b"], [1, 3], [10, 20], {}).ids_sha256 != one.ids_sha256
    assert CaptionList(["a", "b"], [1, 2], [10, 21], {}).ids_sha256 != one.ids_sha256
    assert one.first(1).ids_sha256 != one.ids_sha256 and CaptionList(["a", "b"]).ids_sha256 is None


def test_a_choice_is_kept_with_its_ids_and_read_by_text_features_in_its_order(coco, tmp_path):
    chosen, path = choose_captions(coco, "val2014", 12, 0), tmp_path / "chosen.json"
    save_captions(path, chosen)
    assert load_captions(path) == chosen
    assert hash_file(tmp_path / "chosen.ids.txt") == chosen.ids_sha256 == chosen.protocol["ids_sha256"]
    read = read_captions(path)
    assert read.texts == chosen.texts and read.images == list(map(str, chosen.image_ids))
    content = json.loads(path.read_text())
    content["annotations"][3]["caption"] += "!"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="does not match its own SHA-256"):
        load_captions(path)


@pytest.mark.parametrize("name", ["c.csv", "c.CSV", "c.tsv"])
def test_the_first_line_of_a_table_is_no_caption_whatever_its_suffix(tmp_path, name):
    (tmp_path / name).write_text("Prompt\na cat\n")
    assert load_captions(tmp_path / name).texts == ["a cat"]
    choice = ChoiceConfig(captions=str(tmp_path / name), artifacts=str(tmp_path))
    assert make_captions(choice).read_text() == "a cat\n"


@pytest.mark.parametrize("name", ["c.jsonl", "c.JSON", "c.ndjson", "c.parquet"])
def test_what_may_be_no_lines_is_not_read_as_lines(tmp_path, name):
    (tmp_path / name).write_text('{"image_path": "a", "text": ["a cat"]}\n')
    with pytest.raises(InputError, match=rf"{name}"):
        load_captions(tmp_path / name)


def test_llamagens_table_is_read_as_llamagen_reads_it(tmp_path):
    file = tmp_path / "coco_captions.csv"
    file.write_text(f"\ufeffPrompt\n A cat, on a mat \n{QUOTED}\nA \u2028 dog\n", newline="\r\n")
    captions = load_captions(file)
    assert captions.texts == ["A cat, on a mat", "Head shot of a zebra, with grass", "A \u2028 dog"]
    assert captions.ids_sha256 is None and "without image ids" in captions.protocol["captions"]
    for content, words in (
        ('Prompt\n"a cat\na dog"\n', "caption 1 of .* spans several lines"),
        ("x" * 200_000, "field"),
        ("Prompt\n\na dog\n", "row 1 of .* holds no caption"),
        ("Prompt\na cat\tand\n", "row 1 of .* or several"),
    ):
        file.write_text(content)
        with pytest.raises(InputError, match=words):
            load_captions(file)
    file.write_text("Caption\nA cat\n")
    with pytest.raises(InputError, match="expected a line `Prompt`"):
        load_captions(file)


def test_what_is_no_list_of_captions_is_refused(coco, tmp_path):
    with tells(r"is no selection of captions.*choose from it; type `make coco-captions"):
        load_captions(coco / "annotations" / "captions_val2014.json")
    (tmp_path / "gap.txt").write_text("a\n\nb\n")
    with pytest.raises(InputError, match=r"line 2 of .*gap.txt is blank"):
        load_captions(tmp_path / "gap.txt")
    with pytest.raises(InputError, match=r"no captions at .*none.json"):
        load_captions(tmp_path / "none.json")
    (tmp_path / "cut.json").write_text('{"info": {')
    with pytest.raises(InputError, match="cannot read the captions of"):
        load_captions(tmp_path / "cut.json")


def test_annotations_that_are_missing_of_another_year_or_too_few_are_named(coco, tmp_path):
    with pytest.raises(InputError, match=r"no folder .*nowhere; name the folder of COCO"):
        choose_captions(tmp_path / "nowhere", "val2014", 5, 0)
    with pytest.raises(InputError, match=r"expected one file annotations/captions_val2014.json in .*, found none"):
        choose_captions(tmp_path, "val2014", 5, 0)
    other = make_coco(tmp_path / "later", split="val2017")
    with pytest.raises(InputError, match=r"captions_val2014.json in .*, found .*captions_val2017.json"):
        choose_captions(other, "val2014", 5, 0)
    with pytest.raises(InputError, match=r"21 images were requested, but .* has captions of 20"):
        choose_captions(coco, "val2014", 21, 0)


def test_both_years_may_lie_in_one_folder(tmp_path):
    make_coco(make_coco(tmp_path), split="val2017", ids=range(5, 30, 5))
    assert len(coco_source(tmp_path, "val2014", 16, "adm")) == 20
    assert len(coco_source(tmp_path, "val2017", 16, "adm")) == 5


def test_references_are_all_images_or_the_paired_ones_in_their_order(coco):
    whole = coco_source(coco, "val2014", 16, "adm")
    assert whole.split == "val2014" and whole.keys == tuple(file_name(image) for image in range(3, 63, 3))
    some = coco_source(coco, "val2014", 16, "adm", [9, 3, 60])
    assert some.keys == (file_name(9), file_name(3), file_name(60)) and some.sha256 != whole.sha256
    for row, image in enumerate((9, 3, 60)):
        stored = Image.open(coco / "val2014" / file_name(image)).convert("RGB")
        assert np.array_equal(some.pixels[row], center_crop(stored, 16))
    lanczos = SourceImages(coco_source(coco, "val2014", 16, "lanczos", [9])).read(0, 1)
    assert np.array_equal(lanczos[0], lanczos_crop(Image.open(coco / "val2014" / file_name(9)), 16))
    with pytest.raises(
        InputError, match="2 images of the captions, image 4 first, are not among the images of val2014"
    ):
        coco_source(coco, "val2014", 16, "adm", [3, 4, 5])


@pytest.mark.parametrize("size", [(31, 20), (20, 33), (24, 24), (21, 40)])
def test_the_lanczos_crop_is_the_released_one(size):
    image = Image.fromarray(RNG.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    square = transforms.functional.center_crop(image, min(size))
    assert np.array_equal(lanczos_crop(image, 16), np.asarray(square.resize((16, 16), Image.Resampling.LANCZOS)))


def test_samples_of_the_right_size_stay_and_others_are_cropped_alike(tmp_path):
    pixels = RNG.integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", pixels)
    for crop in ("adm", "lanczos"):
        same = CroppedImages(NpzImages(tmp_path / "a.npz"), 4, 16, crop)
        assert len(same) == 4 and np.array_equal(same.read(1, 9), pixels[1:4])
        assert np.array_equal(lanczos_crop(Image.fromarray(pixels[0]), 16), pixels[0])
    large = RNG.integers(0, 256, (3, 40, 36, 3), dtype=np.uint8)
    np.savez(tmp_path / "b.npz", large)
    crops = {"adm": center_crop, "lanczos": lanczos_crop}
    found = {name: CroppedImages(NpzImages(tmp_path / "b.npz"), 3, 16, name).read(0, 3) for name in crops}
    for name, crop in crops.items():
        assert np.array_equal(found[name], np.stack([crop(Image.fromarray(image), 16) for image in large]))
    assert not np.array_equal(found["adm"], found["lanczos"])


def test_a_references_name_says_what_decides_it():
    names = [
        protocol(**changes).reference_name("val2014", "0123456789ab")
        for changes in ({}, {"pairing": "paired"}, {"resize": "pil-bicubic", "crop": "lanczos"}, {"size": 64})
    ]
    assert names == [
        "coco256-val2014",
        "coco256-val2014-paired-01234567",
        "coco256-val2014-lanczos-pil-bicubic",
        "coco64-val2014",
    ]
    for bad in ({"crop": "square"}, {"pairing": "some"}, {"size": 0}):
        with pytest.raises(ValueError, match=f"protocol.{next(iter(bad))}"):
            protocol(**bad)


def test_no_number_is_said_without_what_it_is_of():
    about = {"num_images": 30000, "crop": "adm", "image_size": 256, "resize": "tf1-bilinear", "captions": "val2014"}
    against = {"reference": "x", "reference_images": "paired", "reference_size": 30000, "reference_split": "val2014"}
    said = describe({**about, **against})
    for word in ("30,000 samples", "the paired 30,000 images of val2014", "adm crop to 256", "tf1-bilinear"):
        assert word in said
    assert "all 40,504 images of val2014" in describe(
        {**about, **against, "reference_images": "all", "reference_size": 40504}
    )
    assert "'A photo depicts <caption>'" in describe({**about, "text": "A photo depicts <caption>"})
