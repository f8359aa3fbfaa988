"""Images that are there under two names because of links: of both splits, or twice in one."""

import os
import shutil
import tarfile
import zipfile

import ilsvrc
import pytest
from coco_folder import make_coco

from masc.runtime.errors import InputError
from vq.readers import load_images


def put(root, *names):
    """Images below a folder, each of its own colour."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(ilsvrc.jpeg(number))
    return root


def pack(path, *names):
    """A zip or a tar of images."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [(name, ilsvrc.jpeg(number)) for number, name in enumerate(names)]
    if path.suffix == ".tar":
        path.write_bytes(ilsvrc.tar_of(files))
        return
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files:
            archive.writestr(name, data)


def val_is_train(root):
    put(root, "train/a/1.jpg", "train/a/2.jpg")
    (root / "val").symlink_to("train")


def train_is_val(root):
    put(root, "val/a/1.jpg", "val/a/2.jpg")
    (root / "train").symlink_to("val")


def both_are_one_store(root):
    put(root, "store/1.jpg", "store/2.jpg")
    for split in ("train", "val"):
        (root / split / "a").mkdir(parents=True)
        for name in ("1.jpg", "2.jpg"):
            (root / split / "a" / name).symlink_to(root / "store" / name)


def soft_links(root):
    put(root, "train/a/1.jpg", "train/a/2.jpg", "val/a/0.jpg")
    for name in ("1.jpg", "2.jpg"):
        (root / "val" / "a" / name).symlink_to(f"../../train/a/{name}")


def hard_links(root):
    put(root, "train/a/1.jpg", "train/a/2.jpg", "val/a/0.jpg")
    for name in ("1.jpg", "2.jpg"):
        os.link(root / "train" / "a" / name, root / "val" / "a" / name)


def linked_folder(root):
    put(root, "train/a/1.jpg", "train/a/2.jpg", "train/b/1.jpg", "val/b/1.jpg")
    (root / "val" / "a").symlink_to("../train/a")


def zips(root):
    pack(root / "train.zip", "a/1.jpg", "b/1.jpg")
    (root / "val.zip").symlink_to("train.zip")


def tars(root):
    pack(root / "train-0.tar", "a/1.jpg")
    (root / "val-0.tar").symlink_to("train-0.tar")


def tars_in_folders(root):
    pack(root / "train" / "0.tar", "a/1.jpg")
    (root / "val").mkdir()
    os.link(root / "train" / "0.tar", root / "val" / "0.tar")


@pytest.mark.parametrize(
    ("make", "found"),
    [
        *((val_is_train, "2 of the 2"), (train_is_val, "2 of the 2"), (both_are_one_store, "2 of the 2")),
        *((soft_links, "2 of the 3"), (hard_links, "2 of the 3"), (linked_folder, "2 of the 3")),
        *((zips, "1 of the 1"), (tars, "1 of the 1"), (tars_in_folders, "1 of the 1")),
    ],
)
@pytest.mark.parametrize("source", ["folder", "lsun"])
def test_images_of_both_splits_are_counted_once_both_are_opened(tmp_path, make, found, source, caplog):
    make(tmp_path)
    for split in ("train", "val"):
        assert len(load_images(source, split, 16, tmp_path))
    assert f"{found} files with images of " in caplog.text
    assert "would be those of the training" in caplog.text


def test_images_of_coco_in_both_splits_are_counted(tmp_path, caplog):
    make_coco(tmp_path, range(3), "train2017")
    make_coco(tmp_path, range(3), "val2017")
    shutil.rmtree(tmp_path / "val2017")
    (tmp_path / "val2017").mkdir()
    for number, file in enumerate(sorted((tmp_path / "train2017").iterdir())):
        (tmp_path / "val2017" / f"COCO_val2017_{number:012d}.jpg").symlink_to(file)
    assert len(load_images("coco", "val", 16, tmp_path)) == 3
    assert "3 of the 3 files with images of val" in caplog.text


def test_links_to_other_images_are_let_pass(tmp_path, caplog):
    put(tmp_path, "store/1.jpg", "store/2.jpg")
    for split, name in (("train", "1.jpg"), ("val", "2.jpg")):
        (tmp_path / split / "a").mkdir(parents=True)
        (tmp_path / split / "a" / name).symlink_to(tmp_path / "store" / name)
        (tmp_path / split / "a" / "broken.jpg").symlink_to("nowhere")
        (tmp_path / split / "a" / "also broken.jpg").symlink_to("nowhere")
    for split in ("train", "val"):
        assert len(load_images("folder", split, 16, tmp_path)) == 3
    assert not caplog.text


@pytest.mark.parametrize("kind", ["soft", "hard", "tar", "zip"])
def test_an_image_that_is_there_twice_in_a_split_is_counted(tmp_path, kind, caplog):
    if kind == "tar":
        with tarfile.open(tmp_path / "train.tar", "w") as archive:
            ilsvrc.add(archive, "a/1.jpg", ilsvrc.jpeg(1))
            member = tarfile.TarInfo("b/2.jpg")
            member.type, member.linkname = tarfile.LNKTYPE, "a/1.jpg"
            archive.addfile(member)
    elif kind == "zip":
        with zipfile.ZipFile(tmp_path / "train.zip", "w") as archive:
            archive.writestr("a/1.jpg", ilsvrc.jpeg(1))
            member = zipfile.ZipInfo("b/2.jpg")
            member.create_system, member.external_attr = 3, 0o120777 << 16
            archive.writestr(member, "../a/1.jpg")
    else:
        put(tmp_path, "train/a/1.jpg", "train/b/1.jpg")
        one, other = tmp_path / "train" / "a" / "1.jpg", tmp_path / "train" / "b" / "2.jpg"
        os.link(one, other) if kind == "hard" else other.symlink_to(one)
    assert len(load_images("folder", "train", 16, tmp_path)) == (2 if kind in ("tar", "zip") else 3)
    count = "1 of the 2" if kind in ("tar", "zip") else "1 of the 3"
    assert f"{count} images are read again under other names because of links, the first is " in caplog.text
    assert "'a/1.jpg'" in caplog.text and "'b/2.jpg'" in caplog.text


def test_two_tars_that_are_one_file_are_refused(tmp_path):
    pack(tmp_path / "train-0.tar", "a/1.jpg")
    (tmp_path / "train-1.tar").symlink_to("train-0.tar")
    with pytest.raises(InputError, match=r"train-0.tar and .*train-1.tar are one file because of a link"):
        load_images("folder", "train", 16, tmp_path)
