"""Processes are started together and end together, on one machine and on several, with one error for all."""

import functools
import signal
import subprocess
import sys

import pytest
from launch import Launch, launch, parse, run_workers
from launched import IMPORTS, TINY, WAITS, processes
from meeting import free_port
from run_rows import losses
from start import ROOT
from tiny_artifacts import make_artifacts

from masc.runtime.errors import InputError


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


def test_a_system_that_does_not_show_how_processes_fare_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(InputError, match=r"several processes need Linux, .* found darwin"):
        launch(processes(""))


def test_each_process_has_a_place_of_its_own(capfd):
    place = "os.environ['RANK'], os.environ['LOCAL_RANK'], os.environ['WORLD_SIZE']"
    code = f"import os; os.write(1, (' '.join([{place}]) + '\\n').encode())"  # at once: print may write in two parts
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
    script.write_text(f"{IMPORTS}import os\nif '--check' not in sys.argv: os.write(1, b'here\\n'); {WAITS}\n")
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


def train_command(tmp_path, name: str, place: list[str]) -> list[str]:
    """A launcher of a tiny training of two steps into the folder `name`."""
    given = [f"artifacts={make_artifacts(tmp_path / 'artifacts')}", f"run_dir={tmp_path / name}", "data=twemoji"]
    settings = ["model=llamagen-tiny", "head=masc", *TINY, "steps=2", "log_every=2", "checkpoint_every=2"]
    return [sys.executable, "scripts/launch.py", *place, "--cpu", "scripts/train.py", *given, *settings]


@pytest.mark.slow
def test_two_processes_train_a_run_and_print_its_place_once(tmp_path):
    command = train_command(tmp_path, "run", ["2", "1", "0", "127.0.0.1", ""])
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'run'}\n"), done.stderr
    assert "Traceback" not in done.stderr and "warn" not in done.stderr.lower()


@pytest.mark.slow
def test_two_machines_give_the_run_of_one(tmp_path):
    pipes, port = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}, str(free_port())
    nodes = []
    for node in "01":
        command = train_command(tmp_path, "two", ["1", "2", node, "127.0.0.1", port])
        nodes.append(subprocess.Popen(command, cwd=ROOT, **pipes))
    ends = [node.communicate() for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], ends
    assert [printed for printed, _ in ends] == [f"{tmp_path / 'two'}\n", ""]
    command = [*train_command(tmp_path, "one", ["1", "1", "0", "127.0.0.1", ""]), "micro_batches=2"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    for one, two in zip(losses(tmp_path / "one"), losses(tmp_path / "two"), strict=True):
        assert one == pytest.approx(two, rel=1e-3, abs=2e-4)
