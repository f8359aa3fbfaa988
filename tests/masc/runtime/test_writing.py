"""What the system refuses is one error with its cause, and what it allows has the right permissions and place."""

import errno
import os
import re
import stat
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from written_files import files_of_10_kb, names, write_folder

from masc.runtime import files
from masc.runtime.errors import InputError
from masc.runtime.files import recover, replacing, save_safetensors, save_torch, write_text
from masc.runtime.npy import save_npy, write_npy

WRITERS = {
    "safetensors": lambda tensor, file: save_safetensors(file, {"a": tensor}, {"b": "c"}),
    "torch": lambda tensor, file: save_torch(file, tensor),
    "npy": lambda tensor, file: save_npy(file, tensor.numpy()),
    "npz": lambda tensor, file: np.savez(file.open("wb"), a=tensor.numpy()),
    "zip": lambda tensor, file: write_zip(file, tensor.numpy()),
    "text": lambda tensor, file: file.write_text("a" * len(tensor)),
    "png": lambda tensor, file: Image.fromarray(noise(len(tensor))).save(file, "PNG"),
}


def write_zip(path, array):
    with zipfile.ZipFile(path, "w") as archive, archive.open("a.npy", "w", force_zip64=True) as file:
        write_npy(file, [array], len(array), str(path))


