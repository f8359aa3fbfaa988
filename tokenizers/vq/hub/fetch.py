"""Downloads of released checkpoints and of the references of evaluations: pinned, resumed, verified (`make weights`).

Most files are on the Hugging Face hub, some have an address of their own.

The requests are those of huggingface_hub (2.4), but not its `hf_hub_download`. Since its pull request 4306, that
function writes to a temporary file with a new name each time and deletes it on failure, so an interrupted download
starts again from nothing. Here the partial file stays, and `http_get` asks for the rest. All requests are plain HTTP,
which every mirror answers, and send no token, because all repositories are public. HF_ENDPOINT names another hub.
MASC_MIRROR names another server for all other addresses: it replaces their scheme and host.

A commit, size or SHA-256 that releases.py does not know comes from the server at the first download. It is checked
against the bytes received and written to lock.json beside them; later downloads must agree with it. A server that is
not a hub announces no hash. Then the hash of the first download is kept, and the entity tag unless a mirror gave it."""

import contextlib
import hashlib
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

from masc.runtime.errors import InputError, MissingArtifact
from masc.runtime.files import hash_file
from masc.runtime.locks import lock_file
from masc.runtime.reading import reason
from masc.runtime.writing import flush, writing
from vq.hub.pins import LOCK, Pin, key_of, lock, missing_file, pin_of
from vq.hub.releases import RELEASES, Release, RemoteFile

logger = logging.getLogger(__name__)
LARGEST = 50 * 10**9  # bytes; the client refuses larger files


@dataclass(frozen=True)
class Announced:
    """A server's answer about a file: the address of its bytes, commit, size and entity tag.

    The tag of a hub is the SHA-256 of a file in large-file storage, otherwise git's SHA-1. Other servers have no
    commits, and their tag (or date, or nothing) only shows whether the file has changed."""

    url: str
    revision: str | None
    size: int | None
    etag: str
    pinned_etag: str | None = None  # the tag, if later answers must have the same
    is_hub: bool = True

    @property
    def sha256(self) -> str | None:
        return self.etag if self.is_hub and re.fullmatch("[0-9a-f]{64}", self.etag) else None

    @property
    def git_sha1(self) -> str | None:
        return self.etag if self.is_hub and self.sha256 is None else None


def release(name: str) -> Release:
    """The release with this name or with one file of this name. Raises InputError with a list of the names."""
    for found in RELEASES.values():
        if name in (found.name, *(file.name for file in found.files if len(found.files) == 1)):
            return found
    raise InputError(f"there are no weights called {name!r}; NAME can be:\n{listing()}")


def listing() -> str:
    """The names with sizes and origins, one per line."""
    lines = []
    for found in RELEASES.values():
        sizes = [file.size for file in found.files if file.size]
        size = f"{sum(sizes) / 1e9:.2f} GB" if sizes else ""
        lines.append(
            f"  {found.name:<24}{size:>9}  {found.origin if found.is_remote else 'by hand, from ' + found.source}"
        )
    return "\n".join(lines)


def weights_path(name: str, folder: Path) -> Path:
    """The path of a release: its file, or the directory of its files.

    Raises InputError if a file is missing or has another size than expected; `fetch` compares the hashes."""
    found = release(name)
    for file in found.files:
        path, size = found.place(file, folder), pin_of(found, file, folder).size
        if not path.exists():
            raise missing_file(found, file, folder, f"no {path}")
        if size and path.stat().st_size != size:
            problem = f"{path} has {path.stat().st_size} bytes, expected {size}: it is truncated or another file"
            raise missing_file(found, file, folder, problem, remove=True)
    return found.path(folder)


def fetch(name: str, folder: Path) -> Path:
    """Download the missing files of a release below `folder`, verify all of them, and return its path.

    An existing file is never replaced. Raises InputError if there is no network or no such file, or if its bytes differ
    from releases.py, lock.json or the server's answer."""
    found = release(name)
    for file in found.files:
        path = found.place(file, folder)
        if path.exists():
            _check_present(found, file, path, folder)
        elif not found.is_remote:
            raise missing_file(found, file, folder, f"{name} cannot be downloaded here")
        else:
            _download(found, file, path, folder)
    return found.path(folder)


