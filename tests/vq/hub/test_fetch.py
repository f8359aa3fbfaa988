"""Downloads against a small local server that answers as the hub does: whole, interrupted, wrong, missing, absent."""

import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from urllib.parse import unquote

import huggingface_hub
import numpy as np
import pytest
from download_server import CHUNK, FaultyHandler, FaultyServer, serving
from user_errors import tells

from masc.runtime.errors import InputError
from vq.hub import fetch as hub
from vq.hub.releases import LLAMAGEN_COMMIT, RELEASES, Release, RemoteFile

COMMIT = "a" * 40
CONTENT = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
RELEASE = RELEASES["maskgit-vq"]  # nothing of it is known beforehand
FILE, URL = RELEASE.files[0].name, f"/{RELEASE.repository}/resolve"


class Hub(FaultyServer):
    """Files by path, answered for as a hub does."""

    def __init__(self):
        super().__init__(Handler)
        self.files: dict[str, bytes] = {}  # under /repository/resolve/, whatever the revision
        self.sent: dict[str, bytes] = {}  # sent instead of what is announced
        self.etags: dict[str, str] = {}
        self.commit = COMMIT


class Handler(FaultyHandler):
    def answer(self, with_body):
        repository, _, rest = unquote(self.path).partition("/resolve/")
        revision, _, name = rest.partition("/")
        key = f"{repository}/{name}"
        self.server.requests.append((self.command, revision, self.headers.get("Range")))
        if key not in self.server.files:
            self.send(404, {"X-Error-Code": "EntryNotFound"})
            return
        if self.fails(with_body):
            self.send(503, {})
            return
        announced = self.server.files[key]
        headers = {
            "ETag": f'"{self.server.etags.get(key, hashlib.sha256(announced).hexdigest())}"',
            "X-Repo-Commit": revision if len(revision) == 40 else self.server.commit,
            "X-Linked-Size": str(len(announced)),
        }
        self.send_from_range(headers, self.server.sent.get(key, announced), with_body)


@pytest.fixture
def server(monkeypatch):
    """A hub on this machine."""
    with serving(Hub(), "HF_ENDPOINT", monkeypatch) as running:
        running.files[f"/{RELEASE.repository}/{FILE}"] = CONTENT
        yield running


def partials(folder):
    return sorted(path.name for path in folder.rglob(".*.incomplete"))


def test_a_whole_file_arrives_and_is_pinned(server, tmp_path):
    path = hub.fetch("maskgit-vq", tmp_path)
    assert path == tmp_path / FILE == hub.weights_path("maskgit-vq", tmp_path)
    assert path.read_bytes() == CONTENT
    lock = json.loads((tmp_path / "lock.json").read_text())
    assert lock == {f"{RELEASE.repository}/{FILE}": {"revision": COMMIT, "size": len(CONTENT), "sha256": SHA256}}
    assert [request[:2] for request in server.requests] == [("HEAD", "main"), ("GET", "main")]
    assert not partials(tmp_path)


def test_a_file_that_is_there_is_verified_and_not_fetched_again(server, tmp_path):
    hub.fetch("maskgit-vq", tmp_path)
    server.requests.clear()
    hub.fetch("maskgit-vq", tmp_path)
    assert server.requests == []
    (tmp_path / FILE).write_bytes(CONTENT[:-1] + b"?")
    with tells(rf"SHA-256 .*expected {SHA256}.*remove .*make weights NAME=maskgit-vq"):
        hub.fetch("maskgit-vq", tmp_path)


def test_the_pinned_commit_is_asked_for_from_then_on(server, tmp_path):
    hub.fetch("maskgit-vq", tmp_path).unlink()
    server.commit = "b" * 40  # main has moved on
    hub.fetch("maskgit-vq", tmp_path)
    assert server.requests[-1][:2] == ("GET", COMMIT)


def test_an_interrupted_download_goes_on_where_it_stopped(server, tmp_path):
    server.cut, server.failures = 100_000, 1
    with tells(r"503.*continues from it.*make weights NAME=maskgit-vq"):
        hub.fetch("maskgit-vq", tmp_path)
    assert not (tmp_path / FILE).exists() and len(partials(tmp_path)) == 1
    (kept,) = (path.stat().st_size for path in tmp_path.glob(".*.incomplete"))
    assert 100_000 - CHUNK < kept <= 100_000
    server.bytes_sent = 0
    assert hub.fetch("maskgit-vq", tmp_path).read_bytes() == CONTENT
    assert server.requests[-1] == ("GET", "main", f"bytes={kept}-")
    assert server.bytes_sent == len(CONTENT) - kept
    assert not partials(tmp_path)


