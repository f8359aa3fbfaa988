"""FFHQ and LSUN: the same from files, a zip or tars; images that are there twice, and folders of something else."""

import zipfile

import ilsvrc
import pytest
from image_folders import classes, put

from masc.runtime.errors import InputError
from vq.readers import load_images
from vq.readers.folders import is_held_out


def test_ffhq_in_several_versions_is_refused_and_one_version_is_read(tmp_path):
    for folder in ("images1024x1024", "thumbnails128x128", "in-the-wild-images"):
        put(tmp_path / folder, *(f"00000/{n:05d}.png" for n in range(3)))
    with pytest.raises(InputError, match=r"one image twice, as (\S+?)/\S+ and as \S+; .*DATA_PATH=.*\1"):
        load_images("ffhq", "train", 16, tmp_path)
    assert len(load_images("ffhq", "train", 16, tmp_path / "images1024x1024")) == 3


def test_ffhq_in_several_versions_one_level_down_is_refused(tmp_path):
    put(tmp_path / "data", "ffhq/images1024x1024/00000/00001.png", "ffhq/thumbnails128x128/00000/00001.png")
    with pytest.raises(InputError, match=r"DATA_PATH=.*/data/ffhq/images1024x1024$"):
        load_images("ffhq", "train", 16, tmp_path / "data")


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_face_in_two_formats_is_refused_even_if_one_is_held_out(tmp_path, split):
    put(tmp_path, "a/00022.png", "a/00022.webp", "a/00001.png")
    assert is_held_out("a/00022.webp") and not is_held_out("a/00022.png")
    with pytest.raises(InputError, match=r"one image twice, as a/00022.\w+ and as a/00022.\w+; keep one"):
        load_images("ffhq", split, 16, tmp_path)
    assert len(classes(tmp_path)) == 2  # names of other sets are not keys


def test_a_face_in_two_tars_is_refused(tmp_path):
    for number in range(2):
        (tmp_path / f"train-{number}.tar").write_bytes(ilsvrc.tar_of([("00000.png", ilsvrc.jpeg(1))]))
    with pytest.raises(InputError, match=r"holds one image twice, as 00000.png and as 00000.png"):
        load_images("ffhq", "train", 16, tmp_path)
    assert len(load_images("lsun", "train", 16, tmp_path)) == 2


@pytest.mark.parametrize("names", [("n01440764_1.JPEG", "n01440764_1.png"), ("ILSVRC2012_val_00000001.JPEG",) * 2])
def test_an_image_of_imagenet_that_is_there_twice_is_refused(tmp_path, names):
    for folder, name in zip(("n01440764", "n01440764" if names[0] != names[1] else "n01443537"), names, strict=True):
        put(tmp_path / "val" / folder, name)
    with pytest.raises(InputError, match=rf"one image twice, as n\d+/{names[0]} and as n\d+/{names[1]}"):
        load_images("imagenet", "val", 16, tmp_path)


@pytest.mark.parametrize("kind", ["folders", "split", "tars"])
def test_several_categories_of_lsun_are_refused_and_one_is_read(tmp_path, kind):
    def add(category, name):
        if kind == "tars":
            (tmp_path / f"{category}_train.tar").write_bytes(ilsvrc.tar_of([(name, ilsvrc.jpeg(1))]))
        else:
            put(tmp_path / ("train" if kind == "split" else ""), f"{category}/0/{name}")

    add("bedroom", "1.webp")
    add("bedroom_train", "2.webp")
    assert len(load_images("lsun", "train", 16, tmp_path)) == 2
    add("Church_Outdoor", "3.webp")
    with pytest.raises(InputError, match=r"train of .* several categories of LSUN: bedroom, church_outdoor; .*=folder"):
        load_images("lsun", "train", 16, tmp_path)


@pytest.mark.parametrize("source", ["ffhq", "lsun"])
def test_a_collection_named_one_level_too_high_is_said(tmp_path, source, caplog):
    put(tmp_path / "data", *(f"set/00000/{n:05d}.png" for n in range(3)))
    assert len(load_images(source, "train", 16, tmp_path / "data")) and f"DATA_PATH={tmp_path}/data/set" in caplog.text
    caplog.clear()
    assert len(load_images(source, "train", 16, tmp_path / "data" / "set")) and not caplog.text
    put(tmp_path / "split", "set/train/00000.png", "set/val/00001.png")
    with pytest.raises(
        InputError, match=r"'set' in train of .* holds the splits train, val, .*DATA_PATH=.*/split/set,"
    ):
        load_images(source, "train", 16, tmp_path / "split")


def collection():
    names = [f"{n // 100:02d}000/{n:05d}.png" for n in range(300)]
    return {name: ilsvrc.jpeg(n, kind="PNG") for n, name in enumerate(names)}


@pytest.mark.parametrize("store", ["folder", "zip", "deflated zip", "tars"])
@pytest.mark.parametrize("source", ["ffhq", "lsun"])
def test_collections_are_the_same_from_files_a_zip_or_tars(tmp_path, store, source):
    files = collection()
    if store == "folder":
        for name, data in files.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(data)
    elif store == "tars":
        names = list(files)
        for part in range(2):
            data = ilsvrc.tar_of([(f"./{name}", files[name]) for name in names[part::2]])
            (tmp_path / f"{part}.tar").write_bytes(data)
    else:
        method = zipfile.ZIP_STORED if store == "zip" else zipfile.ZIP_DEFLATED
        with zipfile.ZipFile(tmp_path / "images.zip", "w", method) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    train, val = (load_images(source, split, 16, tmp_path) for split in ("train", "val"))
    assert list(train.keys) == sorted(name for name in files if not is_held_out(name))
    assert list(val.keys) == sorted(name for name in files if is_held_out(name)) and len(val) > 0
    assert train.members.read(7) == files[train.keys[7]]
    assert set(train.labels) == {0} and train.class_names == (source,)


def test_lsun_as_lmdb_is_refused_with_what_to_do(tmp_path):
    (tmp_path / "bedroom_train_lmdb").mkdir()
    (tmp_path / "bedroom_train_lmdb" / "data.mdb").write_bytes(b"")
    with pytest.raises(InputError, match=r"the package lmdb.* Export its images"):
        load_images("lsun", "train", 16, tmp_path)
