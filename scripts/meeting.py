"""Where the machines of one launch meet: each tells node 0 that it is there, and all see when one has ended.

A line of JSON goes each way over TCP; the connections stay open until the end."""

import contextlib
import hashlib
import json
import logging
import os
import secrets
import select
import socket
import time
from typing import Any

from watch import Place
from worker import EXIT_STOPPED

from masc.runtime.errors import InputError

logger = logging.getLogger(__name__)
PATIENCE = 1800  # seconds that machines wait for each other
REMIND = 60  # seconds between two lines that say so
LINE = 2**16  # bytes of a line at most: it may name all processes
LINE_TIME = 10  # seconds in which a line must be there
OWN_NUMBER = "give each machine a MACHINE_RANK of its own"


def free_port() -> int:
    """A port of this machine that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def listen(port: int) -> socket.socket:
    """A socket that listens on a port of this machine. InputError if it cannot."""
    try:
        return socket.create_server(("", port))
    except OSError as error:
        raise InputError(
            f"cannot listen on port {port} ({os.strerror(error.errno)}); another run may use it: give another, the "
            f"same on all nodes, as in MAIN_PORT={free_port()}"
        ) from error


class Waiting:
    """Says for whom this machine waits: at once, for each new reason, and every minute."""

    def __init__(self):
        self.start = self.next = time.monotonic()
        self.reason = ""

    def say(self, what: str, reason: str = "") -> None:
        """Log the line if it is due; InputError after half an hour."""
        now = time.monotonic()
        if now - self.start > PATIENCE:
            raise InputError(f"gave up: {what}{reason} for {PATIENCE // 60} minutes")
        if now >= self.next or reason != self.reason:
            minutes = round((now - self.start) / 60)
            logger.info("%s%s%s", what, reason, f" for {minutes} min" if minutes else "")
            self.next, self.reason = now + REMIND, reason


class Meeting:
    """The connections of this machine: node 0 has one to each other node, and they have one to node 0."""

    def __init__(self, connections: dict[int, socket.socket], port: int):
        self.connections, self.port = connections, port  # the port is for the processes of all nodes
        self.is_host = 0 not in connections
        self.hanging: dict[int, dict[int, Place]] = {}  # what other nodes have told
        self.told: dict[int, Place] = {}  # what this node has told

    @classmethod
    def of(cls, node: int, nodes: int, host: str, port: int, command: list[Any]) -> "Meeting":
        """Wait until all nodes are there. InputError if they do not come, or were started by different commands."""
        greeting = {
            "node": node,
            "nodes": nodes,
            "command": hashlib.sha256(json.dumps(command).encode()).hexdigest(),
        }
        return cls._host(greeting, host, port) if node == 0 else cls._join(greeting, host, port)

    @classmethod
    def _host(cls, greeting: dict[str, Any], host: str, port: int) -> "Meeting":
        there: dict[int, socket.socket] = {}
        addresses: dict[int, str] = {}
        waiting = Waiting()
        others = range(1, greeting["nodes"])
        with listen(port) as server, _Mirror(greeting, host, port) as mirror:
            server.settimeout(1)
            while missing := [str(node) for node in others if node not in there]:
                waiting.say(f"node 0 waits for node {', '.join(missing)} of {greeting['nodes']} at {host}:{port}")
                mirror.look()
                try:
                    connection, (address, _) = server.accept()
                except TimeoutError:
                    connection = None
                _forget_ended(there)
                if connection is None:
                    continue
                _notice_power_loss(connection)
                found = _receive(connection)
                if found is not None and found.get("node") == 0 and found.get("looks_from") != mirror.name:
                    _send(connection, {"problem": f"node 0 is {host}, and was also started elsewhere; {OWN_NUMBER}"})
                if found is None or found.get("node") not in others:
                    connection.close()  # none of ours
                    continue
                if {**found, "node": 0} != greeting:
                    problem = f"node {found['node']} was started by another command than node 0; give all the same"
                    for other in (connection, *there.values()):
                        _send(other, {"problem": problem})
                    raise InputError(problem)
                node = found["node"]
                if node in there:
                    problem = f"node {node} is there already, at {addresses[node]}, and was also started at {address}"
                    logger.warning("%s; the second is refused", problem)
                    _send(connection, {"problem": f"{problem}; {OWN_NUMBER}"})
                    connection.close()
                    continue
                there[node], addresses[node] = connection, address
        chosen = free_port()
        for connection in there.values():
            _send(connection, {"port": chosen})
        return cls(there, chosen)

    @classmethod
    def _join(cls, greeting: dict[str, Any], host: str, port: int) -> "Meeting":
        waiting, reason = Waiting(), ""
        hint = "; name another machine with MAIN_HOST=..." if host in ("127.0.0.1", "localhost") else ""
        while True:
            waiting.say(f"node {greeting['node']} waits for node 0 at {host}:{port}", reason + hint)
            try:
                connection = socket.create_connection((host, port), timeout=10)
            except OSError as error:
                reason = f" ({error.strerror or error})"
                time.sleep(1)
                continue
            if connection.getsockname() == connection.getpeername():
                connection.close()  # where nobody listens, TCP may connect a port of this machine to itself
                continue
            _notice_power_loss(connection)
            _send(connection, greeting)
            while not select.select([connection], [], [], 1)[0]:
                node, nodes = greeting["node"], greeting["nodes"]
                waiting.say(f"node {node} waits with node 0 at {host}:{port} for the others of {nodes} nodes")
            answer = _receive(connection) or {}
            if "problem" in answer:
                raise InputError(str(answer["problem"]))
            chosen = answer.get("port")
            if type(chosen) is not int or not 0 < chosen < 2**16:
                raise InputError(
                    f"node 0 at {host}:{port} ended before all nodes were there, or another program listens there; see "
                    "the output of node 0, or give all nodes another port with MAIN_PORT=..."
                )
            return cls({0: connection}, chosen)

    def check(self) -> None:
        """Read what other nodes tell; InputError if one has ended without being done."""
        ready, _, _ = select.select(list(self.connections.values()), [], [], 0)
        for node, connection in list(self.connections.items()):
            if connection in ready:
                message = _receive(connection) or {}
                if "hanging" in message:
                    self.hanging[node] = _places(message["hanging"])
                    continue
                self.connections.pop(node).close()
                if message != {"done": True}:
                    raise InputError(f"node {node} has ended; its own output says why")

    def join_hanging(self, own: dict[int, Place]) -> dict[int, Place]:
        """The places of the processes of all nodes, by their numbers, if all of them hang; else nothing.

        `own` are those of this node, or nothing if they do not hang. Each node tells node 0, which decides."""
        if not self.is_host:
            if own != self.told:
                self._send_all({"hanging": own})
                self.told = own
            return self.hanging.get(0, {})
        nodes = [own, *(self.hanging.get(node, {}) for node in self.connections)]
        if not all(nodes):
            return {}
        joined = {number: place for node in nodes for number, place in node.items()}
        self._send_all({"hanging": joined})
        return joined

    def leave(self, status: int) -> None:
        """Tell the other nodes that this one is done, or has saved and stopped, if its exit status says so."""
        if status in (0, EXIT_STOPPED):
            self._send_all({"done": True})

    def _send_all(self, message: dict[str, Any]) -> None:
        for connection in self.connections.values():
            _send(connection, message)

    def __enter__(self) -> "Meeting":
        return self

    def __exit__(self, *error: object) -> None:
        for connection in self.connections.values():
            connection.close()


class _Mirror:
    """A connection from node 0 to the address of node 0: another machine there was given the number 0 as well."""

    def __init__(self, greeting: dict[str, Any], host: str, port: int):
        self.name = secrets.token_hex(8)  # by which node 0 recognises itself
        self.greeting, self.place = greeting | {"looks_from": self.name}, (host, port)
        self.connection: socket.socket | None = None

    def look(self) -> None:
        """Connect if that has not worked yet; InputError if another node 0 answers."""
        if self.connection is None:
            with contextlib.suppress(OSError):  # nobody is there yet
                self.connection = socket.create_connection(self.place, timeout=1)
                _send(self.connection, self.greeting)
        elif self.connection.fileno() != -1 and select.select([self.connection], [], [], 0)[0]:
            answer = _receive(self.connection) or {}
            self.connection.close()
            if "problem" in answer:
                raise InputError(str(answer["problem"]))

    def __enter__(self) -> "_Mirror":
        return self

    def __exit__(self, *error: object) -> None:
        if self.connection is not None:
            self.connection.close()


def _forget_ended(there: dict[int, socket.socket]) -> None:
    """Drop the connections of nodes that have ended: until all are there, a node that lives sends nothing."""
    ready, _, _ = select.select(list(there.values()), [], [], 0)
    for node in [node for node, connection in there.items() if connection in ready]:
        there.pop(node).close()


def _notice_power_loss(connection: socket.socket) -> None:
    """Ask after a silent other side: within two minutes the connection ends if nothing answers."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, number in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 6)):
        if hasattr(socket, name):  # not on every system
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), number)


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # the other side has ended, which `check` finds
        connection.sendall(json.dumps(message).encode() + b"\n")


def _places(told: Any) -> dict[int, Place]:
    """Processes and their places as another node has told them; nothing if it is something else."""
    try:
        return {int(number): (int(rests), int(beats)) for number, (rests, beats) in told.items()}
    except (AttributeError, TypeError, ValueError):
        return {}


def _receive(connection: socket.socket) -> dict[str, Any] | None:
    """The next line as a message; None if the other side has ended, is slow, or sends something else."""
    until = time.monotonic() + LINE_TIME
    data = b""
    try:
        while not data.endswith(b"\n") and len(data) < LINE:
            left = until - time.monotonic()
            connection.settimeout(max(left, 0.001))
            part = connection.recv(1)
            if left < 0 or not part:
                return None
            data += part
        message = json.loads(data)
    except (OSError, ValueError, RecursionError):  # the last for many brackets
        return None
    return message if isinstance(message, dict) else None
