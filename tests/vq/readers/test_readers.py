"""Images on disk: every layout gives the same images and labels, and what is broken is named."""

import json
import os
import shutil
import tarfile
import zipfile

import ilsvrc
import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from masc.runtime.errors import InputError
from vq.crops import center_crop
from vq.readers import load_images
from vq.readers.imagenet import wnids
from vq.readers.stored import UnreadableImage, open_image
from vq.readers.zips import list_zip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("folders")
    ilsvrc.class_folders(root, "train")
    ilsvrc.class_folders(root, "val")
    return root


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    root = tmp_path_factory.mktemp("tars")
    ilsvrc.official_tars(root)
    return root


def colour(source, row):
    return ilsvrc.np.asarray(source.image(row))[0, 0].astype(int)


def shows(source, row):
    """The label that an image's colour tells, within what JPEG changes."""
    red, green, _ = colour(source, row)
    return red + 256 * round(green / 40)


def assert_labels_fit(source, rows):
    for row in rows:
        assert abs(shows(source, row) - source.labels[row]) <= 3, source.keys[row]


def test_the_wnids_are_the_sorted_thousand():
    assert len(set(wnids())) == 1000 and list(wnids()) == sorted(wnids())
    assert wnids()[0] == "n01440764" and wnids()[360] == "n02444819" and wnids()[-1] == "n15075141"


def test_class_folders_are_read_as_image_folder_reads_them(folders):
    theirs = ImageFolder(folders / "train")
    ours = load_images("imagenet", "train", 16, folders)
    assert [str(folders / "train" / key) for key in ours.keys] == [path for path, _ in theirs.samples]
    assert ours.labels.tolist() == theirs.targets and ours.class_names == wnids()
    assert np.array_equal(np.asarray(ours.image(5)), np.asarray(theirs[5][0]))
    assert_labels_fit(ours, range(0, 1000, 97))
    assert ours.pixels.shape == (1000, 16, 16, 3)
    assert np.array_equal(ours.pixels[3:5][1], center_crop(ours.image(4), 16))
    assert len(ours.missing) == 1_281_167 - 1000


def test_the_official_tars_give_the_images_of_the_folders_in_the_same_order(tars, folders):
    train, val = (load_images("imagenet", split, 16, tars) for split in ("train", "val"))
    assert len(train) == 2000 and list(train.keys) == sorted(train.keys)
    assert train.keys[:2] == ("n01440764/n01440764_31.JPEG", "n01440764/n01440764_4.JPEG")
    assert_labels_fit(train, range(0, 2000, 199))
    assert_labels_fit(val, range(0, 1000, 97))
    assert np.bincount(val.labels).tolist() == [1] * 1000
    assert val.missing[0] == "ILSVRC2012_val_00001001.JPEG" and len(val.missing) == 49_000
    assert train.members.read(0) == ilsvrc.jpeg(0)


def test_the_index_of_tars_is_kept_and_made_anew_when_a_tar_changes(tars, monkeypatch, tmp_path):
    for file in tars.glob("ILSVRC*"):
        shutil.copy(file, tmp_path)
    first = load_images("imagenet", "val", 16, tmp_path)
    assert len(list(tmp_path.glob(".masc-index-*.npz"))) == 1
    with monkeypatch.context() as patch:
        patch.setattr("vq.readers.tars._scan", None)
        patch.setattr("vq.readers.imagenet._ground_truth", lambda root: first.labels)
        again = load_images("imagenet", "val", 16, tmp_path)
    assert again.keys == first.keys and again.sha256 == first.sha256
    os.utime(tmp_path / "ILSVRC2012_img_val.tar", (1, 1))
    monkeypatch.setattr("vq.readers.tars._scan", None)
    with pytest.raises(TypeError):
        load_images("imagenet", "val", 16, tmp_path)


@pytest.mark.parametrize("kind", ["cls", "json"])
def test_shards_are_read_and_another_class_order_is_found_out(tmp_path, kind):
    ilsvrc.shards(tmp_path, kind=kind)
    for _ in range(2):  # scanned, then from the index
        source = load_images("imagenet", "train", 16, tmp_path)
        assert source.labels.tolist() == list(range(1000))
        assert_labels_fit(source, range(0, 1000, 97))
    other = tmp_path / "other"
    other.mkdir()
    ilsvrc.shards(other, label_of=lambda label: (label + 1) % 1000, kind=kind)
    with pytest.raises(InputError, match=r"has the label 1, which is n01443537 .* but its name says n01440764"):
        load_images("imagenet", "train", 16, other)
    ilsvrc.shards(other, label_of=lambda label: 5000, kind=kind)
    with pytest.raises(InputError, match=r"label 5000, outside of 0\.\.999"):
        load_images("imagenet", "train", 16, other)


