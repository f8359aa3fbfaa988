"""Released checkpoints and references of evaluations: pinned, resumed, verified (`make weights`).

Most are on the Hugging Face hub, some behind an address of their own.

The requests are huggingface_hub's own (2.4), but not its `hf_hub_download`: since its pull request 4306 that writes to
a temporary file of a new name each time and deletes it on failure, so an interrupted download starts from nothing.
Here the partial file stays, and `http_get` asks for the rest of it. Plain HTTP throughout, which every mirror
answers; no token is sent, for all these repositories are public. HF_ENDPOINT names another hub, MASC_MIRROR another
server for the other addresses, whose scheme and host it replaces.

A commit, size or SHA-256 that the table does not know is taken from what the server announces at the first download,
checked against the bytes received and written to lock.json beside them; later downloads must agree with it. A server
that is no hub announces no hash: there the hash of the first download is kept, and the entity tag, unless a mirror gave
it."""

import contextlib
import hashlib
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

from masc.runtime.artifacts import InputError, hash_file
from masc.runtime.locks import lock_file
from vq.hub.pins import LOCK, Pin, how_to_get, key_of, lock, pin_of
from vq.hub.releases import RELEASES, Release, RemoteFile

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Announced:
    """What a server says of a file: where its bytes are, its commit, its size, and an entity tag.

    A hub's tag is the SHA-256 of a file in large-file storage, else the SHA-1 that git gives it. Other servers have no
    commits, and their tags say nothing but whether a file changed; those that give none give a date, or nothing."""

    url: str
    revision: str | None
    size: int | None
    etag: str
    pinned_etag: str | None = None  # the tag, if later answers of this server must give it again
    is_hub: bool = True

    @property
    def sha256(self) -> str | None:
        return self.etag if self.is_hub and re.fullmatch("[0-9a-f]{64}", self.etag) else None

    @property
    def git_sha1(self) -> str | None:
        return self.etag if self.is_hub and self.sha256 is None else None


def release(name: str) -> Release:
    """The release of this name; its file's name will do as well. Raises InputError listing the names."""
    for found in RELEASES.values():
        if name in (found.name, *(file.name for file in found.files if len(found.files) == 1)):
            return found
    raise InputError(f"there are no weights called {name!r}; `make weights NAME=...` knows:\n{listing()}")


def listing() -> str:
    """The names with sizes and origins, one a line."""
    lines = []
    for found in RELEASES.values():
        sizes = [file.size for file in found.files if file.size]
        size = f"{sum(sizes) / 1e9:.2f} GB" if sizes else ""
        lines.append(
            f"  {found.name:<24}{size:>9}  {found.origin if found.is_remote else 'by hand, from ' + found.source}"
        )
    return "\n".join(lines)


def weights_path(name: str, folder: Path) -> Path:
    """Where a release lies: its file, or the directory of its files.

    Raises InputError where one is absent, or has another size than is known; `fetch` compares the hashes."""
    found = release(name)
    for file in found.files:
        path, size = found.place(file, folder), pin_of(found, file, folder).size
        if not path.exists():
            raise InputError(f"no {path}; {how_to_get(found, file, folder)}")
        if size and path.stat().st_size != size:
            raise InputError(
                f"{path} has {path.stat().st_size} bytes, expected {size}: truncated, or another file. Remove it; "
                f"then {how_to_get(found, file, folder)}"
            )
    return found.path(folder)


def fetch(name: str, folder: Path) -> Path:
    """Download a release below `folder` unless it is there, and verify it either way.

    A file that is there is never replaced. Raises InputError if there is no network, no such file, or other bytes than
    the table, the lock file or the server itself say."""
    found = release(name)
    for file in found.files:
        path = found.place(file, folder)
        if path.exists():
            _check_present(found, file, path, folder)
        elif not found.is_remote:
            raise InputError(f"{name} cannot be downloaded; {how_to_get(found, file, folder)}")
        else:
            _download(found, file, path, folder)
    return found.path(folder)


def _check_present(found: Release, file: RemoteFile, path: Path, folder: Path) -> None:
    """Verify a file that is there, downloaded or copied by hand, and pin it if nothing was known of it."""
    pin = pin_of(found, file, folder)
    if pin.sha256 is None and found.is_remote:
        try:
            announced = _ask(found, file, pin, folder)
        except InputError as error:
            logger.warning("keeping %s unverified: nothing is known of it here, and %s", path, error)
            return
        sha256 = _verify(found, file, path, pin, announced)
        lock(found, file, Pin(announced.revision, path.stat().st_size, sha256, announced.pinned_etag), folder)
    elif pin.sha256 is not None:
        _verify(found, file, path, pin, None)


def _ask(found: Release, file: RemoteFile, pin: Pin, folder: Path) -> Announced:
    """What the server says of a file, once it agrees with what is pinned."""
    if found.repository is None:
        url = _address(found, file)
        said = _ask_server(found, file, url, folder)
    else:
        revision = pin.revision or "main"
        url = hf_hub_url(found.repository, file.name, revision=revision, endpoint=os.environ.get("HF_ENDPOINT"))
        said = _ask_hub(found, file, url, folder)
    differing = [
        f"{what} {there} there, {here} here"
        for what, there, here in (
            ("commit", said.revision, pin.revision),
            ("size", said.size, pin.size),
            ("SHA-256", said.sha256, pin.sha256),
            ("entity tag", said.pinned_etag, pin.etag),
        )
        if there and here and there != here
    ]
    if differing:
        raise InputError(
            f"{url} is not the file that is pinned here: {', '.join(differing)}. If the new one is wanted, delete "
            f"{key_of(found, file)} from {Path(folder) / LOCK}; the pins of the project are in "
            "tokenizers/vq/hub/releases.py"
        )
    return said


