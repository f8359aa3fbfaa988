"""Files that are whole or absent, whoever else writes them, whatever the system answers."""

import contextlib
import errno
import fcntl
import itertools
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from dying import killed
from written_files import names, write_folder

from masc.runtime import files
from masc.runtime.errors import InputError
from masc.runtime.files import (
    recover,
    remove_leftovers,
    replacing,
    write_json,
    write_text,
)


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_behind(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(RuntimeError), replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert names(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


# A process that writes a file and a folder, and waits for a line within both. It has the number that a container gives.
WRITER = """
import os, sys
from pathlib import Path
from masc.runtime.files import replacing
os.getpid = lambda: 1
with replacing(Path(sys.argv[1])) as file, replacing(Path(sys.argv[2])) as folder:
    file.write_text("theirs")
    folder.mkdir()
    (folder / "a").write_text("theirs")
    print("writing", flush=True)
    sys.stdin.readline()
"""


@contextlib.contextmanager
def writer(folder):
    """A second process that writes `file` and `folder` below `folder` until it reads a line."""
    command = [sys.executable, "-c", WRITER, folder / "file", folder / "folder"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "writing\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_two_processes_of_one_number_write_one_target_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 1)
    with writer(tmp_path) as process:
        write_text(tmp_path / "file", "ours")
        write_folder(tmp_path / "folder", "ours")
        assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "a").read_text() == "ours"
        process.communicate("\n")
        assert process.returncode == 0
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "a").read_text() == "theirs"
    assert names(tmp_path) == ["file", "folder"]


def test_what_a_killed_process_left_is_removed_by_the_next_write_into_the_folder(tmp_path):
    with writer(tmp_path) as process:
        process.kill()
        process.wait()
        assert len(names(tmp_path)) == 4
        write_text(tmp_path / "other", "")
    assert names(tmp_path) == ["other"]


@pytest.mark.parametrize("whose", ["pid 1", "this process", "another process"])
def test_what_an_earlier_version_left_is_removed_whatever_its_number(tmp_path, whose):
    number = {"pid 1": 1, "this process": os.getpid()}.get(whose, 12345)
    (tmp_path / f".a.txt.{number}.partial").write_text("half")
    (tmp_path / f".last.{number}.partial").mkdir()
    (tmp_path / f".last.{number}.partial" / "a").write_text("half")
    write_text(tmp_path / "a.txt", "whole")
    write_folder(tmp_path / "last", "whole")
    assert names(tmp_path) == ["a.txt", "last"]


@pytest.fixture
def disk(monkeypatch):
    """What is asked of the disk, in order: `flush NAME` and `NAME -> NAME`."""
    asked = []

    def recorded(name, function):
        def call(source, target):
            asked.append(f"{source.name} -> {target.name}")
            return function(source, target)

        monkeypatch.setattr(Path, name, call)

    def fsync(descriptor):
        asked.append(f"flush {Path(f'/proc/self/fd/{descriptor}').readlink().name}")

    recorded("rename", Path.rename)
    recorded("replace", Path.replace)
    monkeypatch.setattr(os, "fsync", fsync)
    return asked


def test_a_file_is_on_the_disk_before_it_has_its_name_and_the_name_after(tmp_path, disk):
    write_text(tmp_path / "new" / "a", "")
    written = ["flush .a.0.partial", ".a.0.partial -> a", "flush new"]
    assert disk == [f"flush {tmp_path.name}", *written]
    disk.clear()
    write_text(tmp_path / "new" / "a", "")
    assert disk == written
    disk.clear()
    with replacing(tmp_path / "new" / "a", is_flushed=False) as temporary:
        temporary.touch()
    assert disk == written[1:2]


def test_everything_in_a_folder_is_on_the_disk_before_the_old_one_is_moved_and_its_name_before_it_is_removed(
    tmp_path, disk
):
    write_folder(tmp_path / "last", "1")
    disk.clear()
    with replacing(tmp_path / "last") as temporary:
        (temporary / "sub").mkdir(parents=True)
        (temporary / "sub" / "b").touch()
        (temporary / "a").touch()
    written = ["flush b", "flush sub", "flush a", "flush .last.0.partial"]
    named = ["last -> .last.old", ".last.0.partial -> last", f"flush {tmp_path.name}"]
    assert disk == [*written, *named, ".last.old -> .last.0.partial"]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_that_flushes_nothing_is_written_to(tmp_path, monkeypatch, code):
    def refuse(descriptor):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    for text in ("1", "2"):
        write_folder(tmp_path / "new" / "last", text)
    assert (tmp_path / "new" / "last" / "a").read_text() == "2"


@pytest.mark.parametrize(("code", "words"), [(errno.ENOSPC, "no space left"), (errno.EIO, "input/output error")])
def test_a_disk_that_cannot_hold_what_was_written_keeps_the_old(tmp_path, monkeypatch, code, words):
    def refuse(descriptor):
        raise OSError(code, os.strerror(code))

    write_folder(tmp_path / "last", "old")
    write_text(tmp_path / "a", "old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        for write in (write_folder, write_text):
            with pytest.raises(InputError, match=f"{words}.* while writing "):
                write(tmp_path / ("last" if write is write_folder else "a"), "new")
    assert (tmp_path / "last" / "a").read_text() == (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a", "last"]


@pytest.mark.parametrize("cause", ["kill", "power cut"])
@pytest.mark.parametrize("write", [write_text, write_folder])
def test_a_death_at_any_moment_leaves_the_old_or_the_new_and_nothing_after_the_next_write(
    tmp_path, cut_power, write, cause
):
    path = tmp_path / "folder" / "a"

    def read():
        found = recover(path)
        return (found / "a" if found.is_dir() else found).read_text()

    write(path, "old")
    for operation in itertools.count():
        was_killed = killed(lambda: write(path, "new"), operation)
        if cause == "power cut":
            cut_power(path.parent)
        assert read() in (("old", "new") if was_killed else ("new",))
        write(path, "old")
        assert names(path.parent) == ["a"]
        if not was_killed:
            break
    assert operation > 5


def test_processes_that_write_and_restore_the_same_targets_do_not_disturb_each_other(tmp_path):
    def work():
        for number in range(60):
            write_text(tmp_path / "file", str(number) * 100)
            write_folder(tmp_path / "folder", str(number) * 100)
            recover(tmp_path / "folder")

    children = []
    for _ in range(3):
        child = os.fork()
        if not child:
            with contextlib.suppress(BaseException):
                work()
                os._exit(0)
            os._exit(1)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    write_text(tmp_path / "file", "")
    assert names(tmp_path) == ["file", "folder"] and len((tmp_path / "folder" / "a").read_text()) in (100, 200)


def test_a_large_folder_is_searched_once(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "CROWDED", 2)
    for name in "abcd":
        write_text(tmp_path / name, "")
    (tmp_path / ".a.7.partial").write_text("")
    write_text(tmp_path / "a", "")
    assert (tmp_path / ".a.7.partial").exists()
    remove_leftovers(tmp_path)
    assert not (tmp_path / ".a.7.partial").exists()


def test_leftovers_on_a_read_only_disk_stay(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for name in (".a.0.partial", ".a.0.partial.lock", ".b.0.partial"):
        (tmp_path / name).touch()
    monkeypatch.setattr(os, "open", refuse)
    remove_leftovers(tmp_path)
    remove_leftovers(tmp_path / "absent")
    assert len(names(tmp_path)) == 3


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EIO])
def test_without_locks_a_temporary_counts_as_left_after_a_day(tmp_path, monkeypatch, code):
    def flock(file, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    for number, age in ((0, 0), (1, 25 * 3600)):
        for name in (f".a.{number}.partial", f".a.{number}.partial.lock"):
            (tmp_path / name).write_text("")
            os.utime(tmp_path / name, (time.time() - age,) * 2)
    write_text(tmp_path / "a", "whole")
    assert names(tmp_path) == [".a.0.partial", ".a.0.partial.lock", "a"]


def test_a_directory_moved_aside_by_a_killed_process_comes_back(tmp_path):
    assert recover(tmp_path / "last") == tmp_path / "last"
    write_folder(tmp_path / "last", "1")
    (tmp_path / "last").rename(tmp_path / ".last.old")  # where a kill between the two renames leaves it
    for _ in range(2):
        assert recover(tmp_path / "last") == tmp_path / "last"
        assert names(tmp_path) == ["last"] and (tmp_path / "last" / "a").read_text() == "1"
    write_folder(tmp_path / "last", "2")
    assert names(tmp_path) == ["last"]


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_where_nothing_can_be_renamed_it_is_read_from_its_other_place(tmp_path, monkeypatch, code):
    def refuse(source, target):
        raise OSError(code, os.strerror(code))

    write_folder(tmp_path / ".last.old", "1")
    monkeypatch.setattr(Path, "rename", refuse)
    assert recover(tmp_path / "last") == tmp_path / ".last.old"


def test_a_write_over_a_directory_that_was_moved_aside_removes_the_old_one_last(tmp_path):
    write_folder(tmp_path / "last", "1")
    (tmp_path / "last").rename(tmp_path / ".last.old")
    write_folder(tmp_path / "last", "2")
    assert names(tmp_path) == ["last"] and (tmp_path / "last" / "a").read_text() == "2"


@pytest.mark.parametrize("theirs", ["restored", "written"])
def test_two_processes_may_restore_a_directory_at_once(tmp_path, monkeypatch, theirs):
    write_folder(tmp_path / ".last.old", "1")
    rename = Path.rename

    def second(source, target):  # another process was faster
        if theirs == "restored":
            rename(source, target)
        else:
            target.mkdir()
            (target / "b").touch()
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", second)
    assert recover(tmp_path / "last") == tmp_path / "last"
    assert (tmp_path / "last").is_dir()


def test_a_directory_that_appears_during_a_write_is_replaced(tmp_path, monkeypatch):
    rename, seen = Path.rename, []

    def raced(source, target):
        if not seen:  # another process puts its own directory there first
            seen.append(target)
            shutil.copytree(source, target)
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", raced)
    write_folder(tmp_path / "last", "ours")
    assert names(tmp_path) == ["last"] and (tmp_path / "last" / "a").read_text() == "ours"


@pytest.mark.parametrize("write", [write_folder, write_text])
@pytest.mark.parametrize("target", ["folder", "file", "nothing"])
def test_nothing_behind_a_link_is_replaced(tmp_path, write, target):
    home = tmp_path / "home"
    (home / "folder").mkdir(parents=True)
    (home / "folder" / "thesis").write_text("kept")
    (home / "file").write_text("kept")
    (tmp_path / "link").symlink_to(home / target)
    with pytest.raises(InputError, match=r"link is a link to .*home/.*, and nothing behind a link is replaced"):
        write(tmp_path / "link", "text")
    assert (home / "folder" / "thesis").read_text() == (home / "file").read_text() == "kept"
    assert names(tmp_path) == ["home", "link"] and names(home) == ["file", "folder"]


def test_a_link_to_a_disk_that_is_not_there_is_refused(tmp_path):
    (tmp_path / "artifacts").symlink_to(tmp_path / "disk" / "artifacts")
    with pytest.raises(InputError, match=r"expected a folder at .*artifacts, found a link to .*disk/artifacts, where"):
        write_text(tmp_path / "artifacts" / "emoji32" / "a", "")
    assert names(tmp_path) == ["artifacts"]


def test_a_loop_of_links_is_refused(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(InputError, match=r"expected a folder at .*a, found a link to b, where there is no folder"):
        write_text(tmp_path / "a" / "c", "")


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs a second file system")
def test_a_target_on_another_file_system_is_reached_through_a_link(tmp_path):
    other = Path("/dev/shm") / f"masc-{os.getpid()}-{tmp_path.name}"
    other.mkdir()
    try:
        (tmp_path / "checkpoints").symlink_to(other)
        for text in ("1", "2"):
            write_folder(tmp_path / "checkpoints" / "last", text)
        assert (other / "last" / "a").read_text() == "2" and names(other) == ["last"]
    finally:
        shutil.rmtree(other)


def test_text_is_utf_8_in_any_locale(tmp_path):
    code = "import sys, masc.runtime.files as files; files.write_text(sys.argv[1], chr(228))"
    environment = os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    subprocess.run([sys.executable, "-c", code, tmp_path / "a"], env=environment, check=True)
    assert (tmp_path / "a").read_bytes() == "ä".encode()
    write_json(tmp_path / "b", "ä")
    assert (tmp_path / "b").read_bytes() == b'"\\u00e4"\n'


def test_a_name_in_a_text_that_is_not_utf_8_is_said(tmp_path):
    with pytest.raises(InputError, match=r"a.txt cannot hold the name 'of cat\\udcff\.jpg', which is not UTF-8"):
        write_text(tmp_path / "a.txt", f"of {os.fsdecode(b'cat' + bytes([255]))}.jpg")
    assert names(tmp_path) == []


def test_files_are_saved_in_one_place(root):
    """These functions write with other permissions, or do not say why the system refuses a write."""
    pattern = re.compile(r"\bsave_file\(|\btorch\.save\(|\bnp\.save\(|\btempfile\b|open_memmap\(.*w\+")
    found = [
        str(path.relative_to(root))
        for folder in ("masc", "tokenizers", "eval", "llamagen", "scripts")
        for path in (root / folder).rglob("*.py")
        if pattern.search(path.read_text())
    ]
    assert found == ["masc/runtime/files.py"]
