"""wandb is a copy of metrics.jsonl that never ends or delays a training."""

import hashlib
import logging
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from wandb_file import logged
from wandb_server import WandbServer

from llamagen.training import tracking
from llamagen.training.tracking import GRID, Tracker, TrackingConfig
from llamagen.training.wandb_log import _records, mend_log
from masc.runtime.run import MetricsLog, read_metrics

ROWS = [
    {"step": step, "images": 8 * step, "seconds": 1.5 * step, "train/nats_per_token": 7.0 - step} for step in range(8)
]


class FakeWandb:
    """Stands in for the package; `failing` names the calls that raise, `start` the first step that wandb lacks."""

    Settings = SimpleNamespace
    Image = str

    def __init__(self, *failing, start=0, reached=None):
        self.failing, self.started, self.rows = failing, [], []
        self.starting_step, self.reached = start, reached

    def _call(self, name):
        if name in self.failing:
            raise ConnectionError(f"{name} is not reachable")

    def init(self, mode, settings, dir, **others):
        self.started.append(mode)
        self.options = others
        self.id = others["id"]
        self.dir = f"{dir}/wandb/{'offline-' * (mode == 'offline')}run-2026-{self.id}/files"
        if self.reached is not None:
            self.reached.wait(20)
        self._call(mode)
        return self

    def teardown(self):
        self.started.append("teardown")

    def log(self, row, step, commit):
        assert commit
        self._call("log")
        self.rows.append(row)

    def finish(self):
        self._call("finish")

    @property
    def steps(self):
        return [row["step"] for row in self.rows]


@pytest.fixture
def tracked(small_run):
    """Writes ROWS to a tracker, as a run does that is resumed after the step `resumed`; returns its directory."""

    def write(*overrides, resumed=0, until=8):
        config = small_run("head=flat", *overrides)
        config.open_directory({"tree": "a" * 64})
        tracker = Tracker(config.tracking, config, MetricsLog(config.directory / "metrics.jsonl", resumed), {"size": 5})
        for row in ROWS[resumed and resumed + 1 : until]:
            more = {key: value for key, value in row.items() if key not in ("step", "images", "seconds")}
            tracker.write(row["step"], more, row["images"], row["seconds"])
        tracker.finish()
        assert read_metrics(config.directory / "metrics.jsonl") == ROWS[:until]
        return config.directory

    return write


@pytest.fixture
def warnings(caplog):
    return lambda: [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("mode", ["auto", "online"])
def test_a_run_is_written_offline_where_wandb_is_not_reached(tracked, monkeypatch, caplog, warnings, mode):
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    package = FakeWandb("online")
    monkeypatch.setitem(sys.modules, "wandb", package)
    directory = tracked(f"tracking.mode={mode}")
    (warning,) = warnings()
    assert warning.startswith("wandb does not start online (ConnectionError: online is not reachable); the training ")
    assert package.started == ["online", "teardown", "offline"] and package.rows == ROWS
    assert f"`wandb sync {directory}/wandb/offline-run-*-{package.options['id']}`" in caplog.text


def test_a_training_goes_on_where_wandb_fails_altogether(tracked, monkeypatch, warnings):
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb("online", "offline"))
    tracked("tracking.mode=online")
    assert len(warnings()) == 2


@pytest.mark.parametrize("call", ["log", "finish"])
def test_a_training_outlives_its_wandb_run(tracked, monkeypatch, warnings, call):
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb(call))
    tracked("tracking.mode=offline")
    (warning,) = warnings()
    assert f"ConnectionError: {call} is not reachable" in warning and "wandb sync" in warning


def test_a_broken_installation_of_wandb_is_one_warning(tracked, monkeypatch, warnings):
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it fails
    tracked("tracking.mode=offline")
    (warning,) = warnings()
    assert "wandb does not start offline (ModuleNotFoundError" in warning


def test_a_training_does_not_wait_while_wandb_connects_or_hangs(tracked, monkeypatch, warnings):
    reached = threading.Event()
    package = FakeWandb(reached=reached)
    monkeypatch.setitem(sys.modules, "wandb", package)
    monkeypatch.setattr(tracking, "FINISH_SECONDS", 0.01)
    tracked("tracking.mode=online")  # all rows are in metrics.jsonl, and wandb has not answered
    assert package.rows == [] and "wandb did not take all rows within" in warnings()[0]
    reached.set()
    for thread in threading.enumerate():
        if thread.name == "wandb":
            thread.join()


