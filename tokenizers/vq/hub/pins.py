"""What a downloaded file must be: the table's word, else that of the first download, kept in lock.json."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from masc.runtime.artifacts import InputError, write_json
from masc.runtime.locks import lock_file
from vq.hub.releases import Release, RemoteFile

LOCK = "lock.json"


@dataclass(frozen=True)
class Pin:
    """Commit, size and SHA-256 of a file, and the entity tag of a server that is no hub; None where it is not known."""

    revision: str | None = None
    size: int | None = None
    sha256: str | None = None
    etag: str | None = None


def pin_of(found: Release, file: RemoteFile, folder: Path) -> Pin:
    locked = Pin(**_read(folder).get(key_of(found, file), {}))
    # A tag changes with the server too. Where the table knows the hash, that alone decides.
    etag = None if file.sha256 else locked.etag
    return Pin(found.revision or locked.revision, file.size or locked.size, file.sha256 or locked.sha256, etag)


def key_of(found: Release, file: RemoteFile) -> str:
    """The file's name in lock.json."""
    return f"{found.origin}/{file.name}"


def lock(found: Release, file: RemoteFile, pin: Pin, folder: Path) -> None:
    """Pin what was verified, so that the next download must give the same bytes. Downloads may end side by side."""
    with lock_file(Path(folder) / f".{LOCK}.held"):
        known = {what: value for what, value in asdict(pin).items() if value is not None}
        pins = _read(folder) | {key_of(found, file): known}
        write_json(Path(folder) / LOCK, dict(sorted(pins.items())))


def _read(folder: Path) -> dict[str, dict[str, str | int]]:
    path = Path(folder) / LOCK
    try:
        return json.loads(path.read_text()) if path.exists() else {}
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is broken ({error}); delete it to trust the servers' present word again") from error
