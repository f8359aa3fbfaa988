"""Expected commit, size and hash of a download: from releases.py, otherwise from the first download (lock.json)."""

from dataclasses import asdict, dataclass
from pathlib import Path

from masc.runtime.errors import InputError, MissingArtifact
from masc.runtime.files import write_json
from masc.runtime.locks import lock_file
from masc.runtime.reading import advising, read_json
from vq.hub.releases import RELEASES, Release, RemoteFile

LOCK = "lock.json"


@dataclass(frozen=True)
class Pin:
    """Commit, size and SHA-256 of a file, and its entity tag on a server that is not a hub; None for the unknown."""

    revision: str | None = None
    size: int | None = None
    sha256: str | None = None
    etag: str | None = None


def pin_of(found: Release, file: RemoteFile, folder: Path) -> Pin:
    """The pin of a file below `folder`: the values of releases.py, and those of lock.json for the rest."""
    locked = _read(folder).get(key_of(found, file), Pin())
    # A tag also changes when the server does. If releases.py knows the hash, only the hash decides.
    etag = None if file.sha256 else locked.etag
    return Pin(found.revision or locked.revision, file.size or locked.size, file.sha256 or locked.sha256, etag)


def key_of(found: Release, file: RemoteFile) -> str:
    """The file's name in lock.json."""
    return f"{found.origin}/{file.name}"


def lock(found: Release, file: RemoteFile, pin: Pin, folder: Path) -> None:
    """Write the pin of a verified file to lock.json, so that the next download must give the same bytes.

    Several processes may do so at once."""
    with lock_file(Path(folder) / f".{LOCK}.held"):
        pins = sorted((_read(folder) | {key_of(found, file): pin}).items())
        write_json(Path(folder) / LOCK, {key: _known(pin) for key, pin in pins})


def _known(pin: Pin) -> dict[str, str | int]:
    return {what: value for what, value in asdict(pin).items() if value is not None}


def _read(folder: Path) -> dict[str, Pin]:
    path = Path(folder) / LOCK
    if not path.exists():
        return {}
    with advising("delete it to accept the current downloads"):
        return read_json(path, dict[str, Pin])


def missing_file(found: Release, file: RemoteFile, folder: Path, problem: str, remove: bool = False) -> InputError:
    """The error for a file of a release that is missing or wrong: `problem`, and how to get the file.

    `remove` says that the wrong file must be deleted first."""
    pin, place = pin_of(found, file, folder), found.place(file, folder)
    known = [f"{pin.size} bytes"] * bool(pin.size) + [f"SHA-256 {pin.sha256}"] * bool(pin.sha256)
    expected = f" ({', '.join(known)})" if known else ""
    if not found.is_remote:
        removed = "remove it, " if remove else ""
        return InputError(f"{problem}; {removed}download it from {found.source} and copy it to {place}{expected}")
    mirror = "HF_ENDPOINT" if found.repository else "MASC_MIRROR"
    return MissingArtifact(
        "weights",
        place,
        f"{problem}; copy {file.name} of {found.origin} by hand to {place}{expected}, or download it, with {mirror} "
        "set to a mirror if the server cannot be reached",
        remove=remove,
        name=found.name,
    )


def existing_weights(path: Path, owner: str, option: str | None) -> Path:
    """The file of weights at `path`.

    If it is missing, raise InputError with the way to get it. `owner` is the model or tokenizer that needs it, `option`
    the config key that names it, None where no key does."""
    if path.exists():
        return path
    problem = f"no weights of {owner} at {path}" + (f'; name their file with ARGS="{option}=PATH"' if option else "")
    for found in RELEASES.values():
        if found.path(path.parent) == path:
            raise missing_file(found, found.files[0], path.parent, problem)
    raise InputError(f"{problem}, or copy it there")
