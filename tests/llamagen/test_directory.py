"""The directory of a run: a disk that takes no more, and two launches at once."""

import os

import pytest
from run_rows import losses
from written_files import files_of_10_kb, names

from llamagen.train import train
from llamagen.training.loop import Loop
from masc.runtime.errors import InputError


@pytest.mark.parametrize("background", ["on", "off"])
def test_a_checkpoint_that_does_not_fit_ends_the_run_and_leaves_the_one_before(small_run, tmp_path, dies, background):
    settings = "head=flat", "ema_decay=0.9", "diagnostics=false", f"compute.background_save={background}"
    config = small_run(*settings)
    dies(config, 5)
    for _ in range(2):
        with (
            pytest.raises(InputError, match=r"limit on the size of files .*while writing .*step-00000008"),
            files_of_10_kb(),
        ):
            train(config)
        assert names(config.directory / "checkpoints") == ["step-00000004"]
    unbroken = train(small_run(*settings, f"run_dir={tmp_path / 'unbroken'}"))
    assert losses(train(config)) == losses(unbroken)


def test_a_second_launch_is_refused_and_leaves_the_first_alone(small_run, tmp_path, monkeypatch):
    unbroken = train(small_run("head=flat", f"run_dir={tmp_path / 'unbroken'}"))
    config, step = small_run("head=flat"), Loop.step
    (is_training, trains), (may_go_on, lets) = os.pipe(), os.pipe()
    child = os.fork()
    if not child:

        def waits(self, index):
            if index == 5:
                os.write(trains, b"x")
                os.read(may_go_on, 1)
            return step(self, index)

        monkeypatch.setattr(Loop, "step", waits)
        train(config)
        os._exit(0)
    os.read(is_training, 1)
    before = {path: path.stat().st_mtime_ns for path in config.directory.rglob("*")}
    with pytest.raises(InputError, match="another process is using"):
        train(config)
    assert {path: path.stat().st_mtime_ns for path in config.directory.rglob("*")} == before
    os.write(lets, b"x")
    assert os.waitpid(child, 0)[1] == 0
    assert losses(config.directory) == losses(unbroken)
