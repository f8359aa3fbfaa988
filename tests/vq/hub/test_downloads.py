"""Downloads from servers that are no hub: references and extractor weights, against a small local one."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from download_server import FaultyHandler, FaultyServer, serving
from user_errors import tells

from masc.runtime.errors import InputError
from masc.runtime.locks import lock_file
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


class Handler(FaultyHandler):
    def answer(self, with_body):
        server, headers = self.server, {}
        server.requests.append((self.command, self.path, self.headers.get("Range")))
        if self.path in server.moved:
            return self.send(302, {"Location": server.url + server.moved[self.path]}, b"", False)
        body = server.files.get(self.path)
        if body is None:
            return self.send(404, headers, b"", False)
        if self.fails(with_body):
            return self.send(503, headers, b"", False)
        headers |= {"ETag": server.etag} if server.etag else {}
        headers |= {"Last-Modified": server.modified} if server.modified else {}
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


def test_two_processes_do_not_download_one_file(server, tmp_path):
    server.cut, server.failures = 90_000, 1
    with pytest.raises(InputError, match="503"):
        hub.fetch(NAME, tmp_path)
    (partial,) = tmp_path.glob(".*.incomplete")
    kept = partial.read_bytes()
    with lock_file(partial), pytest.raises(InputError, match=rf"another process is downloading .*{FILE}; wait for it"):
        hub.fetch(NAME, tmp_path)
    assert partial.read_bytes() == kept
    assert hub.fetch(NAME, tmp_path).read_bytes() == CONTENT


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
