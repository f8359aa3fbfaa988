"""Downloads from servers that are no hub: references and extractor weights, against a small local one."""

import errno
import hashlib
import json
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urljoin

import numpy as np
import pytest
from download_server import FaultyHandler, FaultyServer, serving
from user_errors import tells

from masc.runtime.errors import InputError
from vq.hub import fetch as hub
from vq.hub.pins import Pin, lock
from vq.hub.releases import RELEASES, Release, RemoteFile

CONTENT = np.random.default_rng(1).bytes(200_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
NAME, FILE = "adm-imagenet512", "VIRTUAL_imagenet512.npz"  # nothing of it is known beforehand
PATH = f"/diffusion/jul-2021/ref_batches/imagenet/512/{FILE}"


class Server(FaultyServer):
    """Files by path, with neither commits nor hashes."""

    def __init__(self):
        super().__init__(Handler)
        self.files = {PATH: CONTENT}
        self.moved: dict[str, str] = {}
        self.etag, self.modified = '"0x8D9"', ""
        self.length: str | None = None  # what it announces instead of the length
        self.encoding: str | None = None  # what it announces as the encoding
        self.surplus: bytes | None = None  # what it sends after the file, whose length it does not announce


class Handler(FaultyHandler):
    def answer(self, with_body):
        server, headers = self.server, {}
        server.requests.append((self.command, self.path, self.headers.get("Range")))
        if self.path in server.moved:
            return self.send(302, {"Location": urljoin(server.url, server.moved[self.path])}, b"", False)
        body = server.files.get(self.path)
        if body is None:
            return self.send(404, headers, b"", False)
        if self.fails(with_body):
            return self.send(503, headers, b"", False)
        headers |= {"ETag": server.etag} if server.etag else {}
        headers |= {"Last-Modified": server.modified} if server.modified else {}
        headers |= {"Content-Encoding": server.encoding} if server.encoding else {}
        if server.length is not None and not with_body:
            headers["Content-Length"] = server.length
        if server.surplus is not None:  # without a length, until the line is closed
            is_at_end = self.headers.get("Range") == f"bytes={len(body)}-"
            self.send_response(416 if is_at_end else 200)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if with_body and not is_at_end:
                self.wfile.write(body + server.surplus)
            return None
        return self.send_from_range(headers, body, with_body)


@pytest.fixture
def server(monkeypatch):
    with serving(Server(), "MASC_MIRROR", monkeypatch) as running:
        yield running


def test_a_reference_arrives_whole_and_is_pinned_by_its_own_hash(server, tmp_path):
    path = hub.fetch(NAME, tmp_path)
    assert path == tmp_path / FILE == hub.weights_path(NAME, tmp_path) and path.read_bytes() == CONTENT
    ((key, pin),) = json.loads((tmp_path / "lock.json").read_text()).items()
    assert key == f"{RELEASES[NAME].url}/{FILE}"
    assert pin == {"size": len(CONTENT), "sha256": SHA256}  # not the tag, which is the mirror's
    server.requests.clear()
    hub.fetch(NAME, tmp_path)
    assert server.requests == []  # verified, not fetched again


@pytest.mark.parametrize("etag", ['"0x8D9"', ""])
def test_an_interrupted_download_goes_on(server, tmp_path, etag):
    server.cut, server.failures, server.etag = 90_000, 1, etag
    with tells(r"503.*continues from it.*MASC_MIRROR"):
        hub.fetch(NAME, tmp_path)
    (partial,) = tmp_path.glob(".*.incomplete")
    kept = partial.stat().st_size
    assert hub.fetch(NAME, tmp_path).read_bytes() == CONTENT
    assert 80_000 < kept <= 90_000 and server.requests[-1] == ("GET", PATH, f"bytes={kept}-")


def test_a_second_process_waits_with_a_word_and_takes_what_the_first_one_left(server, tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    both, download = [], hub.http_get

    def slow(*arguments, **options):
        both.append(arguments)
        while "waiting for it" not in caplog.text:
            time.sleep(0.01)
        return download(*arguments, **options)

    monkeypatch.setattr(hub, "http_get", slow)
    with ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(lambda _: hub.fetch(NAME, tmp_path), range(2)))
    assert paths == [tmp_path / FILE] * 2 and paths[0].read_bytes() == CONTENT
    assert len(both) == 1 and caplog.text.count(f"another process is downloading {paths[0]}; waiting for it") == 1
    assert not list(tmp_path.glob(".*.incomplete"))


def test_what_was_kept_beyond_the_size_is_dropped(server, tmp_path):
    server.cut, server.failures = 90_000, 1
    with pytest.raises(InputError, match="503"):
        hub.fetch(NAME, tmp_path)
    (partial,) = tmp_path.glob(".*.incomplete")
    partial.write_bytes(CONTENT + b"more")
    assert hub.fetch(NAME, tmp_path).read_bytes() == CONTENT


def test_pins_that_are_written_side_by_side_are_all_kept(tmp_path):
    found = RELEASES[NAME]
    files = [RemoteFile(f"{index}.npz") for index in range(12)]
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda file: lock(found, file, Pin(None, 1, SHA256), tmp_path), files))
    assert len(json.loads((tmp_path / "lock.json").read_text())) == 12


