"""Machines of one launch meet, and see when one has ended."""

import contextlib
import hashlib
import itertools
import json
import socket
import subprocess
import sys
import threading
import time

import pytest
from launch import launch
from launched import processes
from meeting import LINE, Meeting, Waiting, _places, _receive, free_port
from start import ROOT
from worker import EXIT_STOPPED

from masc.runtime.errors import InputError


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


def test_a_machine_that_has_saved_and_stopped_lets_the_others_save():
    port = free_port()
    first, second = meet(Node(0, port), Node(1, port))
    with second.found as meeting:
        meeting.leave(EXIT_STOPPED)
    first.found.check()


def test_machines_hang_when_the_processes_of_all_do():
    port = free_port()
    first, second = (node.found for node in meet(Node(0, port), Node(1, port)))
    assert second.join_hanging({1: (2, 30)}) == {}
    until = time.monotonic() + 20
    while not first.hanging and time.monotonic() < until:
        first.check()
    assert first.join_hanging({}) == {}  # its own still work
    assert first.join_hanging({0: (2, 31)}) == {0: (2, 31), 1: (2, 30)}
    while not second.hanging and time.monotonic() < until:
        second.check()
    assert second.join_hanging({1: (2, 30)}) == {0: (2, 31), 1: (2, 30)}


@pytest.mark.parametrize("told", [[1], {"x": [1, 2]}, {"1": 2}, {"1": [1, 2, 3]}, {"1": [None, 2]}])
def test_what_is_no_place_is_passed_over(told):
    assert _places(told) == {}


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


def test_a_second_machine_with_the_number_0_is_refused(monkeypatch):
    """It listens too, and nobody would ever call it: all know the address of the first."""
    port = free_port()
    first = Node(0, port)
    connect(first, port).close()
    monkeypatch.setattr("meeting.listen", lambda port: socket.create_server(("", 0)))  # as on another machine
    (second,) = meet(Node(0, port))
    problem = "node 0 is 127.0.0.1, and was also started elsewhere; give each machine a MACHINE_RANK of its own"
    assert second.error == problem
    assert all(node.found for node in meet(first, Node(1, port)))


def test_a_machine_that_was_started_again_takes_its_own_place():
    port = free_port()
    first = Node(0, port, nodes=3)
    with connect(first, port) as ended:
        greeting = {"node": 1, "nodes": 3, "command": hashlib.sha256(json.dumps(["train"]).encode()).hexdigest()}
        ended.sendall(json.dumps(greeting).encode() + b"\n")
    again = Node(1, port, nodes=3)
    assert all(node.found for node in meet(first, again, Node(2, port, nodes=3)))


@pytest.mark.parametrize(
    "sent", [b"GET / HTTP/1.1\r\n\r\n", b"[1]\n", b'{"node": 7}\n', b"\xff" * 5000, b"[" * LINE, b""]
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
