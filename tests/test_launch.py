"""Processes are started together and end together, on one machine and on several, with one error for all."""

import contextlib
import functools
import hashlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from launch import Launch, launch, parse, run_workers
from meeting import Meeting, Waiting, _receive, free_port
from start import ROOT
from tiny_artifacts import make_artifacts

from masc.runtime.errors import InputError

WAITS = "import time, worker; worker.end_with_launcher(); time.sleep(60)"


@pytest.fixture(autouse=True)
def scripts_are_importable(monkeypatch):
    """In the processes that these tests start."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "scripts"), str(ROOT)]))


def processes(code: str, gpus: int = 2, **place) -> Launch:
    """A launch of processes that run this code."""
    fields = {"nodes": 1, "node": 0, "host": "127.0.0.1", "port": 1234, "on_cpu": True} | place
    return Launch(gpus=gpus, command=(sys.executable, "-c", code), **fields)


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (0, "GPUS must be a whole number from 1 up, found 'x'"),
        (1, "NODES must be a whole number from 1 up, found 'x'"),
        (2, "MACHINE_RANK must be a whole number from 0 up, found 'x'"),
        (4, "MAIN_PORT must be a whole number from 1 to 65535, found 'x'"),
        (5, "LAUNCH_DEVICE must be one of --multi_gpu, --cpu, found 'x'"),
    ],
)
def test_a_value_that_no_launch_has_is_refused(place, words):
    given = ["2", "1", "0", "host", "", "--cpu", "script.py"]
    given[place] = "x"
    with pytest.raises(InputError, match=words):
        parse(given)
    with pytest.raises(InputError, match="MACHINE_RANK must be less than NODES=2, found 2"):
        parse(["1", "2", "2", "host", "", "--cpu", "script.py"])


@pytest.mark.parametrize("host", ["", "n" * 64, "a..b"])
def test_a_host_that_is_no_name_is_refused_on_all_machines(host):
    for node in "01":
        with pytest.raises(InputError, match=f"MAIN_HOST must be the name or address of node 0, found '{host}'"):
            parse(["1", "2", node, host, "", "--cpu", "script.py"])


def test_each_process_has_a_place_of_its_own(capfd):
    code = "import os; print(os.environ['RANK'], os.environ['LOCAL_RANK'], os.environ['WORLD_SIZE'])"
    assert run_workers(processes(code, nodes=2, node=1)) == 0
    assert sorted(capfd.readouterr().out.splitlines()) == ["2 0 4", "3 1 4"]


@pytest.mark.parametrize(("gpus", "threads"), [(1, None), (2, "1")])
def test_processes_that_share_the_cores_have_one_thread_each(monkeypatch, gpus, threads):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert processes("", gpus=gpus, nodes=2).environment().get("OMP_NUM_THREADS") == threads
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert processes("", gpus=gpus).environment()["OMP_NUM_THREADS"] == "3"


def test_the_first_error_is_printed_alone_and_the_others_are_stopped(capfd):
    code = (
        "import os, time, worker\n"
        "if os.environ['RANK'] == '0': time.sleep(60)\n"
        "worker.end_worker('error: ' + 'bad', ValueError())\n"
    )
    assert run_workers(processes(code, gpus=3)) == 1
    assert capfd.readouterr().err == "error: bad\n"


def test_a_process_that_is_killed_is_named_and_the_others_are_stopped(capfd):
    code = f"import os, signal\nif os.environ['RANK'] == '1': os.kill(os.getpid(), signal.SIGKILL)\n{WAITS}"
    with pytest.raises(InputError, match="a process was ended by SIGKILL, so all are"):
        run_workers(processes(code))
    assert capfd.readouterr().err == ""


def test_an_error_that_follows_from_the_death_of_another_process_is_not_printed(capfd):
    code = (
        "import os, signal, worker\n"
        "signal.signal(signal.SIGTERM, signal.default_int_handler)\n"
        "if os.environ['RANK'] == '1': os.kill(os.getpid(), signal.SIGKILL)\n"
        "worker.end_worker(None, RuntimeError('Connection reset by peer'))\n"
    )
    with pytest.raises(InputError, match="a process was ended by SIGKILL"):
        run_workers(processes(code))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_its_launcher(tmp_path, number):
    """A pipe that the processes inherit is at its end when none of them is left."""
    script = tmp_path / "script.py"
    script.write_text(f"import os, sys\nif '--check' not in sys.argv: os.write(1, b'here\\n'); {WAITS}\n")
    command = [sys.executable, "scripts/launch.py", "2", "1", "0", "127.0.0.1", "", "--cpu", str(script)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as launcher:
        assert [launcher.stdout.readline() for _ in range(2)] == ["here\n", "here\n"]
        launcher.send_signal(number)
        assert launcher.stdout.read() == ""
        said = launcher.stderr.read()
    assert ("interrupted; the same command continues" in said) == (number == signal.SIGTERM)


def test_a_launcher_that_nohup_started_outlives_its_terminal(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import os, sys\nif '--check' not in sys.argv: os.write(1, b'here\\n'); sys.stdin.read()\n")
    command = [sys.executable, "scripts/launch.py", "2", "1", "0", "127.0.0.1", "", "--cpu", str(script)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    ignore = functools.partial(signal.signal, signal.SIGHUP, signal.SIG_IGN)
    with subprocess.Popen(command, cwd=ROOT, preexec_fn=ignore, text=True, **pipes) as launcher:
        assert [launcher.stdout.readline() for _ in range(2)] == ["here\n", "here\n"]
        launcher.send_signal(signal.SIGHUP)
        assert launcher.communicate() == ("", "") and launcher.returncode == 0


def test_a_config_is_refused_before_any_process_starts(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import sys\nassert '--check' in sys.argv\nsys.exit('error: no such head')")
    command = [sys.executable, "scripts/launch.py", "2", "1", "0", "127.0.0.1", "", "--cpu", str(script)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "error: no such head\n")


def test_a_check_that_is_killed_is_named(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    with pytest.raises(InputError, match="a process was ended by SIGKILL"):
        launch(Launch(2, 1, 0, "127.0.0.1", 0, True, (sys.executable, str(script))))


class Node(threading.Thread):
    """A node of a meeting, in a thread: what it found, or the error that it ended with."""

    def __init__(self, node: int, port: int, nodes: int = 2, command: str = "train"):
        super().__init__(daemon=True)
        self.place, self.found, self.error = (node, nodes, "127.0.0.1", port, [command]), None, None
        self.start()

    def run(self):
        try:
            self.found = Meeting.of(*self.place)
        except InputError as error:
            self.error = str(error)


def meet(*nodes: Node) -> list[Node]:
    for node in nodes:
        node.join(20)
    return list(nodes)


def test_machines_meet_and_see_when_one_has_ended(caplog):
    caplog.set_level("INFO")
    port = free_port()
    first, second = meet(Node(0, port), Node(1, port))
    assert first.found.port == second.found.port != port
    assert f"node 0 waits for node 1 of 2 at 127.0.0.1:{port}" in caplog.text
    for connection in (first.found.connections[1], second.found.connections[0]):  # a lost machine sends no end
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    first.found.check()
    second.found.connections[0].close()
    with pytest.raises(InputError, match="node 1 has ended"):
        first.found.check()


def test_a_machine_that_waits_says_so_every_minute_and_at_last_gives_up(caplog, monkeypatch):
    caplog.set_level("INFO")
    seconds = iter([0, 0, 30, 61, 100, 121, 1900])
    monkeypatch.setattr("meeting.time.monotonic", lambda: next(seconds))
    waiting = Waiting()
    for _ in range(5):
        waiting.say("node 1 waits for node 0 at host:29500")
    said = "node 1 waits for node 0 at host:29500"
    assert [record.getMessage() for record in caplog.records] == [said, f"{said} for 1 min", f"{said} for 2 min"]
    with pytest.raises(InputError, match=f"gave up: {said} for 30 minutes"):
        waiting.say(said)


def test_a_machine_that_waits_says_each_new_reason_at_once(caplog):
    caplog.set_level("INFO")
    waiting = Waiting()
    for reason in ("", "", " (refused)", " (refused)", " (unknown name)"):
        waiting.say("waits", reason)
    assert [record.getMessage() for record in caplog.records] == ["waits", "waits (refused)", "waits (unknown name)"]


def test_a_machine_that_is_done_stops_nobody():
    port = free_port()
    first, second = meet(Node(0, port), Node(1, port))
    with second.found as meeting:
        meeting.leave(0)
    first.found.check()


def test_machines_that_were_started_differently_are_refused():
    port = free_port()
    for node in meet(Node(0, port), Node(1, port, command="train seed=1")):
        assert node.error == "node 1 was started by another command than node 0; give all the same"


def connect(first: Node, port: int) -> socket.socket:
    """A connection to the port of a node as soon as it listens there."""
    until = time.monotonic() + 20
    while first.is_alive() and time.monotonic() < until:
        with contextlib.suppress(ConnectionRefusedError):
            connection = socket.create_connection(("127.0.0.1", port))
            if connection.getsockname() != connection.getpeername():
                return connection
            connection.close()
        time.sleep(0.01)
    raise AssertionError(f"nobody listens on port {port}: {first.error}")


def test_a_second_machine_with_the_number_of_another_is_refused_and_the_first_stays(caplog):
    port = free_port()
    first, *others = Node(0, port, nodes=3), Node(1, port, nodes=3), Node(1, port, nodes=3)
    until = time.monotonic() + 20
    while all(node.is_alive() for node in others) and time.monotonic() < until:
        time.sleep(0.01)
    assert first.is_alive()
    (kept,) = [node for node in others if node.is_alive()]
    (refused,) = [node for node in others if node is not kept]
    problem = "node 1 is there already, at 127.0.0.1, and was also started at 127.0.0.1"
    assert refused.error == f"{problem}; give each machine a MACHINE_RANK of its own" and problem in caplog.text
    assert all(node.found for node in meet(first, kept, Node(2, port, nodes=3)))


def test_a_machine_that_was_started_again_takes_its_own_place():
    port = free_port()
    first = Node(0, port, nodes=3)
    with connect(first, port) as ended:
        greeting = {"node": 1, "nodes": 3, "command": hashlib.sha256(json.dumps(["train"]).encode()).hexdigest()}
        ended.sendall(json.dumps(greeting).encode() + b"\n")
    again = Node(1, port, nodes=3)
    assert all(node.found for node in meet(first, again, Node(2, port, nodes=3)))


@pytest.mark.parametrize(
    "sent", [b"GET / HTTP/1.1\r\n\r\n", b"[1]\n", b'{"node": 7}\n', b"\xff" * 5000, b"[" * 4096, b""]
)
def test_a_meeting_passes_over_strangers(sent):
    port = free_port()
    first = Node(0, port)
    with connect(first, port) as stranger:
        stranger.sendall(sent)
    assert all(node.found for node in meet(first, Node(1, port)))


def test_a_line_that_comes_slowly_is_not_waited_for(monkeypatch):
    here, stranger = socket.socketpair()
    with here, stranger:
        stranger.sendall(b"slowly")
        monkeypatch.setattr("meeting.time.monotonic", itertools.count(step=3).__next__)  # seconds
        assert _receive(here) is None
        assert here.recv(10) == b"ly"


@pytest.mark.parametrize(
    "answer", [b"{}\n", b'{"port": "x"}\n', b'{"port": true}\n', b'{"port": 70000}\n', b"[1]\n", b""]
)
def test_an_answer_that_is_not_of_node_0_is_refused(answer):
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        second = Node(1, port)
        with server.accept()[0] as connection:
            connection.recv(4096)
            connection.sendall(answer)
        meet(second)
    assert f"node 0 at 127.0.0.1:{port} ended before all nodes were there, or another program" in second.error


def test_what_another_machine_says_cannot_command_the_terminal(tmp_path):
    script = tmp_path / "script.py"
    script.touch()
    with socket.create_server(("", 0)) as server:
        place = ["1", "2", "1", "127.0.0.1", str(server.getsockname()[1]), "--cpu"]
        command = [sys.executable, "scripts/launch.py", *place, str(script)]
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as launcher:
            with server.accept()[0] as connection:
                connection.recv(4096)
                connection.sendall(json.dumps({"problem": "\x1b[2J"}).encode() + b"\n")
            assert launcher.stderr.read().splitlines()[-1] == r"error: \x1b[2J"


def test_a_port_in_use_is_one_error():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=rf"cannot listen on port {port} .*MAIN_PORT=\d+"):
            Meeting.of(0, 2, "127.0.0.1", port, [])
        with pytest.raises(InputError, match=f"cannot listen on port {port}"):
            launch(processes("", port=port))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("device", "more", "words"),
    [
        ("--multi_gpu", [], "error: GPUS=64, but this machine has "),
        ("--cpu", ["head=bogus"], "error: there is no head called 'bogus'"),
        ("--cpu", ["artifacts=/nonexistent", "data=imagenet256"], "error: training needs what is missing: "),
    ],
)
def test_a_launch_that_cannot_work_ends_with_one_line(tmp_path, device, more, words):
    launcher = ["scripts/launch.py", "2" if device == "--cpu" else "64", "1", "0", "127.0.0.1", "", device]
    command = [sys.executable, *launcher, "scripts/train.py", f"run_dir={tmp_path / 'run'}", *more]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith(words) and done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_processes_train_a_run_and_print_its_place_once(tmp_path):
    model = ["model=llamagen-tiny", "model.dim=32", "model.num_layers=1", "model.num_heads=4", "model.multiple_of=16"]
    given = [f"artifacts={make_artifacts(tmp_path / 'artifacts')}", f"run_dir={tmp_path / 'run'}", "data=twemoji"]
    settings = ["head=masc", "steps=2", "batch_size=8", "log_every=2", "checkpoint_every=2", "tracking.mode=disabled"]
    command = [sys.executable, "scripts/launch.py", "2", "1", "0", "127.0.0.1", "", "--cpu", "scripts/train.py"]
    done = subprocess.run([*command, *model, *given, *settings], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'run'}\n"), done.stderr
    assert "Traceback" not in done.stderr and "warn" not in done.stderr.lower()
