"""What a folder holds, a small folder to write, and a limit on what can be written."""

import contextlib
import resource
import signal

from masc.runtime.files import replacing


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def write_folder(path, text):
    with replacing(path) as temporary:
        temporary.mkdir()
        (temporary / "a").write_text(text)


@contextlib.contextmanager
def files_of_10_kb():
    """A limit on the size of every file that this process writes.

    It holds for pytest's own output too, which writes nothing during the block."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
