"""A lock between processes, against a real second process."""

import contextlib
import errno
import fcntl
import subprocess
import sys
import time

import pytest

from masc.runtime.errors import InputError
from masc.runtime.locks import _warn_once, lock_file
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


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EOPNOTSUPP])
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


def test_another_error_of_the_lock_is_raised(tmp_path):
    with pytest.raises(IsADirectoryError), lock_file(tmp_path):
        pass
