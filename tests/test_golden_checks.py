"""Every check of the golden data made by the official implementations, through tests/golden_adapter.py.

Needs the folder `shared` beside the repository; the copies in tests/data serve the tests that do not."""

import subprocess
import sys

import pytest


def run_checks(root, *arguments):
    golden = root.parent / "shared" / "golden"
    if not (golden / "check_golden.py").exists():
        pytest.skip(f"no golden data at {golden}")
    command = [sys.executable, str(golden / "check_golden.py"), "--adapter", str(root / "tests" / "golden_adapter.py")]
    done = subprocess.run([*command, *arguments], cwd=root, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert lines, done.stderr
    failed = [line for line in lines[:-1] if not line.startswith("PASS")]
    assert done.returncode == 0 and not failed, "\n".join(failed)
    return len(lines) - 1


def test_all_checks_of_the_golden_data_pass(root):
    assert run_checks(root) >= 88


@pytest.mark.slow
def test_the_real_sizes_give_the_released_outputs(root):
    assert run_checks(root, "--slow", "--only", "full") >= 2
