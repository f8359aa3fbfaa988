"""wandb is a copy of metrics.jsonl that never ends or delays a training."""

import sys
from types import SimpleNamespace

import pytest

from llamagen.train import train
from llamagen.training import tracking
from llamagen.training.tracking import TrackingConfig
from masc.runtime.run import read_metrics


class FakeWandb:
    """Stands in for the package; `failing` names the calls that raise."""

    Settings = SimpleNamespace

    def __init__(self, *failing):
        self.failing, self.started, self.rows = failing, [], []

    def _call(self, name):
        if name in self.failing:
            raise ConnectionError(f"{name} is not reachable")

    def init(self, mode, settings, **others):
        self.started.append(mode)
        assert settings.init_timeout <= 20
        self._call(mode)
        return self

    def teardown(self):
        self.started.append("teardown")

    def log(self, row, step):
        self._call("log")
        self.rows.append(step)

    def finish(self):
        self._call("finish")


@pytest.fixture
def tracked(small_run, monkeypatch, caplog):
    """Trains with a package in the place of wandb; returns the messages about wandb."""

    def run(package, *overrides):
        monkeypatch.setitem(sys.modules, "wandb", package)
        directory = train(small_run("head=flat", "steps=4", *overrides))
        assert [row["step"] for row in read_metrics(directory / "metrics.jsonl")] == [0, 2, 4]
        return [record.getMessage() for record in caplog.records if "wandb" in record.getMessage()]

    return run


@pytest.mark.parametrize("mode", ["auto", "online"])
def test_a_run_is_written_offline_where_wandb_is_not_reached(tracked, monkeypatch, mode):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    package = FakeWandb("online")
    (warning,) = tracked(package, f"tracking.mode={mode}")
    assert warning.startswith("wandb does not start online (ConnectionError: online is not reachable); the training ")
    assert package.started == ["online", "teardown", "offline"] and package.rows == [0, 2, 4]


def test_a_training_goes_on_where_wandb_fails_later_or_altogether(tracked):
    assert len(tracked(FakeWandb("online", "offline"), "tracking.mode=online")) == 2


@pytest.mark.parametrize("call", ["log", "finish"])
def test_a_training_outlives_its_wandb_run(tracked, call):
    (warning,) = tracked(FakeWandb(call), "tracking.mode=offline")
    assert f"ConnectionError: {call} is not reachable" in warning


def test_a_broken_installation_of_wandb_is_one_warning(tracked):
    (warning,) = tracked(None, "tracking.mode=offline")  # None: importing it fails
    assert "wandb does not start offline (ModuleNotFoundError" in warning


def test_a_netrc_of_other_bytes_holds_no_key(tmp_path, monkeypatch):
    (tmp_path / ".netrc").write_bytes(b"machine \xff\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    assert TrackingConfig().resolved_mode() == "offline"


@pytest.mark.slow
def test_the_real_package_goes_offline_without_a_network(small_run, monkeypatch, caplog):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(tracking, "INIT_SECONDS", 2)
    directory = train(small_run("head=flat", "tracking.mode=online", "steps=4"))
    assert list(directory.glob("wandb/offline-run-*/run-*.wandb"))
    assert "wandb does not start online" in caplog.text
