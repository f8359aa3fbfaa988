"""What a downloaded file must be: the table's word, else that of the first download, kept in lock.json."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from masc.runtime.artifacts import InputError, write_json
from masc.runtime.locks import lock_file
from vq.hub.releases import RELEASES, Release, RemoteFile

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


def how_to_get(found: Release, file: RemoteFile, folder: Path) -> str:
    """What to do about a missing file of a release; begins with a verb."""
    pin = pin_of(found, file, folder)
    said = [f"{pin.size} bytes"] * bool(pin.size) + [f"SHA-256 {pin.sha256}"] * bool(pin.sha256)
    known = f" ({', '.join(said)})" if said else ""
    if not found.is_remote:
        return f"download it from {found.source} and copy it to {found.place(file, folder)}{known}"
    mirror = "HF_ENDPOINT" if found.repository else "MASC_MIRROR"
    return (
        f"type `make weights NAME={found.name}`, with {mirror} set to a mirror if the server cannot be reached, "
        f"or copy {file.name} of {found.origin} by hand to {found.place(file, folder)}{known}"
    )


def existing_weights(path: Path, owner: str, option: str) -> Path:
    """The file of weights at `path`.

    If it is missing, raise InputError with the way to get it. `owner` is the model or tokenizer that needs it, `option`
    the config key that names it."""
    if path.exists():
        return path
    how = "copy it there"
    for found in RELEASES.values():
        if found.path(path.parent) == path:
            how = how_to_get(found, found.files[0], path.parent)
    raise InputError(f'no weights of {owner} at {path}; {how}, or name their file with ARGS="{option}=PATH"')
