"""A process that is stopped or hangs ends all; one that compiles, validates or saves does not."""

import pytest
from launch import run_workers
from launched import processes
from watch import FEW, SILENT, STOPPED, TIMES, Seen, Watch

from masc.runtime.beats import PLACE
from masc.runtime.errors import InputError


def seen(*looks: tuple[int, int, float]) -> Seen:
    """A process that was looked at: (rests, beats, seconds since the last look)."""
    process = Seen()
    for rests, beats, passed in looks:
        process.look((rests, beats), passed, is_stopped=False)
    return process


STEADY = [(1, beats, 1.0) for beats in range(FEW + 2)]  # a beat a second
LAST = (1, FEW + 1)  # its place


@pytest.mark.parametrize(
    "looks",
    [
        [(0, 0, 9999)],  # a stage that never beats, or the imports
        [*((rests, 0, 9999) for rests in range(5))],  # the first step
        [*STEADY, (*LAST, SILENT)],
        [*STEADY, (2, 0, 1), (2, 0, 9999)],  # a validation or a save
        [*STEADY, (2, 0, 1), (2, 1, 9999), (2, 1, SILENT)],  # and the step after it
        [(1, beats, 100) for beats in range(20)],  # a slow machine, from the first beat
        [*STEADY, (1, 9, SILENT - 1), (1, 9, TIMES * (SILENT - 2))],  # one that was slow once
    ],
)
def test_a_silence_that_may_happen_is_no_hang(looks):
    for count in range(len(looks)):
        assert not seen(*looks[: count + 1]).hangs


@pytest.mark.parametrize(
    "looks",
    [
        [*STEADY, (*LAST, SILENT + 1)],
        [*STEADY, (2, 0, 9999), (2, 1, 9999), (2, 1, SILENT + 1)],  # the step after a validation or save
        [*STEADY, (1, 9, 20), (1, 9, 20 * TIMES + 1)],
    ],
)
def test_a_process_that_has_beaten_and_falls_silent_hangs(looks):
    assert seen(*looks).hangs


RUNNING = type("Running", (), {"returncode": None})  # a process


@pytest.fixture
def clock(monkeypatch):
    """The seconds that the launcher's clock shows, to be set."""
    seconds = [0.0]
    monkeypatch.setattr("watch.time.monotonic", lambda: seconds[0])
    return seconds


def test_a_launcher_that_was_stopped_too_does_not_count_the_time(monkeypatch, clock):
    """As by Ctrl-Z and `fg`."""
    monkeypatch.setattr("watch.is_stopped", lambda process: True)
    with Watch(1, 3) as watch:
        for clock[0] in (1.0, 5000.0, 9000.0):
            watch.look([RUNNING])
        with pytest.raises(InputError, match=f"process 3 was stopped by a signal such as SIGSTOP for {STOPPED} s"):
            for clock[0] in range(9001, 9099):
                watch.look([RUNNING])


def test_nobody_hangs_while_one_process_makes_progress(monkeypatch, clock):
    monkeypatch.setattr("watch.is_stopped", lambda process: False)
    with Watch(2, 0) as watch:
        for second in range(999):
            clock[0] = float(second)
            PLACE.pack_into(watch.beats, 0, 1, min(second, 9), 0)
            PLACE.pack_into(watch.beats, PLACE.size, 1, second // SILENT, 0)
            assert not watch.look([RUNNING, RUNNING])


STUCK = """
import os, time, worker
from masc.runtime import beats
worker.join_launcher()
beats.rest()
for _ in range(5):
    beats.beat()
    time.sleep(0.15)
if os.environ["RANK"] == {ahead!r}: beats.beat()
def stuck():
    time.sleep(60)
stuck()
"""


@pytest.mark.parametrize(
    ("ahead", "behind", "words"),
    [
        ("0", "1", "process 1 made no progress for \\d s, and the others wait"),
        ("none", "0, 1", "no process made progress for \\d s"),
    ],
)
def test_processes_that_hang_are_named_and_print_where_they_are(monkeypatch, capfd, ahead, behind, words):
    monkeypatch.setattr("watch.SILENT", 0.6)
    monkeypatch.setattr("launch.GRACE", 0.1)
    with pytest.raises(InputError, match=f"{words}, so all are ended; see 'where process {behind[0]} is'"):
        run_workers(processes(STUCK.format(ahead=ahead)))
    said = capfd.readouterr().err
    assert [number in behind for number in "01"] == [f"where process {number} is:\n" in said for number in "01"]
    assert said.count("in stuck\n") == said.count("most recent call first") == said.count("where")


def test_a_process_that_is_stopped_is_named_and_all_end(monkeypatch, capfd):
    monkeypatch.setattr("watch.STOPPED", 0.3)
    monkeypatch.setattr("launch.GRACE", 0.1)
    code = (
        "import os, signal, time, worker\n"
        "worker.join_launcher()\n"
        "if os.environ['RANK'] == '1': os.kill(os.getpid(), signal.SIGSTOP)\n"
        "time.sleep(60)\n"
    )
    with pytest.raises(InputError, match="process 1 was stopped by a signal such as SIGSTOP for"):
        run_workers(processes(code))
    assert capfd.readouterr().err == ""


WRITER = (
    "import os, signal, time, worker\n"
    "from masc.runtime.beats import writes\n"
    "worker.join_launcher()\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "if os.environ['RANK'] == '1':\n"
    "    time.sleep(0.3)\n"
    "    os._exit(3)\n"
    "with writes():\n"
    "    time.sleep(1)\n"
    "    os.write(1, b'saved')\n"
    "time.sleep(60)\n"
)


def test_a_process_that_writes_a_checkpoint_is_let_finish_it_when_another_one_dies(monkeypatch, capfd):
    monkeypatch.setattr("launch.GRACE", 0.1)
    assert run_workers(processes(WRITER)) == 3
    assert capfd.readouterr().out == "saved"


def test_a_write_that_does_not_end_is_cut_short(monkeypatch, capfd):
    monkeypatch.setattr("launch.GRACE", 0.1)
    monkeypatch.setattr("launch.WRITING", 0.3)
    assert run_workers(processes(WRITER.replace("time.sleep(1)", "time.sleep(60)"))) == 3
    assert capfd.readouterr().out == ""