def test_a_mirror_that_sends_the_whole_file_again_does_no_harm(server, tmp_path):
    server.cut, server.failures, server.knows_ranges = 100_000, 1, False
    with pytest.raises(InputError, match="503"):
        hub.fetch("maskgit-vq", tmp_path)
    assert hub.fetch("maskgit-vq", tmp_path).read_bytes() == CONTENT


def test_a_line_that_drops_for_a_moment_is_taken_up_in_the_same_command(server, tmp_path):
    server.cut = 100_000
    assert hub.fetch("maskgit-vq", tmp_path).read_bytes() == CONTENT
    assert len(CONTENT) <= server.bytes_sent < len(CONTENT) + CHUNK


def test_other_bytes_than_announced_are_removed(server, tmp_path):
    wrong = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    server.sent[f"/{RELEASE.repository}/{FILE}"] = wrong
    with pytest.raises(InputError, match=f"SHA-256 {hashlib.sha256(wrong).hexdigest()}, expected {SHA256}"):
        hub.fetch("maskgit-vq", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_shorter_than_announced_is_refused(server, tmp_path):
    server.sent[f"/{RELEASE.repository}/{FILE}"] = CONTENT[:-7]
    with pytest.raises(InputError, match=rf"interrupted.*{len(CONTENT)}.*{len(CONTENT) - 7}"):
        hub.fetch("maskgit-vq", tmp_path)
    assert not (tmp_path / FILE).exists()


def test_a_file_that_the_hub_lacks_is_named(server, tmp_path):
    with pytest.raises(InputError, match=r"there is no c2i_B_256.pt in FoundationVision/LlamaGen \(404"):
        hub.fetch("c2i_B_256", tmp_path)
    assert server.requests == [("HEAD", LLAMAGEN_COMMIT, None)]


def test_a_hash_that_the_table_knows_is_held_against_the_hub(server, tmp_path):
    file = RELEASES["c2i_B_384"].files[0]
    server.files[f"/FoundationVision/LlamaGen/{file.name}"] = CONTENT
    with pytest.raises(InputError, match=f"size 300000 there, {file.size} here, SHA-256 {SHA256} there, {file.sha256}"):
        hub.fetch("c2i_B_384", tmp_path)


def test_a_file_of_another_size_is_not_used(tmp_path):
    (tmp_path / "c2i_B_384.pt").write_bytes(CONTENT)
    with tells(r"300000 bytes, expected 443736709.*make weights NAME=c2i_B_384"):
        hub.weights_path("c2i_B_384", tmp_path)


def test_a_hub_that_changed_what_is_pinned_is_refused(server, tmp_path):
    hub.fetch("maskgit-vq", tmp_path).unlink()
    server.files[f"/{RELEASE.repository}/{FILE}"] = CONTENT[::-1]
    with pytest.raises(InputError, match=rf"SHA-256 [0-9a-f]+ there, {SHA256} here.*delete .*lock.json"):
        hub.fetch("maskgit-vq", tmp_path)


def test_without_a_network_it_says_what_to_do(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port: nothing listens
    with pytest.raises(InputError, match=r"no network: http://127\.0\.0\.1:9/") as error:
        hub.fetch("c2i_L_256", tmp_path)
    for words in ("HF_ENDPOINT", "by hand", str(tmp_path / "c2i_L_256.pt"), "1371712314 bytes", "15fe788b9c0e8dfe"):
        assert words in str(error.value)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set"):
        hub.fetch("c2i_L_256", tmp_path)


def test_a_file_copied_by_hand_is_checked_when_the_hub_can_be_asked(server, tmp_path, monkeypatch, caplog):
    (tmp_path / FILE).write_bytes(CONTENT)
    with monkeypatch.context() as patch:
        patch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        hub.fetch("maskgit-vq", tmp_path)
    assert "unverified" in caplog.text and not (tmp_path / "lock.json").exists()
    hub.fetch("maskgit-vq", tmp_path)
    assert (tmp_path / "lock.json").exists()
    (tmp_path / "lock.json").unlink()
    (tmp_path / FILE).write_bytes(CONTENT[1:])
    with pytest.raises(InputError, match="size 299999, expected 300000"):
        hub.fetch("maskgit-vq", tmp_path)


def test_a_release_of_several_files_goes_to_its_directory_and_small_files_are_checked_as_git_does(
    server, tmp_path, monkeypatch
):
    text = b'{"d_model": 2048}\n'
    made = Release("tiny-t5", "someone/tiny-t5", (RemoteFile("config.json"), RemoteFile("model.safetensors")))
    monkeypatch.setitem(RELEASES, "tiny-t5", made)
    server.files |= {"/someone/tiny-t5/config.json": text, "/someone/tiny-t5/model.safetensors": CONTENT}
    done = subprocess.run(["git", "hash-object", "--stdin"], input=text, capture_output=True, check=True)
    server.etags["/someone/tiny-t5/config.json"] = done.stdout.decode().strip()
    assert hub.fetch("tiny-t5", tmp_path) == tmp_path / "tiny-t5" == hub.weights_path("tiny-t5", tmp_path)
    assert (tmp_path / "tiny-t5" / "config.json").read_bytes() == text
    (tmp_path / "tiny-t5" / "config.json").unlink()
    with tells(r"config\.json; copy .*; type `make weights NAME=tiny-t5`"):
        hub.weights_path("tiny-t5", tmp_path)
    (tmp_path / "lock.json").unlink()
    server.sent["/someone/tiny-t5/config.json"] = text.replace(b"8", b"9")
    with pytest.raises(InputError, match="git SHA-1"):
        hub.fetch("tiny-t5", tmp_path)


def test_what_is_on_no_hub_is_asked_for_by_hand(tmp_path):
    with pytest.raises(InputError, match=r"CompVis/taming-transformers.*vqgan_imagenet_f16_16384.ckpt"):
        hub.fetch("taming-16384", tmp_path)
    with pytest.raises(InputError, match="CompVis/taming-transformers"):
        hub.weights_path("taming-16384", tmp_path)
    (tmp_path / "vqgan_imagenet_f16_16384.ckpt").write_bytes(b"whatever the user trusts")
    assert hub.fetch("taming-16384", tmp_path).exists()


def test_the_table_is_well_formed():
    files = [file.name for release in RELEASES.values() for file in release.files if len(release.files) == 1]
    assert len(set(files)) == len(files)  # they share one folder
    for name, release in RELEASES.items():
        assert release.name == name and release.files
        assert release.revision is None or len(bytes.fromhex(release.revision)) == 20
        assert sum(map(bool, (release.repository, release.source, release.url))) == 1
        for file in release.files:
            assert file.sha256 is None or len(bytes.fromhex(file.sha256)) == 32
            carried = re.search(r"-([0-9a-f]{8})\.pth$", file.name)  # torch hub's convention
            assert carried is None or (file.sha256 or "").startswith(carried[1])


def test_names_are_listed_with_sizes_and_a_files_name_will_do():
    assert hub.release("c2i_L_384.pt") is hub.release("c2i_L_384")
    with pytest.raises(InputError, match=r"(?s)no weights called 'c2i_M'.*c2i_3B_384 +12.39 GB +FoundationVision"):
        hub.release("c2i_M")


def test_the_command_fetches_through_the_clients_endpoint_setting(server, tmp_path, root):
    command = [sys.executable, "scripts/weights.py", "names=[maskgit-vq]", f"folder={tmp_path / 'weights'}"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_HUB")}
    environment |= {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "weights" / FILE).read_bytes() == CONTENT
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("location", ["file:///etc/hostname", "ftp://127.0.0.1/x"])
def test_a_hub_that_sends_the_client_out_of_http_is_not_followed(server, tmp_path, monkeypatch, location):
    ask = hub.get_hf_file_metadata
    monkeypatch.setattr(hub, "get_hf_file_metadata", lambda *a, **b: replace(ask(*a, **b), location=location))
    with pytest.raises(InputError, match=r"could not be reached .*protocol"):
        hub.fetch("maskgit-vq", tmp_path)
    assert not (tmp_path / FILE).exists()
