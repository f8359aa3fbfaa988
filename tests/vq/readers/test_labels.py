"""Labels of WebDataset shards, of the devkit and of COCO's captions: right, or refused by name."""

import io
import json
import tarfile

import ilsvrc
import numpy as np
import pytest
from PIL import Image

from masc.runtime.errors import InputError
from vq.readers import load_images
from vq.readers.imagenet import _labelled_samples
from vq.readers.stored import open_image
from vq.readers.tars import index_tars


def labels_of(root, *files):
    """The labels of a shard with the given files: a name, or a name and a text."""
    content = [(file, ilsvrc.jpeg(1)) if isinstance(file, str) else (file[0], file[1].encode()) for file in files]
    (root / "x.tar").write_bytes(ilsvrc.tar_of(content))
    members, labels = _labelled_samples(index_tars([root / "x.tar"]))
    return dict(zip(members.names, labels.tolist(), strict=True))


def test_a_name_with_dots_has_the_label_of_its_own_name(tmp_path):
    found = labels_of(tmp_path, "0000.05.png", ("0000.05.cls", "7"), "0000.06.png", ("0000.06.cls", "8"))
    assert found == {"0000.05.png": 7, "0000.06.png": 8}


def test_a_sample_shares_the_name_before_the_first_dot(tmp_path):
    found = labels_of(tmp_path, "v1.0/0000.rgb.jpg", ("v1.0/0000.cls", "7"), ("v1.0/0000.meta.json", "{}"))
    assert found == {"v1.0/0000.rgb.jpg": 7}
    assert labels_of(tmp_path, "a.JPG", ("a.CLS", " 7\n")) == {"a.JPG": 7}


@pytest.mark.parametrize(
    "files",
    [
        ["0000.05.png", "0000.06.png", ("0000.cls", "7")],
        ["0000.jpg", "0000.seg.png", ("0000.cls", "7")],
        ["0000.jpg", "0000.png", ("0000.cls", "7")],
        ["0000.jpg", ("0000.a.cls", "7"), ("0000.b.cls", "8")],
        ["0000.05.png", ("0000.05.cls", "7"), "0000.06.png"],
    ],
)
def test_a_sample_with_two_images_or_two_labels_is_named(tmp_path, files):
    with pytest.raises(InputError, match=r"one image and one label for each sample of .*x.tar, found 0000"):
        labels_of(tmp_path, *files)


@pytest.mark.parametrize(
    ("sidecar", "words"),
    [
        (("a.cls", "n01440764"), "the label 'n01440764': expected a whole number in a .cls"),
        (("a.cls", "1_0"), "the label '1_0'"),
        (("a.cls", "\u0663"), "the label"),
        (("a.cls", "-1"), "the label '-1'"),
        (("a.json", '{"label": 3.7}'), r"the label 3\.7"),
        (("a.json", '{"label": true}'), "the label True"),
        (("a.json", '{"label": [3]}'), r"the label \[3\]"),
        (("a.json", "[3]"), "does not hold what it should"),
        (("a.json", "[" * 100_000), "does not hold what it should"),
        (("a.json", "{}"), "no label: expected"),
        (("b.cls", "3"), "no label: expected"),
        (("a.cls", "1000"), r"outside of 0\.\.999"),
    ],
)
def test_a_label_that_is_no_number_of_a_class_is_shown(tmp_path, sidecar, words):
    with pytest.raises(InputError, match=rf"(the sample a.jpg of .*|x.tar/a.jpg ){words}"):
        labels_of(tmp_path, "a.jpg", sidecar)


def test_a_label_beside_json_that_is_no_object_is_one_error(tmp_path):
    with pytest.raises(InputError, match=r"x.tar/a.jpg does not hold what it should"):
        labels_of(tmp_path, "a.jpg", ("a.cls", "3"), ("a.json", "[]"))


