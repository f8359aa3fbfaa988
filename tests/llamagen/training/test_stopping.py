"""Signals: a training saves at its next step, and the same command continues as if nothing had been."""

import os
import signal

import pytest
from run_rows import losses

from llamagen.train import train
from llamagen.training.checkpoint import last_checkpoint, load_progress
from llamagen.training.loop import Loop
from masc.runtime.errors import Stopped
from masc.runtime.stopping import stop_requests


@pytest.fixture
def signalled(monkeypatch):
    """Sends signals to this process in steps of a training, counted from 1."""

    def send(by_step):
        step = Loop.step

        def sends(self, index):
            for number in by_step.get(index + 1, ()):
                os.kill(os.getpid(), number)
            return step(self, index)

        monkeypatch.setattr(Loop, "step", sends)

    return send


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_saves_and_the_run_goes_on_as_the_unbroken_one(small_run, tmp_path, signalled, number):
    unbroken = losses(train(small_run("head=flat", "log_every=4", f"run_dir={tmp_path / 'unbroken'}")))
    config = small_run("head=flat", "log_every=4")
    signalled({5: [number, number]})  # from make and from its group
    with pytest.raises(Stopped, match=rf"stopped at step \d+ of 12 by {signal.Signals(number).name}; the same command"):
        train(config)
    assert load_progress(last_checkpoint(config.directory)).step >= 5
    assert losses(train(config)) == unbroken
    assert signal.getsignal(number) not in (None, signal.SIG_IGN)


def test_a_signal_in_the_last_step_lets_the_run_end(small_run, signalled):
    signalled({12: [signal.SIGTERM]})
    config = small_run("head=flat")
    train(config)
    assert load_progress(last_checkpoint(config.directory)).step == 12


def test_a_second_signal_after_a_while_interrupts_at_once(monkeypatch):
    with stop_requests() as request:
        request.take(signal.SIGTERM, None)
        request.take(signal.SIGINT, None)
        assert request.name == "SIGTERM"
        monkeypatch.setattr("masc.runtime.stopping.INSISTS", -1.0)
        request.take(signal.SIGUSR1, None)
        with pytest.raises(KeyboardInterrupt):
            request.take(signal.SIGINT, None)


def test_a_signal_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with stop_requests() as request:
            os.kill(os.getpid(), signal.SIGHUP)
            assert request.name is None
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_training_beats_in_each_step_and_rests_where_it_may_take_long(small_run, monkeypatch):
    calls = []
    for name in ("beat", "rest"):
        monkeypatch.setattr(f"llamagen.training.loop.{name}", lambda name=name: calls.append(name))
    monkeypatch.setattr("llamagen.train.diagnose", lambda *arguments: calls.append("validation") or {})
    train(small_run("head=flat", "steps=4", "evaluate_every=4", "checkpoint_every=4", "log_every=4", "micro_batches=2"))
    assert calls[:6] == ["validation", *["rest"] * 5]  # the loop begins; the first step compiles
    last = calls.index("validation", 1)
    assert calls[6:last].count("beat") >= 12
    assert calls[last - 1 :] == ["rest", "validation", "beat", "rest"]


def test_a_run_that_is_asked_to_stop_saves_before_it_validates(small_run, tmp_path, signalled, monkeypatch):
    unbroken = losses(train(small_run("head=flat", f"run_dir={tmp_path / 'unbroken'}")))
    config, log = small_run("head=flat"), Loop.log
    signalled({6: [signal.SIGTERM]})  # a step with a validation
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "log", lambda self, evaluates, draws: 1 / 0 if evaluates else log(self, evaluates, draws))
        with pytest.raises(Stopped, match="stopped at step 6"):
            train(config)
    assert losses(train(config)) == unbroken
