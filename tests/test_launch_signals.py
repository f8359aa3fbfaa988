"""A signal that asks to stop reaches all processes of a launch; they save, and all end with one message."""

import os
import signal
import subprocess
import sys

import pytest
from launch import run_workers
from launched import IMPORTS, processes
from start import ROOT
from worker import EXIT_STOPPED

from masc.runtime.errors import InputError

# A process that saves when it is asked to stop, as a training does.
SAVES = """
import os, signal, time
if "--check" in sys.argv: sys.exit()
import worker
from masc.runtime.errors import Stopped
asked = []
for number in (signal.SIGINT, *worker.SIGNALS):
    signal.signal(number, lambda number, frame: asked.append(number))
worker.join_launcher()
os.write(1, b"here\\n")
while not asked: time.sleep(0.01)
os.write(1, b"saved\\n")
worker.end_worker("stopped at step 5", Stopped())
"""
# One that stands before its loop.
IMPORTING = """
import os, time
if "--check" in sys.argv: sys.exit()
import stage, worker
worker.join_launcher()
os.write(1, b"here\\n")
try: time.sleep(60)
except KeyboardInterrupt as error: worker.end_worker(stage.in_plain_words(error), error)
"""


def start(tmp_path, code: str) -> subprocess.Popen:
    """A launcher of two processes that run this code and have begun to."""
    script = tmp_path / "script.py"
    script.write_text(IMPORTS + code)
    command = [sys.executable, "scripts/launch.py", "2", "1", "0", "127.0.0.1", "", "--cpu", str(script)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    launcher = subprocess.Popen(command, cwd=ROOT, text=True, start_new_session=True, **pipes)
    assert [launcher.stdout.readline() for _ in range(2)] == ["here\n", "here\n"]
    return launcher


@pytest.mark.parametrize(
    ("send", "number"),
    [
        (os.kill, signal.SIGTERM),  # to the launcher
        (os.kill, signal.SIGUSR1),
        (os.killpg, signal.SIGINT),  # to all, as a terminal does
        (os.killpg, signal.SIGHUP),
    ],
)
def test_a_signal_makes_all_save_and_end_with_one_message(tmp_path, send, number):
    with start(tmp_path, SAVES) as launcher:
        send(launcher.pid, number)
        assert launcher.communicate() == ("saved\nsaved\n", "stopped at step 5\n")
    assert launcher.returncode == EXIT_STOPPED


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_before_the_loop_interrupts_with_one_message(tmp_path, number):
    with start(tmp_path, IMPORTING) as launcher:
        launcher.send_signal(number)
        out, said = launcher.communicate()
    assert (out, said.count("\n"), launcher.returncode) == ("", 2, 1)
    assert said.startswith("\ninterrupted; the same command continues")


def test_processes_whose_launcher_is_killed_save_and_end(tmp_path):
    with start(tmp_path, SAVES) as launcher:
        launcher.kill()
        assert launcher.communicate() == ("saved\nsaved\n", "stopped at step 5\n")


def code_of(place, first: str, second: str) -> str:
    """Code of two processes that do different things; they leave a mark in the folder `place` when they are ready."""
    return (
        "import os, signal, time, worker\n"
        "from masc.runtime.errors import InputError, Stopped\n"
        "for number in worker.SIGNALS: signal.signal(number, signal.SIG_IGN)\n"
        "worker.join_launcher()\n"
        f"os.makedirs(f'{place}/ready{{os.environ[\"RANK\"]}}')\n"
        "def ask(number=signal.SIGTERM):\n"
        f"    while len(os.listdir('{place}')) < 2: time.sleep(0.01)\n"
        "    os.kill(os.getppid(), number)\n"
        f"{first} if os.environ['RANK'] == '0' else {second}\n"
    )


LEAVES = "worker.end_worker('stopped at step 5', Stopped())"


def test_a_process_that_saves_is_waited_for_when_another_has_left(tmp_path, capfd):
    """Each launcher of several machines sees this, though only one was sent the signal."""
    saves = f"(time.sleep(0.3), os.write(1, b'saved'), {LEAVES})"
    assert run_workers(processes(code_of(tmp_path, saves, LEAVES))) == EXIT_STOPPED
    assert capfd.readouterr() == ("saved", "stopped at step 5\n")


def test_an_error_while_it_saves_is_the_one_message(tmp_path, capfd):
    fails = "(time.sleep(0.3), worker.end_worker('error: the disk is full', InputError()))"
    assert run_workers(processes(code_of(tmp_path, fails, LEAVES))) == 1
    assert capfd.readouterr().err == "error: the disk is full\n"


@pytest.mark.parametrize("second", [LEAVES, "(ask(), time.sleep(60))"])
def test_a_process_that_does_not_end_after_a_signal_is_ended(tmp_path, monkeypatch, second):
    monkeypatch.setattr("launch.SAVING", 0.3)
    monkeypatch.setattr("launch.GRACE", 0.1)
    with pytest.raises(InputError, match="not all processes had saved"):
        run_workers(processes(code_of(tmp_path, "time.sleep(60)", second)))


@pytest.mark.parametrize("again", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_second_signal_of_a_person_ends_all_at_once(tmp_path, monkeypatch, capfd, again):
    monkeypatch.setattr("launch.AGAIN", 0.2)
    monkeypatch.setattr("launch.GRACE", 0.1)
    before = signal.getsignal(signal.SIGTERM)
    asks = f"(ask(), ask(), time.sleep(0.5), ask({int(again)}), time.sleep(0.3))"
    launch = processes(code_of(tmp_path, asks, "time.sleep(0.8)"))
    if again == signal.SIGUSR1:
        assert run_workers(launch) == 0
    else:
        with pytest.raises(KeyboardInterrupt):
            run_workers(launch)
        assert capfd.readouterr().err.startswith("\ninterrupted; the same command continues")
    assert signal.getsignal(signal.SIGTERM) == before