def test_a_server_without_ranges_does_no_harm(server, tmp_path):
    server.cut, server.failures, server.knows_ranges = 90_000, 1, False
    with pytest.raises(InputError, match="503"):
        hub.fetch(NAME, tmp_path)
    assert hub.fetch(NAME, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize(("etag", "modified"), [('"0x8DA"', ""), ("", "Fri, 05 Jan 2024 10:00:00 GMT")])
def test_another_version_is_not_joined_to_what_was_kept(server, tmp_path, etag, modified):
    server.cut, server.failures = 90_000, 1
    server.etag, server.modified = etag and '"0x8D9"', modified and "Thu, 15 Jul 2021 10:00:00 GMT"
    with pytest.raises(InputError, match="503"):
        hub.fetch(NAME, tmp_path)
    server.files[PATH], server.etag, server.modified = CONTENT[::-1], etag, modified
    assert hub.fetch(NAME, tmp_path).read_bytes() == CONTENT[::-1]


def test_a_redirect_to_another_place_is_followed(server, tmp_path):
    server.moved[PATH], server.files["/elsewhere"] = "/elsewhere", server.files.pop(PATH)
    assert hub.fetch(NAME, tmp_path).read_bytes() == CONTENT


def test_a_file_that_is_there_is_never_replaced(server, tmp_path):
    path = hub.fetch(NAME, tmp_path)
    path.write_bytes(CONTENT[::-1])
    with pytest.raises(InputError, match=rf"SHA-256 .*expected {SHA256}.*remove"):
        hub.fetch(NAME, tmp_path)
    assert path.read_bytes() == CONTENT[::-1]
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(InputError, match="199999 bytes, expected 200000"):
        hub.weights_path(NAME, tmp_path)


def test_other_bytes_than_the_first_time_are_refused(server, tmp_path):
    hub.fetch(NAME, tmp_path).unlink()
    server.files[PATH] = CONTENT[:-1] + b"?"
    with pytest.raises(InputError, match=f"expected {SHA256}"):
        hub.fetch(NAME, tmp_path)
    assert not (tmp_path / FILE).exists() and not list(tmp_path.glob(".*.incomplete"))
    server.files[PATH] = CONTENT[:-1]
    with pytest.raises(InputError, match=r"size 199999 there, 200000 here.*lock.json"):
        hub.fetch(NAME, tmp_path)


def test_the_tables_word_is_held_against_server_and_bytes(server, tmp_path, monkeypatch):
    file = RELEASES["inception-2015-12-05"].files[0]
    server.files[f"/mseitzer/pytorch-fid/releases/download/fid_weights/{file.name}"] = CONTENT
    with pytest.raises(InputError, match=f"size 200000 there, {file.size} here"):
        hub.fetch("inception-2015-12-05", tmp_path)
    made = Release("net", None, (RemoteFile("net.pth", 200_000, SHA256),), url="https://somewhere.test/folder")
    monkeypatch.setitem(RELEASES, "net", made)
    server.files["/folder/net.pth"] = CONTENT[::-1]
    with pytest.raises(InputError, match=f"net.pth has the SHA-256 .*, expected {SHA256}"):
        hub.fetch("net", tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "net.pth").write_bytes(CONTENT[::-1])  # by hand
    with pytest.raises(InputError, match=f"net.pth has the SHA-256 .*, expected {SHA256}"):
        hub.fetch("net", tmp_path)
    assert (tmp_path / "net.pth").read_bytes() == CONTENT[::-1]


def test_a_server_that_gives_another_tag_is_refused_unless_the_table_knows_the_hash(server, tmp_path, monkeypatch):
    monkeypatch.delenv("MASC_MIRROR")
    for name, sha256 in (("pinned", None), ("known", SHA256)):
        made = Release(name, None, (RemoteFile(f"{name}.npz", None, sha256),), url=f"{server.url}/folder")
        monkeypatch.setitem(RELEASES, name, made)
        server.files[f"/folder/{name}.npz"] = CONTENT
        hub.fetch(name, tmp_path).unlink()
    assert json.loads((tmp_path / "lock.json").read_text())[f"{server.url}/folder/pinned.npz"]["etag"] == '"0x8D9"'
    server.etag = '"0x8DA"'
    with pytest.raises(InputError, match=r'entity tag "0x8DA" there, "0x8D9" here.*delete .*pinned.npz from'):
        hub.fetch("pinned", tmp_path)
    assert hub.fetch("known", tmp_path).read_bytes() == CONTENT
    monkeypatch.setenv("MASC_MIRROR", server.url)  # a mirror has tags of its own: the pinned hash decides
    assert hub.fetch("pinned", tmp_path).read_bytes() == CONTENT


def test_torchvisions_files_have_torchvisions_addresses():
    import torchvision.models

    for name, weights in (("lpips-alexnet", "AlexNet_Weights"), ("lpips-vgg16", "VGG16_Weights")):
        found = RELEASES[name]
        assert f"{found.origin}/{found.files[0].name}" == getattr(torchvision.models, weights).DEFAULT.url


def test_what_the_server_lacks_or_no_server_is_said(server, tmp_path, monkeypatch):
    server.files.clear()
    with pytest.raises(InputError, match=rf"there is no {FILE} in .*\(404"):
        hub.fetch(NAME, tmp_path)
    monkeypatch.setenv("MASC_MIRROR", "http://127.0.0.1:9")
    with tells(r"no network: http://127\.0\.0\.1:9/.*by hand.*MASC_MIRROR"):
        hub.fetch(NAME, tmp_path)


@pytest.mark.parametrize("place", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x", "https://["])
def test_a_redirect_out_of_http_is_not_followed(server, tmp_path, place):
    server.moved[PATH] = place
    with pytest.raises(InputError, match=r"could not be reached|gave no file"):
        hub.fetch(NAME, tmp_path)
    assert not (tmp_path / FILE).exists()


def test_redirects_without_end_are_one_error(server, tmp_path):
    server.moved[PATH] = PATH
    with pytest.raises(InputError, match=rf"{FILE} gave no file \(.*redirects"):
        hub.fetch(NAME, tmp_path)


@pytest.mark.parametrize("mirror", ["localhost:8000", "http://[", "http://a b", "nonsense"])
def test_a_mirror_that_is_no_address_is_one_error(server, tmp_path, monkeypatch, mirror):
    monkeypatch.setenv("MASC_MIRROR", mirror)
    with pytest.raises(InputError, match=r"could not be reached|gave no file"):
        hub.fetch(NAME, tmp_path)


@pytest.mark.parametrize("page", [b"<!DOCTYPE html><html>log in</html>", b"\n<HTML lang='en'>"])
def test_a_web_page_is_not_taken_for_the_file(server, tmp_path, page):
    server.files[PATH] = page
    with pytest.raises(InputError, match=rf"answers with a web page instead of {FILE}"):
        hub.fetch(NAME, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_body_longer_than_it_should_be_is_cut_off(server, tmp_path):
    server.surplus = b"more" * 100_000
    lock(RELEASES[NAME], RELEASES[NAME].files[0], Pin(None, len(CONTENT), SHA256), tmp_path)
    with pytest.raises(InputError, match=rf"sends more than the {len(CONTENT)} bytes"):
        hub.fetch(NAME, tmp_path)
    assert not [path for path in tmp_path.glob(".*.incomplete") if path.stat().st_size]
    server.surplus = b""
    assert hub.fetch(NAME, tmp_path).read_bytes() == CONTENT


def test_a_whole_part_of_a_file_of_unknown_length_is_not_asked_for_without_end(server, tmp_path, monkeypatch):
    server.surplus = b""
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", None)  # the process dies before the file gets its name
        with pytest.raises(TypeError):
            hub.fetch(NAME, tmp_path)
    with tells(r"answered 416 .*incomplete is removed, and the same command begins again"):
        hub.fetch(NAME, tmp_path)
    assert hub.fetch(NAME, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("length", "words"), [("9" * 15, "announces 9+ bytes"), ("x", "sends more|interrupted|reached")]
)
def test_a_length_that_cannot_be_is_one_error(server, tmp_path, length, words):
    server.length = length
    with pytest.raises(InputError, match=words):
        hub.fetch(NAME, tmp_path)
    assert not (tmp_path / FILE).exists()


def test_an_encoding_that_is_not_the_one_named_is_one_error(server, tmp_path):
    server.encoding = "gzip"
    with pytest.raises(InputError, match=r"gave no file .* is kept"):
        hub.fetch(NAME, tmp_path)
    server.encoding = None
    assert hub.fetch(NAME, tmp_path).read_bytes() == CONTENT


def test_a_damaged_part_is_removed_and_the_same_command_begins_again(server, tmp_path):
    server.cut, server.failures = 90_000, 1
    with pytest.raises(InputError, match="503"):
        hub.fetch(NAME, tmp_path)
    (partial,) = tmp_path.glob(".*.incomplete")
    partial.write_bytes(bytes(partial.stat().st_size))
    pin = Pin(None, len(CONTENT), SHA256)
    lock(RELEASES[NAME], RELEASES[NAME].files[0], pin, tmp_path)
    with pytest.raises(InputError, match=f"expected {SHA256}"):
        hub.fetch(NAME, tmp_path)
    assert not partial.exists()
    assert hub.fetch(NAME, tmp_path).read_bytes() == CONTENT


def test_parts_of_versions_that_are_gone_are_removed(server, tmp_path):
    (tmp_path / f".{FILE}.{'0' * 16}.incomplete").write_bytes(CONTENT)
    hub.fetch(NAME, tmp_path)
    assert not list(tmp_path.glob(".*.incomplete"))


@pytest.mark.parametrize(
    "pins",
    [b"", b"[]", b"{", b"null", b'{"a": []}', b'{"a": {"size": "1"}}', b'{"a": {"sha256": 1}}', b"\xff", b"1" * 5000],
)
def test_pins_that_are_damaged_or_of_another_program_are_one_error(server, tmp_path, pins):
    (tmp_path / "lock.json").write_bytes(pins)
    with pytest.raises(InputError, match=r"lock.json.*delete it to accept the current downloads"):
        hub.fetch(NAME, tmp_path)
    assert (tmp_path / "lock.json").read_bytes() == pins


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_download_gets_the_permissions_that_the_umask_gives(server, tmp_path, mask):
    before = os.umask(mask)
    try:
        path = hub.fetch(NAME, tmp_path / "new")
    finally:
        os.umask(before)
    for file in path.parent.iterdir():
        assert file.stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_folder_in_the_place_of_the_file_and_a_file_in_the_place_of_the_folder_are_said(server, tmp_path):
    (tmp_path / FILE).mkdir()
    with pytest.raises(InputError, match=r"expected a file at .*512.npz, found a folder"):
        hub.fetch(NAME, tmp_path)
    (tmp_path / "weights").touch()
    with pytest.raises(InputError, match=r"expected a folder at .*weights, found a file"):
        hub.fetch(NAME, tmp_path / "weights")


def test_a_full_disk_keeps_the_part_that_arrived(server, tmp_path, monkeypatch):
    def fill(file, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(hub._Bounded, "write", fill)
        with pytest.raises(InputError, match=r"no space left \(.*\) while writing .*incomplete; free some space"):
            hub.fetch(NAME, tmp_path)
    assert hub.fetch(NAME, tmp_path).read_bytes() == CONTENT
