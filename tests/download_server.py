"""A server on this machine for tests of downloads: what goes wrong on the way, and a client that knows no other."""

import contextlib
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub

CHUNK = 4096  # what the client writes at once; 10 MB if left alone


class FaultyServer(ThreadingHTTPServer):
    """What goes wrong: `cut` bytes sent before the line drops, `failures` 503s after that, no ranges."""

    daemon_threads = True

    def __init__(self, handler):
        super().__init__(("127.0.0.1", 0), handler)
        self.cut, self.failures, self.knows_ranges = None, 0, True
        self.requests: list[tuple[str, str, str | None]] = []  # method, what was asked for, range
        self.bytes_sent = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class FaultyHandler(BaseHTTPRequestHandler):
    """Answers by `answer`, which a subclass gives."""

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def fails(self, with_body) -> bool:
        """Whether this request is one of the server's failures."""
        failing = with_body and self.server.cut is None and self.server.failures > 0
        self.server.failures -= failing
        return failing

    def send_from_range(self, headers, body, with_body):
        """The whole body, or the part that is asked for."""
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        start *= self.server.knows_ranges
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        self.send(206 if start else 200, headers, body[start:], with_body)

    def send(self, status, headers, body=b"", with_body=True):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            cut, self.server.cut = self.server.cut, None
            self.server.bytes_sent += len(body[:cut])  # before the client can have them and look
            self.wfile.write(body[:cut])
        self.close_connection = True

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serving(server, variable, monkeypatch):
    """The server running, named to the client by an environment variable; no proxy, no pauses."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", CHUNK)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)  # its pause before a retry
    huggingface_hub.utils.close_session()
    with server as running:
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        monkeypatch.setenv(variable, running.url)
        yield running
        running.shutdown()
    huggingface_hub.utils.close_session()