def test_the_thousand_classes_must_be_there_and_no_others(folders, tmp_path):
    root = tmp_path / "imagenet"
    shutil.copytree(folders, root)
    shutil.rmtree(root / "train" / wnids()[17])
    with pytest.raises(InputError, match=rf"1 of the 1000 classes .* the first is {wnids()[17]}"):
        load_images("imagenet", "train", 16, root)
    extra = root / "val" / "n99999999"
    extra.mkdir()
    (extra / "1.JPEG").write_bytes(ilsvrc.jpeg(1))
    with pytest.raises(InputError, match=r"n99999999 .* is not one of the 1,000 classes"):
        load_images("imagenet", "val", 16, root)
    extra.rename(root / "val" / "dogs")
    with pytest.raises(InputError, match=r"dogs/1.JPEG in .* has no class: expected folders named by WNID"):
        load_images("imagenet", "val", 16, root)


def test_a_validation_tar_without_its_devkit_is_refused(tars, tmp_path):
    shutil.copy(tars / "ILSVRC2012_img_val.tar", tmp_path)
    with pytest.raises(InputError, match=r"ILSVRC2012_devkit_t12.tar.gz with their labels is missing"):
        load_images("imagenet", "val", 16, tmp_path)


@pytest.mark.parametrize("keep", [0.3, 0.999])
def test_a_truncated_tar_is_named(tmp_path, keep):
    ilsvrc.shards(tmp_path)
    file = tmp_path / "imagenet1k-train-0001.tar"
    data = file.read_bytes()
    with tarfile.open(file) as whole:
        border = whole.getmembers()[-2].offset
    end = len(data.rstrip(b"\0"))
    file.write_bytes(data[: int(end * keep)])
    with pytest.raises(InputError, match=r"imagenet1k-train-0001.tar is not a tar, or it is truncated"):
        load_images("imagenet", "train", 16, tmp_path)
    file.write_bytes(data[:border])  # of two members
    with pytest.raises(InputError, match=r"imagenet1k-train-0001.tar .* ends early, at byte"):
        load_images("imagenet", "train", 16, tmp_path)


def test_a_truncated_tar_within_the_tar_is_named(tmp_path):
    inner = ilsvrc.tar_of([("n01440764_1.JPEG", ilsvrc.jpeg(0)), ("n01440764_2.JPEG", ilsvrc.jpeg(0))])
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(ilsvrc.tar_of([("n01440764.tar", inner[:1500])]))
    with pytest.raises(InputError, match=r"ILSVRC2012_img_train.tar is not a tar, or it is truncated"):
        load_images("imagenet", "train", 16, tmp_path)


@pytest.mark.parametrize("name", ["../evil.jpg", "a/../../evil.jpg", "/etc/evil.jpg", "..\\evil.jpg"])
def test_names_that_leave_their_archive_are_refused(tmp_path, name):
    with tarfile.open(tmp_path / "images.tar", "w") as tar:
        ilsvrc.add(tar, name, ilsvrc.jpeg(0))
    with pytest.raises(InputError, match=r"images.tar holds a member named .*evil.*points outside of the archive"):
        load_images("ffhq", "train", 16, tmp_path)
    (tmp_path / "images.tar").unlink()
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr(name, ilsvrc.jpeg(0))
    with pytest.raises(InputError, match=r"images.zip holds a member named .*evil.*points outside of the archive"):
        load_images("ffhq", "train", 16, tmp_path)