def _check_present(found: Release, file: RemoteFile, path: Path, folder: Path) -> None:
    """Verify an existing file, downloaded or copied by hand. Pin it if its hash was unknown."""
    pin = pin_of(found, file, folder)
    if pin.sha256 is None and found.is_remote:
        try:
            announced = _ask(found, file, pin, folder)
        except InputError as error:
            logger.warning("keeping %s unverified: its hash is unknown, and %s", path, error)
            return
        sha256 = _verify(found, file, path, pin, announced)
        lock(found, file, Pin(announced.revision, path.stat().st_size, sha256, announced.pinned_etag), folder)
    elif pin.sha256 is not None:
        _verify(found, file, path, pin, None)


def _ask(found: Release, file: RemoteFile, pin: Pin, folder: Path) -> Announced:
    """The server's answer about a file; InputError if it differs from the pin."""
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
    if said.size is not None and said.size > LARGEST:
        raise InputError(f"{url} announces {said.size} bytes, more than any file of these releases has")
    if differing:
        raise InputError(
            f"{url} is not the file that is pinned here: {', '.join(differing)}. If you want the new one, delete "
            f"{key_of(found, file)} from {Path(folder) / LOCK}; other pins are in tokenizers/vq/hub/releases.py"
        )
    return said


def _ask_hub(found: Release, file: RemoteFile, url: str, folder: Path) -> Announced:
    with _plainly(found, file, url, folder):
        answer = get_hf_file_metadata(url, token=False)
    if answer.commit_hash is None or answer.etag is None:
        raise InputError(f"{url} does not answer like a Hugging Face hub (no commit or no ETag); check HF_ENDPOINT")
    return Announced(answer.location, answer.commit_hash, answer.size, answer.etag)


def _ask_server(found: Release, file: RemoteFile, url: str, folder: Path) -> Announced:
    with _plainly(found, file, url, folder):
        answer = httpx2.head(url, follow_redirects=True, timeout=30, headers={"Accept-Encoding": "identity"})
        hf_raise_for_status(answer)
    size, tag = answer.headers.get("Content-Length", ""), answer.headers.get("ETag")
    pinned = None if "MASC_MIRROR" in os.environ else tag
    tag = tag or answer.headers.get("Last-Modified", "")
    return Announced(str(answer.url), None, int(size) if size.isdecimal() else None, tag, pinned, is_hub=False)


def _address(found: Release, file: RemoteFile) -> str:
    """The address of a file outside of the hub, on the mirror if one is named."""
    address, mirror = f"{found.origin}/{file.name}", os.environ.get("MASC_MIRROR")
    return address if mirror is None else mirror.rstrip("/") + urlsplit(address).path