@pytest.mark.parametrize("label", ["5", '"5"', "5.0", "-3", "3.5"])
def test_two_labels_of_a_sample_that_differ_are_both_named(tmp_path, label):
    with pytest.raises(InputError, match=r"a.jpg of .*x.tar has the label 3 in its .cls and -?\d(\.\d)? in its .json"):
        labels_of(tmp_path, "a.jpg", ("a.cls", "3"), ("a.json", f'{{"label": {label}}}'))


@pytest.mark.parametrize("label", ["3", '"3"', "3.0", '"tench"', "null"])
def test_a_label_in_json_that_does_not_differ_is_let_pass(tmp_path, label):
    assert labels_of(tmp_path, "a.jpg", ("a.cls", "3"), ("a.json", f'{{"label": {label}}}')) == {"a.jpg": 3}


def test_what_has_no_image_that_is_read_is_counted(tmp_path, caplog):
    files = ["1.jpg", ("1.cls", "7"), "2.jxl", ("2.cls", "3"), ("3.cls", "4"), ("3.json", "{}"), (".4.cls", "5")]
    assert labels_of(tmp_path, *files) == {"1.jpg": 7}
    assert "1 images are left out, the first is '2.jxl'" in caplog.text
    assert (
        "3 labels (.cls, .json) are left out because their samples have no image, the first is '2.cls'" in caplog.text
    )
    caplog.clear()
    assert labels_of(tmp_path, "1.jpg", ("1.cls", "7"), ("1.json", "{}")) == {"1.jpg": 7} and not caplog.text