def noise(count):
    return np.random.default_rng(0).integers(0, 256, (count // 100, 100), np.uint8)


@pytest.fixture
def umask():
    """Sets the umask until the end of the test."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_every_file_gets_the_permissions_that_the_umask_gives(tmp_path, umask, mask):
    umask(mask)
    for name, write in WRITERS.items():
        with replacing(tmp_path / "new" / name) as temporary:
            write(torch.zeros(200), temporary)
        with replacing(tmp_path / "new" / "folder" / name) as temporary:
            temporary.mkdir()
            write(torch.zeros(200), temporary / name)
    for path in (tmp_path / "new").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o777 if path.is_dir() else 0o666) & ~mask, path


def test_the_group_of_a_shared_folder_is_kept(tmp_path):
    groups = [group for group in os.getgroups() if group != os.getegid()]
    if os.geteuid() == 0:
        groups.append(12345)
    if not groups:
        pytest.skip("this user has one group")
    os.chown(tmp_path, -1, groups[-1])
    tmp_path.chmod(0o2775)
    with replacing(tmp_path / "folder") as temporary:
        temporary.mkdir()
        save_safetensors(temporary / "a", {"a": torch.zeros(2)})
    with replacing(tmp_path / "b") as temporary:
        save_safetensors(temporary, {"a": torch.zeros(2)})
    assert {path.stat().st_gid for path in tmp_path.rglob("*")} == {groups[-1]}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_limit_on_the_size_of_files_is_named_and_not_a_full_disk(tmp_path, writer):
    words = (
        r"^the file would be larger than a limit on the size of files \(`ulimit -f`: 10000 bytes\) while writing .*big"
    )
    with pytest.raises(InputError, match=words), files_of_10_kb(), replacing(tmp_path / "big") as temporary:
        WRITERS[writer](torch.zeros(100_000), temporary)
    assert names(tmp_path) == []


@pytest.mark.parametrize("writer", ["torch", "numpy"])
def test_a_library_that_names_no_cause_gives_both(tmp_path, writer):
    with (
        pytest.raises(
            InputError, match=r"^no space left, or the file would be larger than a limit .* while writing .*big"
        ),
        files_of_10_kb(),
        replacing(tmp_path / "big") as temporary,
    ):
        if writer == "torch":
            torch.save(torch.zeros(100_000), temporary)
        else:
            with temporary.open("wb") as file:
                np.save(file, np.zeros(100_000))
    assert names(tmp_path) == []


REFUSED = {
    errno.ENOSPC: r"no space left \(\d+ MiB free on its disk\)",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EIO: "the disk answers with an input/output error",
    errno.ESTALE: "the file is gone from its network disk",
    errno.EXDEV: "a directory of a container's image cannot be renamed",
}


@pytest.mark.parametrize("code", REFUSED)
@pytest.mark.parametrize("where", ["open", "write", "rename"])
def test_what_the_system_refuses_is_one_error_with_path_and_cause(tmp_path, monkeypatch, code, where):
    write_text(tmp_path / "a.txt", "old")

    def refuse(*arguments, **options):
        raise OSError(code, os.strerror(code), "elsewhere")

    with monkeypatch.context() as patch:
        if where == "open":
            patch.setattr(os, "open", refuse)
        if where == "rename":
            patch.setattr(Path, "replace", refuse)
        if where == "write":
            patch.setattr(Path, "write_bytes", refuse)
        patch.setattr(Path, "unlink", refuse)  # a cleaning up that fails does not hide the cause
        with pytest.raises(InputError, match=rf"^{REFUSED[code]}.* while writing {re.escape(str(tmp_path))}/a.txt; "):
            write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "old"
    write_text(tmp_path / "a.txt", "new")
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_is_refused_in_a_folder_and_passes_over_what_was_left_in_a_shared_one(umask):
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to other users
        shared, closed = (Path(name) / kind for kind in ("shared", "closed"))
        umask(0o077)
        for path, mode in ((closed, 0o755), (shared, 0o777), (Path(name), 0o755)):
            path.mkdir(exist_ok=True)
            path.chmod(mode)
            for left in (".a.0.partial", ".a.0.partial.lock"):
                (path / left).touch()
        os.seteuid(65534)
        try:
            write_text(shared / "a", "")
            for folder in (closed, closed / "new"):
                with pytest.raises(InputError, match=r"^permission denied.* while writing .*closed"):
                    write_text(folder / "a", "")
            assert recover(closed / "a") == closed / "a"
        finally:
            os.seteuid(0)
        assert names(shared) == [".a.0.partial", ".a.0.partial.lock", "a"]
        write_text(shared / "a", "")
        assert names(shared) == ["a"]


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize(
    "name", ["a b", "a\nb", "ä" * 125, "x" * 250, os.fsdecode(b"\xff\xfe"), "[*]", "'\"$`", "-", ".a.0.partial"]
)
def test_any_name_is_written(tmp_path, name, kind):
    path = tmp_path / name
    for text in ("1", "2"):
        write_text(path, text) if kind == "file" else write_folder(path, text)
        assert (path if kind == "file" else path / "a").read_text() == text
    assert names(tmp_path) == [name]
    if kind == "folder":
        path.rename(files._aside(path))
        recover(path)
        assert names(tmp_path) == [name]


def test_a_name_that_is_too_long_is_said(tmp_path):
    with pytest.raises(InputError, match="the name is longer than the file system allows while writing"):
        write_text(tmp_path / ("x" * 256), "")
    with pytest.raises(InputError, match="the name is longer than the file system allows while writing"):
        write_text(tmp_path / ("x" * 256) / "a", "")
    assert names(tmp_path) == []


def test_a_folder_in_the_place_of_a_file_is_kept(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("two years")
    with pytest.raises(InputError, match=r"a folder is in the place of a file while writing .*mine; move it away"):
        write_text(tmp_path / "mine", "")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "two years"
    assert names(tmp_path) == ["mine"]


def test_a_file_in_the_place_of_a_folder_is_kept(tmp_path):
    (tmp_path / "mine").write_text("two years")
    with pytest.raises(InputError, match=r"a file is in the place of a folder while writing .*mine; move it away"):
        write_folder(tmp_path / "mine", "")
    for path in (tmp_path / "mine" / "a", tmp_path / "mine" / "a" / "b"):
        with pytest.raises(InputError, match=r"expected a folder at .*mine, found a file; move it away"):
            write_text(path, "")
    assert (tmp_path / "mine").read_text() == "two years"