def test_any_folder_of_class_folders_is_read(tmp_path):
    for split, classes in (("train", ("b c", "a", "a-b")), ("val", ("a",))):
        for name in classes:
            (tmp_path / split / name).mkdir(parents=True)
            for n in (10, 9):
                Image.new("RGB", (20, 20)).save(tmp_path / split / name / f"{n}.png")
            (tmp_path / split / name / "notes.txt").write_text("not an image")
    train = load_images("folder", "train", 16, tmp_path)
    theirs = ImageFolder(tmp_path / "train")
    assert [str(tmp_path / "train" / key) for key in train.keys] == [path for path, _ in theirs.samples]
    assert train.class_names == ("a", "a-b", "b c") and train.labels.tolist() == theirs.targets
    val = load_images("folder", "val", 16, tmp_path)
    assert val.class_names == train.class_names and val.labels.tolist() == [0, 0]
    (tmp_path / "val" / "a").rename(tmp_path / "val" / "z")
    with pytest.raises(InputError, match=r"val of .* has the class 'z', which train does not have"):
        load_images("folder", "val", 16, tmp_path)
    shutil.rmtree(tmp_path / "val")
    with pytest.raises(InputError, match="holds a train split but no val"):
        load_images("folder", "val", 16, tmp_path)
    (tmp_path / "train" / "loose.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"loose.png of .* is outside of the class folders"):
        load_images("folder", "train", 16, tmp_path)


@pytest.mark.parametrize("zipped", [False, True])
def test_coco_has_captions_by_image_id(tmp_path, zipped):
    ids = [30, 7, 12]
    images = [{"id": image_id, "file_name": f"{image_id:012d}.jpg"} for image_id in ids]
    captions = [
        {"id": 10 * image_id + n, "image_id": image_id, "caption": f"{image_id} said {n} "}
        for image_id in ids
        for n in (1, 0)
    ]
    (tmp_path / "annotations").mkdir()
    file = tmp_path / "annotations" / "captions_val2017.json"
    file.write_text(json.dumps({"images": images, "annotations": captions}))
    files = {f"{image_id:012d}.jpg": ilsvrc.jpeg(image_id) for image_id in (7, 12, 99)}
    if zipped:
        with zipfile.ZipFile(tmp_path / "val2017.zip", "w") as archive:
            for name, data in files.items():
                archive.writestr(f"val2017/{name}", data)
    else:
        (tmp_path / "val2017").mkdir()
        for name, data in files.items():
            (tmp_path / "val2017" / name).write_bytes(data)
    source = load_images("coco", "val", 16, tmp_path)
    assert [caption["image_id"] for caption in source.captions] == [7, 12]
    assert source.captions[1]["captions"] == ["12 said 0", "12 said 1"]
    assert source.members.read(1) == files["000000000012.jpg"]
    assert source.missing == ("000000000030.jpg",)
    file.write_text(file.read_text()[:-20])
    with pytest.raises(InputError, match=r"captions_val2017.json is not a captions file of COCO, or it is truncated"):
        load_images("coco", "val", 16, tmp_path)
    with pytest.raises(InputError, match=r"expected one file annotations/captions_trainYEAR.json"):
        load_images("coco", "train", 16, tmp_path)


def test_sources_on_disk_need_a_folder_that_exists(tmp_path):
    with pytest.raises(InputError, match="DATA_PATH=FOLDER"):
        load_images("imagenet", "train", 256)
    with pytest.raises(InputError, match=f"no folder {tmp_path}/none"):
        load_images("imagenet", "train", 256, f"{tmp_path}/none")
    with pytest.raises(InputError, match=r"no train images of ImageNet in .*ILSVRC2012_img_train.tar"):
        load_images("imagenet", "train", 256, tmp_path)
    with pytest.raises(InputError, match="no images in"):
        load_images("ffhq", "train", 256, tmp_path)


def test_class_folders_come_before_what_lies_beside_them(tmp_path):
    ilsvrc.class_folders(tmp_path, "train")
    (tmp_path / "ILSVRC2012_img_train_t3.tar").write_bytes(ilsvrc.tar_of([("n02085620_1.JPEG", ilsvrc.jpeg(0))]))
    assert len(load_images("imagenet", "train", 16, tmp_path)) == 1000


def test_the_official_tar_unpacked_once_or_moved_into_its_folder_is_read(tars, tmp_path):
    whole = load_images("imagenet", "train", 16, tars)
    once = tmp_path / "once" / "train"
    once.mkdir(parents=True)
    with tarfile.open(tars / "ILSVRC2012_img_train.tar") as outer:
        outer.extractall(once, filter="data")
    moved = tmp_path / "moved" / "train"
    moved.mkdir(parents=True)
    shutil.copy(tars / "ILSVRC2012_img_train.tar", moved)
    for root in (once.parent, moved.parent):
        found = load_images("imagenet", "train", 16, root)
        assert np.array_equal(found.labels, whole.labels)
        assert np.array_equal(found.pixels[::400], whole.pixels[::400])


def test_archives_beside_images_are_not_chosen_between(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)
        (tmp_path / split / "a" / "1.jpg").write_bytes(ilsvrc.jpeg(1))
    with zipfile.ZipFile(tmp_path / "train" / "thumbs.zip", "w") as archive:
        archive.writestr("a/2.jpg", ilsvrc.jpeg(2))
    with pytest.raises(InputError, match=r"holds images and the archive thumbs.zip beside them"):
        load_images("folder", "train", 16, tmp_path)


def test_an_encrypted_image_in_a_zip_is_unreadable(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a/1.jpg", ilsvrc.jpeg(1))
    content = bytearray((tmp_path / "x.zip").read_bytes())
    content[6] |= 1  # the encryption bit of the local header, and of the directory's entry
    content[content.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(UnreadableImage, match=r"a/1.jpg.*encrypted"):
        open_image(list_zip(tmp_path / "x.zip"), 0)
