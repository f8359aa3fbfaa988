"""Links to images, folders and archives: they are followed, and images that are there twice are counted or refused."""

import os
import shutil
import tarfile
import zipfile

import ilsvrc
import pytest
from coco_folder import make_coco
from image_folders import classes, put

from masc.runtime.errors import InputError
from vq.readers import load_images
from vq.readers.stored import UnreadableImage


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


def test_a_loop_of_links_is_named(tmp_path):
    put(tmp_path, "train/a/1.jpg", "train/b/1.jpg")
    (tmp_path / "train" / "loop").symlink_to("../train")
    with pytest.raises(InputError, match=r"train/loop are one folder because of a link"):
        classes(tmp_path)


def test_a_folder_that_two_links_share_is_named_and_one_link_is_followed(tmp_path):
    put(tmp_path, "store/1.jpg", "d/train/a/1.jpg")
    (tmp_path / "d" / "train" / "b").symlink_to(tmp_path / "store")
    assert classes(tmp_path / "d").keys == ("a/1.jpg", "b/1.jpg")
    (tmp_path / "d" / "train" / "c").symlink_to(tmp_path / "store")
    with pytest.raises(InputError, match=r"train/[bc] and .*train/[bc] are one folder because of a link"):
        classes(tmp_path / "d")


def test_a_real_folder_entered_by_a_link_too_is_named(tmp_path):
    put(tmp_path, "train/a/1.jpg", "train/b/1.jpg")
    (tmp_path / "train" / "0").symlink_to("b")
    with pytest.raises(InputError, match="are one folder because of a link"):
        classes(tmp_path)


def test_a_class_folder_that_is_a_broken_link_is_named_and_a_broken_image_is_unreadable(tmp_path):
    put(tmp_path, "train/a/1.jpg")
    (tmp_path / "train" / "a" / "2.jpg").symlink_to("nowhere")
    os.mkfifo(tmp_path / "train" / "a" / "3.jpg")
    source = classes(tmp_path)
    assert source.keys == ("a/1.jpg", "a/2.jpg", "a/3.jpg")
    for row, cause in ((1, "no file at"), (2, "a device or a pipe")):
        with pytest.raises(UnreadableImage, match=cause):
            source.image(row)
    (tmp_path / "train" / "b").symlink_to("nowhere")
    with pytest.raises(InputError, match=r"cannot follow .*train/b \(No such file"):
        classes(tmp_path)


def test_links_within_a_tar_are_their_files_and_others_are_refused(tmp_path):
    def link(archive, name, target, kind):
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, target
        archive.addfile(member)

    with tarfile.open(tmp_path / "train.tar", "w") as archive:
        ilsvrc.add(archive, "a/1.jpg", ilsvrc.jpeg(1))
        link(archive, "b/hard.jpg", "a/1.jpg", tarfile.LNKTYPE)
        link(archive, "b/soft.jpg", "../a/1.jpg", tarfile.SYMTYPE)
        link(archive, "b/chain.jpg", "soft.jpg", tarfile.SYMTYPE)
    source = classes(tmp_path)
    assert source.keys == ("a/1.jpg", "b/chain.jpg", "b/hard.jpg", "b/soft.jpg")
    assert all(source.members.read(row) == ilsvrc.jpeg(1) for row in range(4))
    whole = (tmp_path / "train.tar").read_bytes()
    for name, target, kind, words in (
        ("b/outside.jpg", "/etc/passwd", tarfile.SYMTYPE, "the link 'b/outside.jpg' to .*which is no file in it"),
        ("c", "a", tarfile.SYMTYPE, "the link 'c' to 'a', which is a folder"),
        ("b/pipe.jpg", "", tarfile.FIFOTYPE, "holds 'b/pipe.jpg', which is a pipe"),
    ):
        (tmp_path / "train.tar").write_bytes(whole)
        with tarfile.open(tmp_path / "train.tar", "a") as archive:
            link(archive, name, target, kind)
        with pytest.raises(InputError, match=words):
            classes(tmp_path)


def test_a_file_that_replaces_a_link_in_a_tar_is_read(tmp_path):
    with tarfile.open(tmp_path / "train.tar", "w") as archive:
        member = tarfile.TarInfo("a/1.jpg")
        member.type, member.linkname = tarfile.SYMTYPE, "2.jpg"
        archive.addfile(member)
        ilsvrc.add(archive, "a/2.jpg", ilsvrc.jpeg(2))
        ilsvrc.add(archive, "a/1.jpg", ilsvrc.jpeg(1))
    members = classes(tmp_path).members
    assert [members.read(row) for row in range(2)] == [ilsvrc.jpeg(1), ilsvrc.jpeg(2)]


def test_links_in_a_zip_are_their_files_and_links_to_folders_are_refused(tmp_path):
    def link(archive, name, target):
        member = zipfile.ZipInfo(name)
        member.create_system, member.external_attr = 3, 0o120777 << 16
        archive.writestr(member, target)

    with zipfile.ZipFile(tmp_path / "train.zip", "w") as archive:
        archive.writestr("a/1.jpg", ilsvrc.jpeg(1))
        link(archive, "b/1.jpg", "../a/1.jpg")
    source = classes(tmp_path)
    assert source.keys == ("a/1.jpg", "b/1.jpg") and source.members.read(1) == ilsvrc.jpeg(1)
    with zipfile.ZipFile(tmp_path / "train.zip", "a") as archive:
        link(archive, "c", "a")
    with pytest.raises(InputError, match="the link 'c' to 'a', which is a folder"):
        classes(tmp_path)


def test_images_replaced_by_others_of_the_same_size_are_other_images(tmp_path):
    put(tmp_path, "store/1", "store/2", "d/train/a/1.jpg", data=bytes(700))
    link = tmp_path / "d" / "train" / "a" / "2.jpg"
    link.symlink_to(tmp_path / "store" / "1")
    os.utime(tmp_path / "store" / "2", ns=(1, 1))
    before = classes(tmp_path / "d")
    link.unlink()
    link.symlink_to(tmp_path / "store" / "2")
    after = classes(tmp_path / "d")
    assert before.sha256 != after.sha256 and before.earlier_sha256 == after.earlier_sha256
    assert before.identity(slice(0, 1)) == after.identity(slice(0, 1))
