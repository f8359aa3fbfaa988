"""What a folder or an archive leaves out, repeats or claims: one error, a warning, or an unreadable image."""

import io
import os
import tarfile
import zipfile
from pathlib import Path

import ilsvrc
import numpy as np
import pytest
from PIL import Image

from masc.runtime.artifacts import save_npz
from masc.runtime.errors import InputError
from metrics.streams import open_samples
from vq.readers import load_images
from vq.readers.folders import is_held_out
from vq.readers.members import LARGEST_FILE, list_folder
from vq.readers.stored import UnreadableImage, open_image
from vq.readers.tars import index_tars
from vq.readers.zips import list_zip


def put(root, *names, data=None):
    """Images below a folder, each of its own colour."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(ilsvrc.jpeg(number) if data is None else data)
    return root


def classes(root):
    return load_images("folder", "train", 16, root)


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


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_class_folders_without_images_in_an_archive_are_named(tmp_path, kind):
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "train.zip", "w") as archive:
            archive.mkdir("2_cat")
            archive.writestr("1_a/1.jpg", ilsvrc.jpeg(1))
            archive.writestr("3_b/notes.txt", b"")
    else:
        with tarfile.open(tmp_path / "train.tar", "w") as archive:
            folder = tarfile.TarInfo("./2_cat")
            folder.type = tarfile.DIRTYPE
            archive.addfile(folder)
            ilsvrc.add(archive, "./1_a/1.jpg", ilsvrc.jpeg(1))
            ilsvrc.add(archive, "./3_b/notes.txt", b"")
    for _ in range(2):  # scanned, then from the index
        with pytest.raises(InputError, match="without images: '2_cat', '3_b'"):
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


def test_what_follows_the_end_of_a_tar_is_not_passed_over(tmp_path):
    parts = [ilsvrc.tar_of([(f"{name}/1.jpg", ilsvrc.jpeg(1))]) for name in "ab"]
    (tmp_path / "train.tar").write_bytes(b"".join(parts))
    with pytest.raises(InputError, match=r"train.tar"):
        classes(tmp_path)


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


@pytest.mark.parametrize("names", [("pets/cat/1.jpg", "pets/dog/1.jpg"), ("x/train/1.jpg", "x/val/1.jpg")])
def test_a_folder_around_the_classes_is_no_class(tmp_path, names):
    put(tmp_path / "train", *names)
    with pytest.raises(InputError, match=r"would be one class, but it holds folders.*DATA_PATH="):
        classes(tmp_path)


@pytest.mark.parametrize("other", ["dog.tar.gz", "dog.ZIP", "dog.7z", "cat/more.tar"])
def test_an_archive_beside_class_folders_is_not_passed_over(tmp_path, other):
    put(tmp_path / "train", "cat/1.jpg")
    (tmp_path / "train" / other).write_bytes(b"x")
    with pytest.raises(InputError, match=other.rpartition("/")[2]):
        classes(tmp_path)


def test_a_tar_for_two_splits_is_refused(tmp_path):
    (tmp_path / "images_train_val.tar").write_bytes(ilsvrc.tar_of([("a/1.jpg", ilsvrc.jpeg(1))]))
    with pytest.raises(InputError, match=r"images_train_val.tar"):
        classes(tmp_path)


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_name_that_occurs_twice_in_an_archive_is_its_last_file(tmp_path, kind):
    files = [("a/1.png", ilsvrc.jpeg(1)), ("a/2.png", ilsvrc.jpeg(2)), ("a/1.png", ilsvrc.jpeg(3))]
    if kind == "tar":
        (tmp_path / "x.tar").write_bytes(ilsvrc.tar_of(files))
        members = index_tars([tmp_path / "x.tar"]).members
    else:
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
            for name, data in files:
                archive.writestr(name, data)
        members = list_zip(tmp_path / "x.zip")
    assert members.names == ("a/1.png", "a/2.png")
    assert [members.read(row) for row in range(2)] == [ilsvrc.jpeg(3), ilsvrc.jpeg(2)]


def test_a_zip_made_on_windows_has_folders(tmp_path):
    with zipfile.ZipFile(tmp_path / "train.zip", "w") as archive:
        archive.writestr("a\\1.jpg", ilsvrc.jpeg(1))
        archive.writestr("b\\1.jpg", ilsvrc.jpeg(2))
    source = classes(tmp_path)
    assert source.keys == ("a/1.jpg", "b/1.jpg") and source.members.read(1) == ilsvrc.jpeg(2)


def test_a_gap_in_the_numbers_of_shards_is_named(tmp_path, caplog):
    for number in (0, 1, 3):
        data = ilsvrc.tar_of([(f"a/{number}.jpg", ilsvrc.jpeg(number))])
        (tmp_path / f"train-{number:03d}.tar").write_bytes(data)
    assert len(classes(tmp_path)) == 3
    assert "1 of the numbers in the names train-*.tar are missing, the first is 2" in caplog.text


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ("012", "1 of the numbers in the names train-*-of-004.tar are missing, the first is 3"),
        ("123", "1 of the numbers in the names train-*-of-004.tar are missing, the first is 0"),
        ("124", "1 of the numbers in the names train-*-of-004.tar are missing, the first is 3"),
        ("0", "3 of the numbers in the names train-*-of-004.tar are missing, the first is 1"),
        ("0123", ""),
        ("1234", ""),
    ],
)
def test_shards_are_as_many_as_their_names_say(tmp_path, numbers, words, caplog):
    for number in numbers:
        data = ilsvrc.tar_of([(f"a/{number}.jpg", ilsvrc.jpeg(1))])
        (tmp_path / f"train-00{number}-of-004.tar").write_bytes(data)
    assert len(classes(tmp_path)) == len(numbers)
    assert words in caplog.text and bool(words) == bool(caplog.text)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_a_member_that_inflates_to_more_than_an_image_is_not_inflated(tmp_path, method, monkeypatch):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", method) as archive:
        archive.writestr("a/1.jpg", bytes(2**20))
    monkeypatch.setattr("vq.readers.members.LARGEST_FILE", 2**20 - 1)
    monkeypatch.setattr(zipfile.ZipExtFile, "read", None)
    with pytest.raises(UnreadableImage, match=r"1048576 bytes; expected an image of at most|compressed by method 12"):
        open_image(list_zip(tmp_path / "x.zip"), 0)


def test_a_file_larger_than_an_image_is_not_read(tmp_path):
    with (tmp_path / "1.jpg").open("wb") as file:
        file.truncate(LARGEST_FILE + 1)
    with pytest.raises(UnreadableImage, match="268435457 bytes; expected an image of at most 268435456"):
        open_image(list_folder(tmp_path), 0)


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


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_archives_of_other_images_of_the_same_size_are_other_images(tmp_path, kind):
    def pack(value):
        data = bytes([value]) * 100
        if kind == "tar":
            (tmp_path / "train.tar").write_bytes(ilsvrc.tar_of([("a/1.jpg", data)]))
        else:
            with zipfile.ZipFile(tmp_path / "train.zip", "w") as archive:
                archive.writestr("a/1.jpg", data)
        os.utime(tmp_path / f"train.{kind}", ns=(value, value))
        return classes(tmp_path)

    first, other = pack(1), pack(2)
    assert first.sha256 != other.sha256
    assert other.members.read(0) == bytes([2]) * 100  # no handle of the first zip is kept


def broken_index(cache, **changed):
    with np.load(cache) as stored:
        arrays = dict(stored) | changed
    np.savez(cache.with_suffix(""), **arrays)


@pytest.mark.parametrize(
    "damage",
    [
        lambda cache: cache.write_bytes(b""),
        lambda cache: cache.write_bytes(cache.read_bytes()[:300]),
        lambda cache: np.save(cache.open("wb"), np.arange(3)),
        lambda cache: np.savez(cache, version=2),
        lambda cache: broken_index(cache, places=np.full((2, 3), 10**12)),
        lambda cache: broken_index(cache, places=np.zeros(6, np.int64)),
        lambda cache: broken_index(cache, header=np.array("[]")),
    ],
)
def test_a_damaged_index_of_tars_is_built_again(tmp_path, damage):
    (tmp_path / "x.tar").write_bytes(ilsvrc.tar_of([("a.jpg", ilsvrc.jpeg(1)), ("a.cls", b"3")]))
    index_tars([tmp_path / "x.tar"])
    (cache,) = tmp_path.glob(".masc-index-*.npz")
    damage(cache)
    found = index_tars([tmp_path / "x.tar"])
    assert found.texts == {1: b"3"} and found.members.read(0) == ilsvrc.jpeg(1)


@pytest.mark.parametrize(
    "lie", [{"archive": 1}, {"offset": 10**9}, {"size": -1}, {"size": 10**15}, {"rows": [9]}, {"names": "a"}]
)
def test_an_index_with_places_outside_of_the_tars_is_not_believed(tmp_path, lie, monkeypatch):
    def save(path, kind, version, arrays, config, parents):
        for column, name in enumerate(("size", "archive", "offset")):
            if name in lie:
                arrays["places"] = arrays["places"].copy()
                arrays["places"][0, column] = lie[name]
        if "rows" in lie:
            arrays["text_rows"] = np.array(lie["rows"])
        if "names" in lie:
            arrays["names"] = np.frombuffer(b"a", np.uint8)
        return save_npz(path, kind, version, arrays, config, parents)

    (tmp_path / "x.tar").write_bytes(ilsvrc.tar_of([("a.jpg", ilsvrc.jpeg(1)), ("a.cls", b"3")]))
    with monkeypatch.context() as patch:
        patch.setattr("vq.readers.tars.save_npz", save)
        index_tars([tmp_path / "x.tar"])
    found = index_tars([tmp_path / "x.tar"])
    assert found.texts == {1: b"3"} and found.members.read(0) == ilsvrc.jpeg(1)


def test_a_tar_that_changes_after_it_was_listed_is_not_read_at_old_places(tmp_path):
    (tmp_path / "x.tar").write_bytes(ilsvrc.tar_of([("a.jpg", ilsvrc.jpeg(1))]))
    members = index_tars([tmp_path / "x.tar"]).members
    os.utime(tmp_path / "x.tar", ns=(1, 1))
    with pytest.raises(UnreadableImage, match=r"x.tar changed after it was listed"):
        open_image(members, 0)


@pytest.mark.parametrize("suffix", ["tar", "zip"])
def test_an_archive_that_is_a_pipe_or_a_broken_link_is_named(tmp_path, suffix):
    os.mkfifo(tmp_path / f"train.{suffix}")
    with pytest.raises(InputError, match=rf"expected a file at .*train.{suffix}, found a folder, a pipe or a device"):
        classes(tmp_path)


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


def test_a_member_without_a_name_does_not_move_the_others(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in ("1.png", "a/2.jpg", "a/3.jpg"):
            archive.writestr(name, ilsvrc.jpeg(int(name[-5])))
        archive.infolist()[0].filename = ""
    members = list_zip(tmp_path / "x.zip")
    assert members.names == ("a/2.jpg", "a/3.jpg")
    assert [members.read(row) for row in range(2)] == [ilsvrc.jpeg(2), ilsvrc.jpeg(3)]


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