def _ask_hub(found: Release, file: RemoteFile, url: str, folder: Path) -> Announced:
    with _plainly(found, file, url, folder):
        answer = get_hf_file_metadata(url, token=False)
    if answer.commit_hash is None or answer.etag is None:
        raise InputError(f"{url} does not answer as a Hugging Face hub does (no commit or no ETag); check HF_ENDPOINT")
    return Announced(answer.location, answer.commit_hash, answer.size, answer.etag)


def _ask_server(found: Release, file: RemoteFile, url: str, folder: Path) -> Announced:
    with _plainly(found, file, url, folder):
        answer = httpx2.head(url, follow_redirects=True, timeout=30, headers={"Accept-Encoding": "identity"})
        hf_raise_for_status(answer)
    size, tag = answer.headers.get("Content-Length"), answer.headers.get("ETag")
    pinned = None if "MASC_MIRROR" in os.environ else tag
    tag = tag or answer.headers.get("Last-Modified", "")
    return Announced(str(answer.url), None, int(size) if size else None, tag, pinned, is_hub=False)


def _address(found: Release, file: RemoteFile) -> str:
    """Where a file that is on no hub lies, on the mirror if one is named."""
    address, mirror = f"{found.origin}/{file.name}", os.environ.get("MASC_MIRROR")
    return address if mirror is None else mirror.rstrip("/") + urlsplit(address).path


def _download(found: Release, file: RemoteFile, path: Path, folder: Path) -> None:
    """Fetch the missing part of a file to a name beside it, verify the whole, give it its name and pin it."""
    pin = pin_of(found, file, folder)
    announced = _ask(found, file, pin, folder)
    size = announced.size or pin.size
    path.parent.mkdir(parents=True, exist_ok=True)
    # The tag in the name: never go on with the bytes of another version.
    version = hashlib.sha256(f"{announced.etag} {size}".encode()).hexdigest()[:16]
    partial = path.with_name(f".{path.name}.{version}.incomplete")
    headers = build_hf_headers(token=False) | {"Accept-Encoding": "identity"}
    busy = f"another process is downloading {path}; wait for it"
    with lock_file(partial, busy), partial.open("ab") as stream:
        if size is not None and stream.tell() > size:
            stream.seek(0)
            stream.truncate()
        with _plainly(found, file, announced.url, folder, partial):
            http_get(
                announced.url,
                stream,
                resume_size=stream.tell(),
                headers=headers,
                expected_size=size,
                displayed_filename=file.name,
            )
    try:
        sha256 = _verify(found, file, partial, pin, announced)
    except InputError:
        partial.unlink()
        raise
    partial.replace(path)
    lock(found, file, Pin(announced.revision, path.stat().st_size, sha256, announced.pinned_etag), folder)


@contextlib.contextmanager
def _plainly(found: Release, file: RemoteFile, url: str, folder: Path, partial: Path | None = None) -> Iterator[None]:
    """Turn the client's errors into one plain message."""
    kept = f"; {partial.name} is kept and the same command goes on from it" if partial is not None else ""
    instead = f"Once it can be: {how_to_get(found, file, folder)}{kept}"
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise InputError(f"HF_HUB_OFFLINE is set, so {url} was not asked; unset it. {instead}") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status == 404:
            raise InputError(
                f"there is no {file.name} in {found.origin} (404 from {url}); if it moved, correct "
                "tokenizers/vq/hub/releases.py"
            ) from error
        raise InputError(f"the server answered {status} to {url}. {instead}") from error
    except httpx2.TransportError as error:
        raise InputError(f"no network: {url} could not be reached ({error}). {instead}") from error
    except OSError as error:
        if error.errno is not None:  # the disk's, not the client's own check of the length
            raise
        raise InputError(f"{url} was cut short ({str(error).splitlines()[0]}){kept}") from error


def _verify(found: Release, file: RemoteFile, path: Path, pin: Pin, announced: Announced | None) -> str:
    """The SHA-256 of the file at `path`; InputError unless size and hash are those pinned, else announced."""
    sha256 = hash_file(path)
    checks = [
        ("size", path.stat().st_size, pin.size or (announced and announced.size)),
        ("SHA-256", sha256, pin.sha256),
    ]
    if announced and announced.sha256:
        checks.append(("SHA-256", sha256, announced.sha256))
    if announced and announced.git_sha1:
        checks.append(("git SHA-1", _git_hash(path), announced.git_sha1))
    for what, here, expected in checks:
        if expected and here != expected:
            raise InputError(
                f"{file.name} has the {what} {here}, expected {expected} ({found.origin}): damaged, or another "
                f"file. Remove {path} if it is still there, and type `make weights NAME={found.name}`"
            )
    return sha256


def _git_hash(path: Path) -> str:
    """The SHA-1 by which git, and the hub for files outside large-file storage, names these bytes."""
    return hashlib.sha1(b"blob %d\0" % path.stat().st_size + path.read_bytes()).hexdigest()
