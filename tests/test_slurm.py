"""The SLURM script starts a launcher on each node, and queues again what was asked to stop and is not done."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from launched import TINY
from meeting import free_port
from run_rows import losses
from tiny_artifacts import make_artifacts

# Programs of SLURM, and make, as the script sees them. Each notes how it was called.
NOTE = '#!/bin/bash\necho "${0##*/} $*" >> "$CALLS"\n'
STUBS = {
    "srun": 'while [[ $1 == --* ]]; do shift; done\nexec "$@"\n',
    "scontrol": "if [[ $1 == show ]]; then printf 'node7\\nnode8\\n'; fi\n",
    "make": '[[ $1 == setup ]] && exit\n{ trap "exit $ON_SIGNAL" USR1; echo here; }\n$TRAINS\n',
}


@pytest.fixture
def job(tmp_path, root):
    """Starts the script as sbatch does; returns the process, and the file with the calls."""
    for name, code in STUBS.items():
        (tmp_path / name).write_text(NOTE + code)
        (tmp_path / name).chmod(0o755)

    def start(*words: str, **how: str) -> tuple[subprocess.Popen, list[str]]:
        given = {"SLURM_SUBMIT_DIR": str(root), "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "node[7-8]"}
        given |= {"SLURM_GPUS_ON_NODE": "8", "SLURM_CPUS_PER_TASK": "64", "SLURM_JOB_ID": "1234567"}
        given |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CALLS": str(tmp_path / "calls"), "ON_SIGNAL": "2"}
        command = ["bash", str(root / "scripts" / "slurm.sh"), *words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, cwd=tmp_path, env=os.environ | given | how, **pipes)

    start.calls = tmp_path / "calls"
    return start


def test_each_node_starts_a_launcher_that_knows_its_place(job):
    with job("MODEL=llamagen-xl", "ARGS=a=1 b=2", TRAINS="exit 0") as process:
        assert process.stdout.read() == "here\n"
    assert process.returncode == 0
    setup, _, srun, make = job.calls.read_text().splitlines()
    assert setup == "make setup"
    assert srun.startswith("srun --nodes=2 --ntasks-per-node=1 --cpus-per-task=64 --kill-on-bad-exit=0 --wait=0 make ")
    assert make == ("make train NODES=2 GPUS=8 MAIN_HOST=node7 MAIN_PORT=24567 MODEL=llamagen-xl ARGS=a=1 b=2")


WAITS = "while true; do sleep 0.01; done"


@pytest.mark.parametrize(
    ("trains", "on_signal", "asks", "status", "queues"),
    [
        ("exit 2", "2", False, 2, False),  # an error of input: it would fail again
        (WAITS, "2", True, 0, True),
        (WAITS, "0", True, 0, False),  # the run was done at that moment
    ],
)
def test_only_a_job_that_was_asked_to_stop_and_is_not_done_queues_again(job, trains, on_signal, asks, status, queues):
    with job(TRAINS=trains, ON_SIGNAL=on_signal) as process:
        assert process.stdout.readline() == "here\n"
        if asks:
            process.send_signal(signal.SIGUSR1)
        said = process.stdout.read()
    assert process.returncode == status
    assert ("scontrol requeue 1234567" in job.calls.read_text()) == ("queues again" in said) == queues


def test_a_script_that_does_not_find_the_repository_says_so(job, tmp_path):
    with job(TRAINS="exit 0", SLURM_SUBMIT_DIR=str(tmp_path)) as process:
        said = process.stdout.read()
    assert process.returncode == 1 and said.startswith("error: submit scripts/slurm.sh with sbatch in the folder of")
    assert not job.calls.exists()


# Starts its command on two nodes; a signal reaches all processes of both, as SLURM sends it.
SRUN = f"""#!{sys.executable}
import os, signal, subprocess, sys
words = [word for word in sys.argv[1:] if not word.startswith("--")]
places = [os.environ | {{"SLURM_NODEID": number}} for number in "01"]
nodes = [subprocess.Popen(words, env=place, start_new_session=True) for place in places]
signal.signal(signal.SIGUSR1, lambda *given: [os.killpg(node.pid, signal.SIGUSR1) for node in nodes])
sys.exit(max(node.wait() for node in nodes))
"""


@pytest.mark.slow
def test_a_job_on_two_nodes_queues_again_and_gives_the_run_of_one_process(job, tmp_path, root):
    (tmp_path / "srun").write_text(SRUN)
    (tmp_path / "make").write_text(f'#!/bin/bash\n[[ $1 == setup ]] && exit\nexec {shutil.which("make")} "$@"\n')
    artifacts, run, one = make_artifacts(tmp_path / "artifacts"), tmp_path / "run", tmp_path / "one"
    settings = [f"artifacts={artifacts}", *TINY, "steps=200", "log_every=2", "checkpoint_every=100", "data=twemoji"]
    place = ["GPUS=1", "MAIN_HOST=127.0.0.1", f"MAIN_PORT={free_port()}", "LAUNCH_DEVICE=--cpu"]
    words = ["HEAD=masc", f"PYTHON={sys.executable}", f"ARGS={' '.join(settings)}"]
    for is_first in (True, False):
        with job(*words, f"RUN_DIR={run}", *place) as process:
            until = time.monotonic() + 100
            while is_first and process.poll() is None and time.monotonic() < until:
                if (run / "metrics.jsonl").exists() and len(losses(run)) > 2:
                    process.send_signal(signal.SIGUSR1)
                    break
                time.sleep(0.01)
            said = process.stdout.read()
        assert process.returncode == 0, said
        assert ("queues again" in said) == ("stopped at step" in said) == is_first, said
    alone = ["make", "train", *words[:-1], f"{words[-1]} micro_batches=2", f"RUN_DIR={one}"]
    subprocess.run(alone, cwd=root, check=True, capture_output=True)
    assert len(losses(run)) == 101
    for a, b in zip(losses(one), losses(run), strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-3)
