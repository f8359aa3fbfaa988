"""A lock between processes, against a real second process."""

import contextlib
import errno
import fcntl
import logging
import os
import subprocess
import sys
import threading
import time

import pytest

from masc.runtime.errors import InputError
from masc.runtime.locks import _warn_once, claim, lock_file, release
from masc.runtime.run import locked

HOLDER = """
import sys, time
from pathlib import Path
from masc.runtime.locks import lock_file
with lock_file(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
    print(time.monotonic(), flush=True)
"""


@contextlib.contextmanager
def holder(path):
    """A second process that holds the lock until it reads a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_lock_of_a_second_process_is_refused_until_that_process_dies(tmp_path):
    with holder(tmp_path / "run" / ".lock") as process:
        with pytest.raises(InputError, match=r"another process is using .*run; wait for it, or stop it first"):
            locked(tmp_path / "run").__enter__()
        process.kill()  # without a chance to clean up
        process.wait()
        assert (tmp_path / "run" / ".lock").exists()
        with locked(tmp_path / "run"):
            pass


def test_without_a_message_a_process_waits_for_the_lock(tmp_path):
    file = tmp_path / "lock"
    file.write_text("kept")
    with holder(file) as process:
        process.stdin.write("\n")
        process.stdin.flush()
        with lock_file(file):
            entered = time.monotonic()
        assert float(process.stdout.readline()) <= entered
    assert file.read_text() == "kept"


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL])
def test_a_file_system_without_locks_gives_one_warning(tmp_path, monkeypatch, caplog, code):
    def flock(file, operation):
        raise OSError(code, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    _warn_once.cache_clear()
    for _ in range(2):
        with locked(tmp_path):
            pass
    (record,) = caplog.records
    assert record.getMessage().startswith(f"the file system of {tmp_path} has no file locks")


@pytest.mark.parametrize(("code", "words"), [(errno.EIO, "output error"), (errno.ESTALE, "gone from its network")])
def test_another_error_of_the_lock_is_raised_in_words(tmp_path, monkeypatch, code, words):
    def flock(file, operation):
        raise OSError(code, os.strerror(code))

    with pytest.raises(InputError, match="a folder is in the place of a file while writing"), lock_file(tmp_path):
        pass
    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(InputError, match=rf"{words}.* while writing .*\.lock"), locked(tmp_path):
        pass


def test_a_directory_that_cannot_be_made_or_written_is_said(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise PermissionError(errno.EACCES, "Permission denied")

    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"expected a folder at .*file, found a file"), locked(tmp_path / "file" / "a"):
        pass
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(InputError, match=r"permission denied while writing .*\.lock; choose another"), locked(tmp_path):
        pass


def test_a_lock_is_taken_by_all_users_of_a_shared_folder(tmp_path):
    before = os.umask(0o002)
    try:
        with lock_file(tmp_path / "lock"):
            assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o664
    finally:
        os.umask(before)


def test_a_process_that_waits_says_so_once(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    with holder(tmp_path / "lock") as process:
        threading.Timer(0.2, process.kill).start()
        with lock_file(tmp_path / "lock", waiting="waiting for the other"):
            pass
    assert [record.getMessage() for record in caplog.records] == ["waiting for the other"]


def test_a_claim_of_a_living_process_holds_and_one_of_a_dead_process_is_taken_over(tmp_path):
    claimed = claim(tmp_path / "a")
    assert claim(tmp_path / "a") is None
    release(tmp_path / "a", claimed)
    assert not (tmp_path / "a").exists()
    (tmp_path / "a").touch()
    release(tmp_path / "a", claim(tmp_path / "a"))
    assert not (tmp_path / "a").exists()


def test_a_claim_whose_file_another_process_deleted_is_made_again(tmp_path, monkeypatch):
    flock, seen = fcntl.flock, []

    def deleting(file, operation):
        if not seen:
            seen.append(file)
            (tmp_path / "a").unlink()
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", deleting)
    claimed = claim(tmp_path / "a")
    assert os.path.samestat(os.fstat(claimed), (tmp_path / "a").stat())
    release(tmp_path / "a", claimed)


FORKING = """
import os, sys, time
from pathlib import Path
from masc.runtime.locks import lock_file
with lock_file(Path(sys.argv[1])):
    if os.fork() == 0:  # as a process that decodes images
        print("forked", flush=True)
        sys.stdin.read()
        os._exit(0)
    time.sleep(60)
"""


def test_a_forked_process_does_not_keep_the_lock_of_a_dead_one(tmp_path):
    command, pipe = [sys.executable, "-c", FORKING, str(tmp_path / "lock")], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as holder:
        assert holder.stdout.readline() == "forked\n"
        with pytest.raises(InputError, match="busy"), lock_file(tmp_path / "lock", busy="busy"):
            pass
        holder.kill()
        holder.wait()
        with lock_file(tmp_path / "lock", busy="busy"):
            holder.stdin.close()