def test_a_resumed_run_gives_wandb_the_rows_that_it_lacks_and_no_other(tracked, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb())
    tracked("tracking.mode=online", until=6)
    # The server has steps 0 to 2 of the killed run, then 0 to 5, of which 3 is the last checkpoint.
    for start in (3, 6, 0):
        package = FakeWandb(start=start)
        monkeypatch.setitem(sys.modules, "wandb", package)
        tracked("tracking.mode=online", resumed=3)
        assert package.rows == ROWS[start:]
    assert "offline" not in caplog.text


def test_the_config_the_hashes_and_the_grids_go_with_the_run(tracked, monkeypatch):
    package = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", package)
    directory = tracked("tracking.mode=offline", until=3)
    (directory / GRID.format(2)).parent.mkdir()
    (directory / GRID.format(2)).write_bytes(b"")
    assert package.options["config"]["sha256"] == {"tree": "a" * 64} and package.options["config"]["size"] == 5
    assert package.options["config"]["model"]["dim"] == 32
    tracked("tracking.mode=offline", resumed=2)
    assert package.rows[3:6] == [*ROWS[:2], ROWS[2] | {"samples": str(directory / GRID.format(2))}]


def test_nothing_is_left_in_the_environment(tracked, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb())
    before = dict(os.environ)
    tracked("tracking.mode=offline")
    assert dict(os.environ) == before


def test_a_netrc_of_other_bytes_holds_no_key(tmp_path, monkeypatch):
    (tmp_path / ".netrc").write_bytes(b"machine \xff\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    assert TrackingConfig().resolved_mode() == "offline"


@pytest.mark.parametrize(("left", "there"), [(7, 0), (-3, 5), (None, 6)])
def test_an_offline_run_that_was_killed_and_resumed_has_every_step_once(tracked, left, there):
    wandb = pytest.importorskip("wandb")
    directory = tracked("tracking.mode=offline", until=6)
    wandb.teardown()  # waits until the file is written, as the end of a process does
    (first,) = directory.glob("wandb/offline-run-*/*.wandb")
    if left is not None:  # what a killed run leaves: a header, or half of a record
        first.write_bytes(first.read_bytes()[: end_of_rows(first) + left if left < 0 else left])
    (directory / "samples").mkdir()
    Image.new("RGB", (4, 4)).save(directory / GRID.format(7))
    tracked("tracking.mode=offline", resumed=3)
    wandb.teardown()
    files = sorted(directory.glob("wandb/offline-run-*/*.wandb"), key=os.path.getmtime)
    assert len(files) == (2 if there else 1) and len({file.name for file in files}) == 1  # one run
    assert sorted(step for file in files for step in mend_log(file)) == list(range(8))
    rows, config = logged(files[-1])
    assert [row["step"] for row in rows] == list(range(there, 8))
    assert all(row.items() <= found.items() for row, found in zip(ROWS[there:], rows, strict=True))
    assert [row["step"] for row in rows if any(name.startswith("samples") for name in row)] == [7]
    assert config["steps"] == 12 and config["sha256"] == {"tree": "a" * 64}


def end_of_rows(file):
    """The place in a file of wandb at which its last row ends."""
    from wandb.proto.wandb_internal_pb2 import Record

    return max(end for record, end in _records(file.read_bytes()) if Record.FromString(record).HasField("history"))


TRACKED = """
import os, signal, sys
sys.path[:0] = {path!r}
from pathlib import Path
from dataclasses import dataclass
from llamagen.training import tracking
from llamagen.training.tracking import Tracker, TrackingConfig
from masc.runtime.run import MetricsLog
tracking.INIT_SECONDS, tracking.FINISH_SECONDS = 2, 60
@dataclass
class Model:
    name: str = "tiny"
@dataclass
class Run:
    model: Model
    directory: Path
    label: str = "flat"
    seed: int = 0
run = Run(Model(), Path({directory!r}))
log = MetricsLog(run.directory / "metrics.jsonl", {resumed})
tracker = Tracker(TrackingConfig(mode={mode!r}), run, log, dict())
for step in range({resumed} and {resumed} + 1, {until}):
    tracker.write(step, dict(), step, step)
{end}
"""


@pytest.fixture
def process(tmp_path):
    """Tracks a run in a process of its own, from the step after `resumed`, which ends in `end`; returns it."""
    pytest.importorskip("wandb")
    (tmp_path / "provenance.json").write_text('{"parents": {}}')

    def run(end="tracker.finish()", mode="offline", resumed=0, until=8, **environment):
        about = {"path": sys.path, "directory": str(tmp_path), "mode": mode, "resumed": resumed, "until": until}
        code = TRACKED.format(**about, end=end)
        outer = {name: text for name, text in os.environ.items() if not name.startswith("WANDB_") and name != "HOME"}
        return subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=outer | environment, cwd=tmp_path
        )

    return run