@pytest.mark.parametrize("damage", ["no mat", "other labels", "not gz"])
def test_a_devkit_with_other_content_is_one_error(tmp_path, damage):
    ilsvrc.official_tars(tmp_path)
    file = tmp_path / "ILSVRC2012_devkit_t12.tar.gz"
    with tarfile.open(file) as tar:
        content = {name: tar.extractfile(name).read() for name in tar.getnames()}
    meta, truth = content
    content |= {"no mat": {meta: b"x" * 300}, "other labels": {truth: b"5000\nx\n"}, "not gz": {}}[damage]
    with tarfile.open(file, "w:gz") as tar:
        for name, data in content.items():
            ilsvrc.add(tar, name, data)
    if damage == "not gz":
        file.write_bytes(b"x" * 300)
    with pytest.raises(InputError, match=r"the devkit in .* is truncated or not the official one .*download it again"):
        load_images("imagenet", "val", 16, tmp_path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("n01440764/n01443537_1.JPEG", "names the classes n01440764 and n01443537"),
        ("ILSVRC2012_val_00000000.JPEG", "has no label: the devkit holds labels of 50 images"),
    ],
)
def test_an_image_in_the_folder_of_another_class_or_without_a_label_is_named(tmp_path, name, words, monkeypatch):
    monkeypatch.setattr("vq.readers.imagenet._ground_truth", lambda root: np.arange(50))
    (tmp_path / "val" / name).parent.mkdir(parents=True)
    (tmp_path / "val" / name).write_bytes(ilsvrc.jpeg(1))
    with pytest.raises(InputError, match=words):
        load_images("imagenet", "val", 16, tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([], "is not a captions file of COCO"),
        ({"images": []}, "annotations"),
        ({"images": [{"id": 1}], "annotations": []}, "file_name"),
        ({"images": [{"id": "x", "file_name": "1.jpg"}], "annotations": []}, r"images\.0\.id"),
        ({"images": [], "annotations": [{"id": 1, "image_id": 1, "caption": None}]}, r"annotations\.0\.caption"),
        ({"images": [{"id": 1, "file_name": f"{n}.jpg"} for n in (1, 2)], "annotations": []}, "image id 1 twice"),
        ({"images": [{"id": n, "file_name": "1.jpg"} for n in (1, 2)], "annotations": []}, "file name '1.jpg' twice"),
    ],
)
def test_captions_of_another_form_are_one_error(tmp_path, content, words):
    (tmp_path / "val2017").mkdir()
    (tmp_path / "val2017" / "1.jpg").write_bytes(ilsvrc.jpeg(1))
    (tmp_path / "captions_val2017.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=rf"captions_val2017.json.*{words}"):
        load_images("coco", "val", 16, tmp_path)


def coco(root, annotations, encoding="utf-8"):
    """COCO's images 1 and 2, with the given pairs of a caption's id and the id of its image."""
    root.mkdir(exist_ok=True)
    content = {
        "images": [{"id": number, "file_name": f"{number}.jpg"} for number in (1, 2)],
        "annotations": [{"id": one, "image_id": image, "caption": "é"} for one, image in annotations],
    }
    (root / "captions_val2017.json").write_text(json.dumps(content, ensure_ascii=False), encoding)
    (root / "val2017").mkdir(exist_ok=True)
    for number in (1, 2):
        (root / "val2017" / f"{number}.jpg").write_bytes(ilsvrc.jpeg(number))
    return load_images("coco", "val", 16, root)


def test_captions_of_images_that_are_not_listed_are_counted(tmp_path, caplog):
    assert len(coco(tmp_path, [(10, 1), (11, 2)])) == 2 and not caplog.text
    found = coco(tmp_path, [(10, 1), (11, 7), (12, 2), (13, 8)])
    assert [len(one["captions"]) for one in found.captions] == [1, 1]
    assert "2 of the 4 captions are left out" in caplog.text and "the first is the caption 11" in caplog.text


def test_images_without_captions_and_images_that_are_not_listed_are_counted(tmp_path, caplog):
    (tmp_path / "val2017").mkdir()
    (tmp_path / "val2017" / "3.jpg").write_bytes(ilsvrc.jpeg(3))
    assert len(coco(tmp_path, [(10, 1)])) == 2
    assert (
        "1 of the images in" in caplog.text
        and "left out because they are not listed, the first is '3.jpg'" in caplog.text
    )
    assert "are without captions, the first is '2.jpg'" in caplog.text


def test_captions_with_a_byte_order_mark_are_read_and_utf16_is_called_so(tmp_path):
    assert coco(tmp_path, [(10, 1)], "utf-8-sig").captions[0]["captions"] == ["é"]
    with pytest.raises(InputError, match=r"captions_val2017.json, found UTF-16; save it as UTF-8"):
        coco(tmp_path, [(10, 1)], "utf-16")


def test_two_images_of_one_name_are_not_chosen_between(tmp_path):
    content = {"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": []}
    (tmp_path / "captions_val2017.json").write_text(json.dumps(content))
    for folder in "ab":
        (tmp_path / "val2017" / folder).mkdir(parents=True)
        (tmp_path / "val2017" / folder / "1.jpg").write_bytes(ilsvrc.jpeg(1))
    with pytest.raises(InputError, match=r"holds the images a/1.jpg and b/1.jpg, which have one name"):
        load_images("coco", "val", 16, tmp_path)


@pytest.mark.parametrize("kind", ["CMYK", "LA", "RGBA", "P", "1", "animated", "rotated"])
def test_pixels_are_those_of_llamagens_loader(tmp_path, kind):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 6, 3), np.uint8)
    image, buffer, options = Image.fromarray(pixels), io.BytesIO(), {}
    if kind in ("CMYK", "LA", "P", "1"):
        image = image.convert(kind)
    elif kind == "RGBA":
        image.putalpha(Image.fromarray(pixels[..., 0]))
    elif kind == "animated":
        options = {"save_all": True, "append_images": [image.rotate(180)]}
    else:
        options = {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"}
    image.save(buffer, {"CMYK": "TIFF", "rotated": "JPEG"}.get(kind, "PNG"), **options)
    (tmp_path / "x.tar").write_bytes(ilsvrc.tar_of([("1.png", buffer.getvalue())]))
    ours = open_image(index_tars([tmp_path / "x.tar"]).members, 0)
    with Image.open(buffer) as theirs:  # torchvision's pil_loader
        assert np.array_equal(np.asarray(ours), np.asarray(theirs.convert("RGB")))
    assert ours.size == (6, 8)