def _download(found: Release, file: RemoteFile, path: Path, folder: Path) -> None:
    """Fetch the missing part of a file under a name beside it. Verify the whole, rename it and pin it.

    If another process downloads it, wait for that one, and verify what it left."""
    pin = pin_of(found, file, folder)
    announced = _ask(found, file, pin, folder)
    size = announced.size or pin.size
    # The tag in the name keeps bytes of another version apart.
    version = hashlib.sha256(f"{announced.etag} {size}".encode()).hexdigest()[:16]
    partial = path.with_name(f".{path.name}.{version}.incomplete")
    headers = build_hf_headers(token=False) | {"Accept-Encoding": "identity"}
    with lock_file(partial, waiting=f"another process is downloading {path}; waiting for it"), writing(partial):
        if path.exists():
            partial.unlink()
            _check_present(found, file, path, folder)
            return
        with partial.open("ab") as stream, _plainly(found, file, announced.url, folder, partial):
            if size is not None and stream.tell() > size:
                stream.seek(0)
                stream.truncate()
            http_get(
                announced.url,
                _Bounded(stream, size or LARGEST, announced.url),
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
        flush(partial)
        partial.replace(path)
        flush(path.parent)
        lock(found, file, Pin(announced.revision, path.stat().st_size, sha256, announced.pinned_etag), folder)
    for other in path.parent.glob(f".{path.name}.*.incomplete"):  # parts of versions that are no longer there
        with contextlib.suppress(InputError), lock_file(other, busy="another process is downloading it"):
            other.unlink()


@dataclass(frozen=True)
class _Bounded:
    """A file that takes at most `size` bytes. Servers can send more than they announce, or bytes without end."""

    stream: BinaryIO
    size: int
    url: str

    def write(self, data: bytes) -> None:
        if self.tell() + len(data) > self.size:
            self.truncate(0)
            raise InputError(f"{self.url} sends more than the {self.size} bytes that it should; nothing of it was kept")
        self.stream.write(data)

    def tell(self) -> int:
        return self.stream.tell()

    def seek(self, position: int) -> None:
        self.stream.seek(position)

    def truncate(self, size: int | None = None) -> None:
        self.stream.truncate(size)


@contextlib.contextmanager
def _plainly(found: Release, file: RemoteFile, url: str, folder: Path, partial: Path | None = None) -> Iterator[None]:
    """Turn the client's errors into InputErrors."""
    kept = f"; {partial.name} is kept, and the same command continues from it" if partial is not None else ""
    try:
        yield
    except OfflineModeIsEnabled as error:
        problem = f"HF_HUB_OFFLINE is set, so {url} was not asked; unset it{kept}"
        raise missing_file(found, file, folder, problem) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status == 404:
            raise InputError(
                f"there is no {file.name} in {found.origin} (404 from {url}); if it moved, correct "
                "tokenizers/vq/hub/releases.py"
            ) from error
        if status == 416 and partial is not None:  # there are as many bytes already, of a length that nobody told
            partial.unlink()
            kept = f"; {partial.name} is removed, and the same command begins again"
        raise missing_file(found, file, folder, f"the server answered {status} for {url}{kept}") from error
    except httpx2.TransportError as error:
        problem = f"no network: {url} could not be reached ({error}){kept}"
        raise missing_file(found, file, folder, problem) from error
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:  # too many redirects, an encoding that is not the one named
        raise missing_file(found, file, folder, f"{url} gave no file ({reason(error)}){kept}") from error
    except OSError as error:
        if error.errno is not None:  # an error of the disk; the client's check of the length has no number
            raise
        raise InputError(f"the download of {url} was interrupted ({str(error).splitlines()[0]}){kept}") from error


def _verify(found: Release, file: RemoteFile, path: Path, pin: Pin, announced: Announced | None) -> str:
    """The SHA-256 of the file at `path`; InputError if size or hash differ from the pin or the server's answer."""
    sha256 = hash_file(path)
    checks = [
        ("size", path.stat().st_size, pin.size or (announced and announced.size)),
        ("SHA-256", sha256, pin.sha256),
    ]
    if announced and announced.sha256:
        checks.append(("SHA-256", sha256, announced.sha256))
    if announced and announced.git_sha1:
        checks.append(("git SHA-1", _git_hash(path), announced.git_sha1))
    if not any(expected for what, _, expected in checks if what != "size") and _is_web_page(path):
        raise InputError(
            f"{found.origin} answers with a web page instead of {file.name}, as a proxy or a login does; see it in a "
            "browser, or copy the file by hand"
        )
    for what, here, expected in checks:
        if expected and here != expected:
            raise MissingArtifact(
                "weights",
                path,
                f"{file.name} has the {what} {here}, expected {expected} ({found.origin}): it is damaged, or another "
                f"file; remove {path} if it still exists",
                name=found.name,
            )
    return sha256


def _is_web_page(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(512).lstrip().lower().startswith((b"<!doctype html", b"<html"))


def _git_hash(path: Path) -> str:
    """Git's SHA-1 of a file, which is the hub's tag for files outside of large-file storage."""
    return hashlib.sha1(b"blob %d\0" % path.stat().st_size + path.read_bytes()).hexdigest()