@pytest.mark.slow
@pytest.mark.parametrize("home", [None, "/proc"])
def test_wandbs_own_process_is_silent_without_a_home(process, tmp_path, home):
    done = process(**({} if home is None else {"HOME": home}))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [row["step"] for row in logged(next(tmp_path.glob("wandb/offline-run-*/*.wandb")))[0]] == list(range(8))


@pytest.mark.slow
def test_a_killed_offline_run_leaves_rows_in_metrics_jsonl(process, tmp_path):
    done = process(end="os.kill(os.getpid(), signal.SIGKILL)", HOME=str(tmp_path))
    assert done.returncode == -signal.SIGKILL
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == list(range(8))


class Server(BaseHTTPRequestHandler):
    """Answers every request with the status of its server, or never."""

    def do_POST(self):
        if self.server.status is None:
            self.server.released.wait(60)
            return
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST

    def log_message(self, *words):
        pass


@pytest.fixture
def server():
    found = WandbServer()
    yield found
    found.shutdown()
    found.server_close()


@pytest.mark.slow
def test_a_server_has_every_step_of_a_resumed_run_once(process, server, tmp_path):
    for resumed, until in ((0, 6), (3, 10), (9, 12)):
        done = process(mode="online", resumed=resumed, until=until, HOME=str(tmp_path), **server.environment)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert server.steps == list(range(12))


@pytest.mark.slow
def test_the_command_that_is_told_sends_every_step_of_a_killed_offline_run_once(process, server, tmp_path):
    kill = "import time; time.sleep({}); os.kill(os.getpid(), signal.SIGKILL)"
    process(kill.format(0), until=6, HOME=str(tmp_path))
    process(resumed=3, until=8, HOME=str(tmp_path))
    process(kill.format(16), resumed=7, until=12, HOME=str(tmp_path))  # wandb writes its file every 15 seconds
    process(resumed=9, until=15, HOME=str(tmp_path))
    send(tmp_path, server)
    assert server.steps == list(range(15))


@pytest.mark.slow
def test_a_run_that_goes_on_offline_has_every_step_once(process, server, tmp_path):
    process(mode="online", until=6, HOME=str(tmp_path), **server.environment)
    process(resumed=3, until=8, HOME=str(tmp_path))
    send(tmp_path, server)
    process(mode="online", resumed=7, until=10, HOME=str(tmp_path), **server.environment)
    assert server.steps == list(range(10))


def send(directory, server):
    """Send the offline files of a run by the command that the log names."""
    name = hashlib.sha256(str(directory.resolve()).encode()).hexdigest()[:16]
    command = f"{Path(sys.executable).parent}/wandb sync {shlex.quote(str(directory / 'wandb'))}/offline-run-*-{name}"
    outer = os.environ | server.environment
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env=outer, cwd=directory)
    assert done.returncode == 0, done.stderr


@pytest.fixture(params=["closed", "hangs", 401, 500])
def address(request):
    if request.param == "closed":
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            yield f"http://127.0.0.1:{unused.getsockname()[1]}"
        return
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.daemon_threads = True
    server.status, server.released = request.param if request.param != "hangs" else None, threading.Event()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.released.set()
    server.shutdown()
    thread.join()


@pytest.mark.slow
@pytest.mark.parametrize("key", ["0" * 40, "short"])
def test_a_server_that_is_down_or_refuses_is_one_warning_and_the_run_is_offline(process, tmp_path, address, key):
    done = process(mode="online", HOME=str(tmp_path), WANDB_BASE_URL=address, WANDB_API_KEY=key)
    assert done.returncode == 0 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert re.match(r"wandb does not start online \(\w+: ", line) and "the training continues" in line
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert [row["step"] for row in logged(file)[0]] == list(range(8))
