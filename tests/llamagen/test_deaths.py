"""A run that dies anywhere, by a kill or a power cut, gives the files of the unbroken run, bit by bit."""

import hashlib
import itertools
import random
import time
from pathlib import Path

import pytest
from dying import killed
from run_rows import losses

from llamagen.train import train

SMALL = ("head=flat", "ema_decay=0.9", "steps=3", "checkpoint_every=1", "evaluate_every=2", "log_every=1")
CAUSES = ["kill", "power cut"]


def contents(run_dir):
    """Rows, and the hash of each file, but for those that hold times, of the two checkpoints that stay."""
    kept = [run_dir / "checkpoints" / f"step-0000000{step}" for step in (2, 3)]
    files = [path / f"{name}.safetensors" for path in kept for name in ("model", "average", "optimizer")]
    return losses(run_dir), [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]


@pytest.fixture
def unbroken(small_run, tmp_path):
    """Contents of the run, and its seconds."""
    start = time.perf_counter()
    directory = train(small_run(*SMALL, f"run_dir={tmp_path / 'unbroken'}"))
    return contents(directory), time.perf_counter() - start


def check_points(config, unbroken, cut, points):
    """Let the run die before each file operation of `points`, resume it, and compare; return whether it died at all."""
    for point in points:
        config.run_dir = str(Path(config.run_dir).with_name(f"at-{point}"))
        was_killed = killed(lambda: train(config), point, config.directory)
        if cut is not None:
            cut(config.directory)
        assert contents(train(config)) == unbroken, f"operation {point}"
        if not was_killed:
            return point
    return None


@pytest.mark.parametrize(("cause", "background"), [("kill", "on"), ("power cut", "off")])
def test_a_death_before_some_file_operations_loses_nothing(small_run, unbroken, cut_power, cause, background):
    config = small_run(*SMALL, f"compute.background_save={background}")
    points = sorted(random.Random(cause).sample(range(150), 3))
    check_points(config, unbroken[0], cut_power if cause == "power cut" else None, points)


@pytest.mark.slow
@pytest.mark.parametrize("cause", CAUSES)
def test_a_death_before_any_file_operation_loses_nothing(small_run, unbroken, cut_power, cause):
    config = small_run(*SMALL)
    points = itertools.count(0, 1 if cause == "kill" else 3)
    assert check_points(config, unbroken[0], cut_power if cause == "power cut" else None, points) > 100


@pytest.mark.slow
def test_twenty_kills_at_random_moments_lose_nothing(small_run, unbroken, tmp_path):
    (expected, seconds), moments, kills = unbroken, random.Random(0), 0
    for number in itertools.count():
        config = small_run(*SMALL, "compute.background_save=on", f"run_dir={tmp_path / str(number)}")
        while killed(lambda config=config: train(config), seconds=moments.uniform(0, 1.5 * seconds)):
            kills += 1
        assert contents(config.directory) == expected
        if kills >= 20:
            break
