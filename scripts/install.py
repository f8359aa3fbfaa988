"""Make .venv with the pinned packages (`make setup`): by any Python from 3.11 up, with its standard library alone.

Machines that share the folder may start this at the same time: one installs, the others wait. A stamp, written last,
says that .venv is complete; its name holds a hash of the requirements."""

import contextlib
import fcntl
import hashlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

REMIND = 60  # seconds between two lines of one that waits


def stamp_of(root: Path) -> Path:
    """The file that is there once the packages of the present requirements are."""
    names = ("requirements.txt", "requirements-cpu.txt", "pyproject.toml")
    text = b"".join((root / name).read_bytes() for name in names)
    return root / ".venv" / f".installed-{hashlib.sha256(text).hexdigest()[:16]}"


@contextlib.contextmanager
def alone(root: Path) -> Iterator[None]:
    """Hold the lock of the folder, and say while waiting for it. It ends with its process: a dead one blocks nobody."""
    with (root / ".setup.lock").open("wb") as file:
        start = time.monotonic()
        due = start
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                now = time.monotonic()
                if now >= due:
                    print(f"waiting for another `make setup` in {root} for {(now - start) / 60:.0f} min", flush=True)
                    due += REMIND
                time.sleep(1)
            except OSError as error:
                print(f"{root} has no file locks ({error.strerror}): run `make setup` on one machine at a time")
                break
        yield


def build(root: Path) -> None:
    """Make .venv and install the packages; exit with a message or a status if that fails."""
    python = root / ".venv" / "bin" / "python"
    check = "import pip, sys; sys.exit(sys.version_info < (3, 11))"
    try:
        is_sound = subprocess.run([python, "-I", "-c", check], capture_output=True).returncode == 0
    except OSError:
        is_sound = False
    if not is_sound and subprocess.run([sys.executable, "-m", "venv", "--clear", root / ".venv"]).returncode:
        shutil.rmtree(root / ".venv", ignore_errors=True)
        sys.exit(f"error: {sys.executable} -m venv failed; on Debian install python3-venv, then try again")
    uv = [root / ".venv" / "bin" / "uv", "pip", "install", "--quiet", "--python", python]
    for command in (
        [python, "-I", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "uv==0.13.9"],
        [*uv, "--compile-bytecode", "-r", "requirements-cpu.txt"],
        [*uv, "--no-deps", "--editable", "."],
    ):
        print(*command, flush=True)
        status = subprocess.run(command, cwd=root).returncode
        if status:
            sys.exit(status)


def main(root: Path) -> None:
    """Install the packages unless they are there."""
    if sys.version_info < (3, 11):  # noqa: UP036 (this is where an older Python is refused)
        sys.exit(f"error: {sys.executable} is older than Python 3.11; try make setup SETUP_PYTHON=python3.11")
    stamp = stamp_of(root)
    if stamp.exists():
        return
    with alone(root):
        if stamp.exists():
            return
        for other in (root / ".venv").glob(".installed-*"):
            other.unlink()  # from here on .venv is not what it was
        build(root)
        stamp.touch()


if __name__ == "__main__":
    try:
        main(Path(__file__).resolve().parents[1])
    except KeyboardInterrupt:
        sys.exit("\ninterrupted; `make setup` starts again")
    except OSError as error:
        sys.exit(f"error: {error.strerror}: {error.filename}")
