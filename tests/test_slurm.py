"""The SLURM script starts a launcher on each node, and queues again what was asked to stop and is not done."""

import os
import signal
import subprocess

import pytest

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
