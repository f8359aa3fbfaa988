"""What a zip, a tar or the index of tars leaves out, repeats or claims: an error, a warning, an unreadable image."""

import os
import tarfile
import zipfile

import ilsvrc
import numpy as np
import pytest
from image_folders import classes, put

from masc.runtime.artifacts import save_npz
from masc.runtime.errors import InputError
from vq.readers.stored import UnreadableImage, open_image
from vq.readers.tars import index_tars
from vq.readers.zips import list_zip


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


def test_what_follows_the_end_of_a_tar_is_not_passed_over(tmp_path):
    parts = [ilsvrc.tar_of([(f"{name}/1.jpg", ilsvrc.jpeg(1))]) for name in "ab"]
    (tmp_path / "train.tar").write_bytes(b"".join(parts))
    with pytest.raises(InputError, match=r"train.tar"):
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


def test_a_member_without_a_name_does_not_move_the_others(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in ("1.png", "a/2.jpg", "a/3.jpg"):
            archive.writestr(name, ilsvrc.jpeg(int(name[-5])))
        archive.infolist()[0].filename = ""
    members = list_zip(tmp_path / "x.zip")
    assert members.names == ("a/2.jpg", "a/3.jpg")
    assert [members.read(row) for row in range(2)] == [ilsvrc.jpeg(2), ilsvrc.jpeg(3)]
