"""What the system answers to a write, in words: no space, no permission, a name that is too long, and others."""

import contextlib
import errno
import os
import re
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

from masc.runtime.errors import InputError

CAUSES = {
    errno.ENOSPC: "no space left",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than a limit on the size of files",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.ENOTDIR: "a file is in the place of a folder",
    errno.EISDIR: "a folder is in the place of a file",
    errno.ENAMETOOLONG: "the name is longer than the file system allows",
    errno.EIO: "the disk answers with an input/output error",
    errno.ESTALE: "the file is gone from its network disk",
    errno.EXDEV: "a directory of a container's image cannot be renamed",  # overlayfs
}
ADVICE = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EFBIG: "raise the limit, or choose another disk",
    errno.EROFS: "choose another folder",
    errno.EACCES: "choose another folder, or change its permissions",
    errno.EPERM: "choose another folder, or change its permissions",
    errno.ENOENT: "see whether its disk is mounted",
    errno.ENOTDIR: "move it away, or choose another path",
    errno.EISDIR: "move it away, or choose another path",
    errno.ENAMETOOLONG: "choose a shorter one",
    errno.EIO: "check the disk, or choose another one",
    errno.ESTALE: "check the network disk, or choose another one",
    errno.EXDEV: "copy it to another name, delete it, rename the copy to the first name",
}
# A folder that may not be listed, or a file system that flushes nothing at all, or no folders.
UNFLUSHED = (errno.EACCES, errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EROFS)
UNNAMED = -1  # torch and NumPy do not always name the error


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise one InputError, with `path` and the cause, for an error of the system that is raised inside."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # safetensors and torch raise classes of their own
        words = in_words(error, path)
        if words is None:
            raise
        raise InputError(words) from error


def make_folder(path: Path) -> None:
    """Create the folder `path` and those above it; InputError if that is not possible."""
    path = Path(path)
    with writing(path):
        try:
            if not path.is_dir():
                new = [part for part in (path, *path.parents) if not part.exists()]
                path.mkdir(parents=True, exist_ok=True)
                for part in new:
                    flush(part.parent)
        except (FileExistsError, NotADirectoryError) as error:
            there = next((part for part in (path, *path.parents) if os.path.lexists(part) and not part.is_dir()), path)
            found = f"a link to {there.readlink()}, where there is no folder" if there.is_symlink() else "a file"
            raise InputError(
                f"expected a folder at {there}, found {found}; move it away, or choose another path"
            ) from error


def flush(path: Path) -> None:
    """Wait until the disk holds the content of a file, or the names in a folder, if its file system can do so."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in UNFLUSHED:
            raise


def flush_all(path: Path) -> None:
    """`flush` for a file, or for a folder and everything in it."""
    for folder, _, names in os.walk(path, topdown=False):
        for name in names:
            flush(Path(folder, name))
        flush(Path(folder))
    if not path.is_dir():
        flush(path)


def in_words(error: Exception, path: Path | None = None) -> str | None:
    """The message for an error of the system; None for an error of another kind. `path` was written when it came."""
    number = _number_of(error)
    if number is None:
        return None
    place = getattr(error, "filename", None)  # named unless it is beside `path`, where temporary files are
    cause = CAUSES.get(number) or os.strerror(number)
    if number == UNNAMED:
        cause = "no space left, or the file would be larger than a limit on the size of files"
    elif number == errno.ENOSPC and path is not None:
        cause += _room(Path(path).parent)
    elif number == errno.EFBIG:
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        cause += "" if limit == resource.RLIM_INFINITY else f" (`ulimit -f`: {limit} bytes)"
    elif isinstance(place, str | bytes) and (path is None or Path(os.fsdecode(place)).parent != Path(path).parent):
        shown = Path(os.fsdecode(place))
        cause += f" ({shown.parent if '.partial' in shown.suffixes else shown})"  # a temporary name says nothing
    doing = "" if path is None else f" while writing {path}"
    advice = f"; {ADVICE[number]}" if number in ADVICE else ""
    return f"{cause}{doing}{advice}. The same command then continues from its last files"


def _number_of(error: Exception) -> int | None:
    """The system's number of an error; UNNAMED for an error of a write that names none; None for other errors."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):  # torch.save to an open file
        return error.__context__.errno
    if found := re.search(r"\(os error (\d+)\)", str(error)):  # safetensors
        return int(found[1])
    is_write = re.search(r"inline_container|^\d+ requested and \d+ written$", str(error))  # torch.save, ndarray.tofile
    return UNNAMED if is_write else None


def _room(folder: Path) -> str:
    """What is left on the disk of a folder."""
    try:
        is_full_of_files = os.statvfs(folder).f_favail == 0 < os.statvfs(folder).f_files
        free = shutil.disk_usage(folder).free
    except OSError:
        return ""
    return " for more files" if is_full_of_files else f" ({free / 2**20:.0f} MiB free on its disk)"
