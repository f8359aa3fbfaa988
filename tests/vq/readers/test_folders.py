"""What a folder leaves out, repeats or claims: one error, a warning, or an unreadable image."""

import io
import os
import zipfile
from pathlib import Path

import ilsvrc
import numpy as np
import pytest
from image_folders import classes, put
from PIL import Image

from masc.runtime.errors import InputError
from metrics.streams import open_samples
from vq.readers import load_images
from vq.readers.folders import is_held_out
from vq.readers.members import LARGEST_FILE, list_folder
from vq.readers.stored import UnreadableImage, open_image


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    put(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "train/.Trash-0/1.jpg")
    scandir = os.scandir

    def refuse(path):  # as for a folder of another user; the superuser may list all
        if os.fspath(path).endswith(("b", "Trash-0")):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=r"cannot list the folder .*train/b \(Permission denied\)"):
        classes(tmp_path)


def test_class_folders_without_images_are_named(tmp_path):
    put(tmp_path, "train/1_a/1.jpg", "train/2_cat/.hidden.jpg", "train/3_b/notes.txt", "train/4_c/1.jpg")
    (tmp_path / "train" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "train" / "5_d").mkdir()
    with pytest.raises(InputError, match=r"train of .* without images: '2_cat', '3_b', '5_d'; .*end in .jpg"):
        classes(tmp_path)


def test_splits_under_other_names_are_no_classes(tmp_path):
    put(tmp_path, "training/a/1.jpg", "validation/a/1.jpg")
    with pytest.raises(InputError, match="holds the folders training, validation; name them train and val"):
        classes(tmp_path)
    (tmp_path / "validation").rename(tmp_path / "val")
    with pytest.raises(InputError, match="holds a val split but no train"):
        classes(tmp_path)


def test_classes_that_look_the_same_are_refused(tmp_path):
    put(tmp_path, "train/caf\u00e9/1.jpg", "train/cafe\u0301/1.jpg")
    with pytest.raises(InputError, match=r"'cafe\\u0301' and 'caf\\xe9', which look the same"):
        classes(tmp_path)


def test_images_of_other_types_are_left_out_with_a_warning(tmp_path, caplog):
    put(tmp_path, "train/a/1.jpg", "train/a/2.avif", "train/a/.3.gif", "train/a/4.HEIC")
    assert len(classes(tmp_path)) == 1
    assert caplog.text.count("2 images are left out, the first is 'a/") == 1


@pytest.mark.parametrize("name", ["a/caf\udce9.jpg", "a/two\nlines.jpg", "a/two\u2028lines.jpg"])
@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_a_name_that_no_list_can_hold_is_named(tmp_path, name, kind):
    if kind == "folder":
        put(tmp_path / "train", name)
    else:
        (tmp_path / "train.tar").write_bytes(ilsvrc.tar_of([(name, ilsvrc.jpeg(1))]))
    with pytest.raises(InputError, match=r"'a/\w+\\[\w]+.jpg' is not UTF-8 or has a line break") as refused:
        classes(tmp_path)
    assert str(refused.value).isascii()


def test_a_class_keeps_an_image_for_training(tmp_path):
    put(tmp_path, *(f"class_{n:02d}/0.jpg" for n in range(60)), "class_60/0.jpg", "class_60/1.jpg")
    held_out = [f"class_{n:02d}/0.jpg" for n in range(60) if is_held_out(f"class_{n:02d}/0.jpg")]
    assert held_out
    train = classes(tmp_path)
    assert set(held_out) < set(train.keys) and len(train.class_names) == 61
    assert len(load_images("folder", "val", 16, tmp_path)) + len(train) == 62


def test_the_images_that_are_held_out_stay_the_same(tmp_path):
    names = [f"{letter}/{n}.jpg" for letter in "ab" for n in range(100)]
    put(tmp_path, *names, data=b"x")
    val = load_images("folder", "val", 16, tmp_path)
    assert list(val.keys) == sorted(name for name in names if is_held_out(name)) and len(val)


@pytest.mark.parametrize("names", [("pets/cat/1.jpg", "pets/dog/1.jpg"), ("x/train/1.jpg", "x/val/1.jpg")])
def test_a_folder_around_the_classes_is_no_class(tmp_path, names):
    put(tmp_path / "train", *names)
    with pytest.raises(InputError, match=r"would be one class, but it holds folders.*DATA_PATH="):
        classes(tmp_path)


def test_a_file_larger_than_an_image_is_not_read(tmp_path):
    with (tmp_path / "1.jpg").open("wb") as file:
        file.truncate(LARGEST_FILE + 1)
    with pytest.raises(UnreadableImage, match="268435457 bytes; expected an image of at most 268435456"):
        open_image(list_folder(tmp_path), 0)


def test_bytes_that_make_a_decoder_fail_in_any_way_are_an_unreadable_image(tmp_path):
    avif = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(avif, "AVIF")
    broken = bytearray(avif.getvalue())
    start = broken.index(b"mdat") + 4
    broken[start : start + 8] = b"\xff" * 8
    deep = io.BytesIO()
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(deep, "PNG")
    for data, cause in (
        (bytes(broken), "RuntimeError: "),
        (deep.getvalue(), "more than 8 bits a channel"),
        (b"", "format"),
    ):
        put(tmp_path, "1.jpg", data=data)
        with pytest.raises(UnreadableImage, match=rf"the image 1.jpg cannot be read \(.*{cause}"):
            open_image(list_folder(tmp_path), 0)


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_split_within_a_split_is_no_class(tmp_path, kind):
    names = ("train/a/1.jpg", "train/b/1.jpg")
    if kind == "folder":
        put(tmp_path / "train", *names)
    else:
        with zipfile.ZipFile(tmp_path / "train.zip", "w") as archive:
            for name in names:
                archive.writestr(name, ilsvrc.jpeg(1))
    with pytest.raises(InputError, match=r"the folder 'train' in train of .* would be one class, but it holds folders"):
        classes(tmp_path)


@pytest.mark.parametrize("source", ["imagenet", "folder", "coco", "lsun", "ffhq"])
def test_an_error_of_the_file_system_is_one_error(tmp_path, source, monkeypatch):
    def refuse(path, **_):
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "train").mkdir()
    monkeypatch.setattr(Path, "is_dir", lambda path: True)
    monkeypatch.setattr(Path, "iterdir", refuse)
    monkeypatch.setattr(Path, "exists", refuse)
    monkeypatch.setattr(Path, "glob", lambda path, _: refuse(path))
    with pytest.raises(InputError, match=rf"cannot read {tmp_path}.*\(Permission denied\)"):
        load_images(source, "train", 16, tmp_path)


def test_a_file_that_pillow_would_hand_to_another_program_is_unreadable(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_: ran.append(1))
    Image.new("RGB", (8, 8)).save(tmp_path / "1.eps")
    (tmp_path / "1.eps").rename(tmp_path / "1.jpg")
    with pytest.raises(UnreadableImage, match="not an image in one of the formats JPEG, "):
        open_image(list_folder(tmp_path), 0)
    with pytest.raises(InputError, match="not an image in one of the formats JPEG, "):
        open_samples(tmp_path).read(0, 1)
    assert not ran
