"""Samples during a training: the sampler's own, the same for any number of processes, and without effect on it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from run_rows import losses
from safetensors.torch import load_file
from user_errors import tells

from llamagen.runs import Run
from llamagen.sampling.draw import sample
from llamagen.sampling.plan import SampleConfig
from llamagen.train import check_run, train
from llamagen.training import drawing
from llamagen.training.checkpoint import last_checkpoint
from llamagen.training.drawing import Drawing
from llamagen.training.inputs import load_inputs
from llamagen.training.tracking import GRID
from llamagen.training.watching import WatchConfig
from masc.runtime.errors import InputError
from masc.runtime.run import read_metrics

DRAWS = ("head=masc", "tree=masc", "head.num_clusters=12", "watch.sample_every=4", "watch.sample_images=70")


class Decoder(torch.nn.Module):
    """Stands in for a tokenizer: shows each token as a grey, and keeps what it has decoded."""

    num_tokens, downsample = 24, 4

    def __init__(self):
        super().__init__()
        self.register_buffer("unused", torch.zeros(1))
        self.decoded = []

    def decode(self, tokens):
        self.decoded.append(tokens.numpy())
        side = int(tokens.shape[1] ** 0.5)
        grey = tokens.view(-1, 1, side, side).float() / 12 - 1
        return grey.repeat_interleave(4, 2).repeat_interleave(4, 3).expand(-1, 3, -1, -1)


@pytest.fixture
def decoder(monkeypatch):
    """The decoder of all runs; distances are measured on small features."""
    found, extractor = Decoder(), torch.nn.Identity()
    reference = SimpleNamespace(pooled=np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32))
    monkeypatch.setattr(drawing, "load_decoder", lambda *anything: found)
    monkeypatch.setattr(drawing, "load_images", lambda *anything: None)
    monkeypatch.setattr(drawing, "load_extractor", lambda: extractor)
    monkeypatch.setattr(drawing, "load_run_reference", lambda *anything: reference)
    monkeypatch.setattr(drawing, "POOLED", 6)
    monkeypatch.setattr(
        drawing, "pool", lambda _, images: torch.from_numpy(images.reshape(len(images), -1)[:, :6] / 9.0)
    )
    monkeypatch.setattr(Run, "load_tokenizer", lambda self: found)
    return found


def test_a_run_with_samples_is_the_run_without(small_run, tmp_path, decoder):
    watched = train(small_run(*DRAWS, "ema_decay=0.9", f"run_dir={tmp_path / 'watched'}"))
    bare = train(small_run(*DRAWS, "ema_decay=0.9", "watch.sample_every=0", f"run_dir={tmp_path / 'bare'}"))
    metric = "val/fd_lite0_70"
    found = {row["step"]: row[metric] for row in read_metrics(watched / "metrics.jsonl") if metric in row}
    assert list(found) == [4, 8, 12] and all(np.isfinite(value) and value > 0 for value in found.values())
    assert [{k: v for k, v in row.items() if k != metric} for row in losses(watched)] == losses(bare)
    for name in ("model", "average", "optimizer"):
        both = [load_file(last_checkpoint(run) / f"{name}.safetensors") for run in (watched, bare)]
        assert all(torch.equal(both[0][key], both[1][key]) for key in both[0])
    grids = [watched / GRID.format(step) for step in (4, 8, 12)]
    assert sorted((watched / "samples").iterdir()) == grids and not (bare / "samples").exists()
    assert Image.open(grids[0]).size == (112, 112)  # 8 x 8 images of 12 pixels a side, 2 apart


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_the_samples_are_those_of_the_sampler(small_run, decoder, ema):
    directory = train(small_run(*DRAWS, "steps=4", f"ema_decay={ema}", "watch.sampling.guidance=2", "watch.seed=3"))
    in_training = np.concatenate(decoder.decoded)[:70]
    config = SampleConfig(run=str(directory), num_images=70, batch_size=70, form="tokens", seed=3, use_ema=ema > 0)
    config.sampling.guidance = 2.0
    assert np.array_equal(in_training, sample(config).tokens)


class Process:
    """One of two processes, whose reductions are put together afterwards."""

    num_processes, device, autocast = 2, torch.device("cpu"), torch.no_grad

    def __init__(self, index, others):
        self.process_index, self.is_main_process, self.others = index, index == 0, others

    def reduce(self, tensor, how):
        self.others.append(tensor)
        return sum(self.others)


def test_two_processes_draw_the_images_of_one(small_run, decoder):
    config = small_run(*DRAWS, "steps=4")
    directory = train(config)
    (row,) = [row for row in read_metrics(directory / "metrics.jsonl") if "val/fd_lite0_70" in row]
    grid = (directory / GRID.format(4)).read_bytes()
    shared, model = Drawing(config, load_inputs(config)), Run(directory).load_model()
    shared.load_reference(torch.device("cpu"))
    others = []
    assert shared.draw(Process(1, others), model, 4) == {}
    found = shared.draw(Process(0, others), model, 4)
    assert found == {"val/fd_lite0_70": pytest.approx(row["val/fd_lite0_70"], rel=1e-6)}
    assert (directory / GRID.format(4)).read_bytes() == grid


def test_a_missing_tokenizer_is_found_before_the_training(small_run):
    config = small_run(*DRAWS)
    for starts in (lambda: check_run(config, 1), lambda: train(config)):
        with pytest.raises(InputError, match="tokenizer"):
            starts()
        assert not (config.directory / "metrics.jsonl").exists()


def test_missing_images_are_found_before_the_training(small_run, decoder, monkeypatch):
    def missing(*anything):
        raise InputError("no images at /data")

    monkeypatch.setattr(drawing, "load_images", missing)
    config = small_run(*DRAWS)
    with pytest.raises(InputError, match="no images at /data"):
        check_run(config, 1)
    check_run(small_run(*DRAWS, "watch.distance=false"), 1)  # the grid alone needs none


def test_without_a_distance_the_grid_is_drawn_alone(small_run, decoder):
    directory = train(small_run(*DRAWS, "steps=4", "watch.distance=false"))
    assert not any(name.startswith("val/fd") for row in read_metrics(directory / "metrics.jsonl") for name in row)
    assert (directory / GRID.format(4)).exists()


def test_guidance_without_a_null_condition_is_refused_at_once(small_run, decoder):
    with tells("class_dropout=0.*watch.sampling.guidance"):
        check_run(small_run(*DRAWS, "model.class_dropout=0", "watch.sampling.guidance=2"), 1)


def test_samples_that_do_not_fit_the_rows_of_losses_are_refused(small_run):
    with pytest.raises(InputError, match=r"watch\.sample_every 3 must be a multiple of log_every 2"):
        small_run("watch.sample_every=3")
    with pytest.raises(InputError, match="found -1"):
        small_run("watch.sample_every=-1")


def test_a_distance_is_named_with_its_count():
    names = {count: WatchConfig(sample_images=count).metric for count in (256, 1000, 1500, 5000)}
    assert [name.removeprefix("val/fd_lite0_") for name in names.values()] == ["256", "1k", "1500", "5k"]
