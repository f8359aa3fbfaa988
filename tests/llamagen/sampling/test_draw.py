"""Sampling from a checkpoint in LlamaGen's layout: the same images whatever the batch, processes or interruption."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import load_golden, load_state
from golden_adapter import build_gpt, load_gpt_state
from PIL import Image
from safetensors.torch import save_file
from sample_files import contents, images_of
from text_encoder import make_encoder

from llamagen.conditions.captions import Captions
from llamagen.conditions.encoders import T5Encoder
from llamagen.conditions.features import TextFeatures, extract_text_features
from llamagen.conditions.images import check_features
from llamagen.release import Release
from llamagen.sampling import draw as sampling
from llamagen.sampling.draw import check_settings, is_sampled, sample
from llamagen.sampling.filters import SamplingConfig
from llamagen.sampling.generate import generate, image_uniforms
from llamagen.sampling.images import decode_unit
from llamagen.sampling.plan import SampleConfig, plan_labels
from llamagen.sampling.sets import SampleSet
from masc.runtime.errors import InputError
from masc.runtime.run import locked


def test_what_is_written_is_what_the_model_and_the_decoder_give(draw, release):
    samples = draw(name="a", seed=3)
    where, tokens, labels = samples.directory, samples.tokens, samples.labels
    assert tokens.shape == (21, 16) and tokens.dtype == np.uint16
    assert np.array_equal(labels, plan_labels("uniform", samples.source, 21, 3))
    model = build_gpt(load_golden("c2i_a")[0]["config"]).eval()
    load_gpt_state(model, load_state("c2i_a"))
    uniforms = image_uniforms(3, range(21), 16, 1)
    assert np.array_equal(generate(model, torch.from_numpy(labels), uniforms, SamplingConfig(guidance=2.0)), tokens)
    images = images_of(samples)
    assert images.shape == (21, 12, 12, 3) and images.dtype == np.uint8
    from vq.pretrained import load_tokenizer

    decoder = load_tokenizer(release.tokenizer.weights, release.tokenizer)
    assert np.array_equal(decode_unit(decoder, tokens[16:], 12, torch.device("cpu")), images[16:])
    manifest = json.loads((where / "manifest.json").read_text())
    assert manifest["config"]["labels"] == "uniform" and manifest["config"]["sampling"]["guidance"] == 2.0
    assert {"weights_sha256", "tokenizer_sha256"} <= set(manifest)
    assert {"commit", "packages", "command"} <= set(json.loads((where / "provenance.json").read_text()))
    assert Image.open(where / "grid.png").size[0] >= 8 * 12


def test_the_images_do_not_depend_on_the_batch_or_how_many_are_drawn(draw):
    whole = contents(draw(name="a", batch_size=64))
    single = contents(draw(name="b", batch_size=1))
    assert whole == single
    fewer = images_of(draw(name="c", num_images=5, batch_size=2))
    assert np.array_equal(fewer, images_of(draw(name="a", batch_size=64))[:5])


def test_both_forms_hold_the_same_images(draw):
    archive, folder = draw(name="a"), draw(name="b", form="png")
    assert sorted(file.name for file in (folder.directory / "images").iterdir())[::20] == ["000000.png", "000020.png"]
    assert np.array_equal(images_of(archive), images_of(folder))
    with np.load(archive.directory / "images.npz", allow_pickle=False) as stored:
        assert stored.files == ["arr_0"]


@pytest.mark.parametrize("form", ["npz", "png"])
@pytest.mark.parametrize("breaks_in", ["generate", "decode_unit"])
def test_an_interrupted_sampling_goes_on_and_gives_the_same(draw, monkeypatch, form, breaks_in):
    whole = contents(draw(name="whole", form=form))
    module = sampling if breaks_in == "generate" else sys.modules["llamagen.sampling.images"]
    original, calls = getattr(module, breaks_in), []

    def breaking(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(module, breaks_in, breaking)
    with pytest.raises(KeyboardInterrupt):
        draw(name="broken", form=form, batch_size=4)
    calls.append(1)  # from here on nothing breaks
    before = len(calls)
    assert contents(draw(name="broken", form=form, batch_size=8)) == whole
    left = {"generate": 3, "decode_unit": 1}[breaks_in]  # 17 of 21 images in batches of 8; the second of two units
    assert len(calls) - before == left


@pytest.mark.parametrize("finished", [True, False])
def test_samples_of_other_settings_are_not_replaced(draw, release, monkeypatch, finished):
    with monkeypatch.context() as patch:
        if not finished:
            patch.setattr(sampling, "decode_units", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with contextlib.nullcontext() if finished else pytest.raises(KeyboardInterrupt):
            draw(name="a", seed=1)
    with pytest.raises(InputError, match=r"other settings:\n  seed: 1 there, 2 now\n.*SAMPLES="):
        draw(name="a", seed=2)
    asked = {"name": "a", "num_images": 21, "sampling": SamplingConfig(guidance=2.0)}
    with pytest.raises(InputError, match=r"other settings:\n  seed: 1 there, 2 now\n.*SAMPLES="):
        check_settings(SampleConfig(release=release, seed=2, **asked))  # before the processes start
    check_settings(SampleConfig(release=release, seed=1, batch_size=3, **asked))
    assert draw(name="a", seed=1, batch_size=3).settings["seed"] == 1


def test_samples_of_other_weights_are_drawn_anew(draw, release, tmp_path):
    before = contents(draw(name="a"))
    state = torch.load(release.weights, weights_only=True)
    torch.save({"model": {name: value * 1.1 for name, value in state["model"].items()}}, tmp_path / "other.pt")
    other = replace(release, weights=str(tmp_path / "other.pt"))
    after = contents(
        sample(SampleConfig(release=other, name="a", sampling=SamplingConfig(guidance=2.0), num_images=21))
    )
    assert before != after
    shutil.copy(other.weights, tmp_path / "moved.pt")  # the same weights elsewhere are the same
    assert is_sampled(
        SampleConfig(
            release=replace(release, weights=str(tmp_path / "moved.pt")),
            name="a",
            sampling=SamplingConfig(guidance=2.0),
            num_images=21,
        )
    )


def test_two_samplings_of_one_name_do_not_mix(draw, tmp_path):
    with locked(tmp_path / "runs/c2i_tiny/samples/.a.unfinished"), pytest.raises(InputError, match="another process"):
        draw(name="a")
    draw(name="a")


def test_a_set_that_a_killed_process_had_renamed_is_found_and_not_drawn_again(draw):
    drawn = draw(name="a")
    before = (drawn.directory / "tokens.npy").stat().st_ino
    drawn.directory.rename(drawn.directory.with_name(".a.old"))
    assert (SampleSet(drawn.source, "a").directory / "tokens.npy").stat().st_ino == before
    drawn.directory.rename(drawn.directory.with_name(".a.old"))
    assert (draw(name="a").directory / "tokens.npy").stat().st_ino == before


@pytest.mark.slow
def test_four_processes_draw_the_images_of_one(release, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from omegaconf import OmegaConf

    file = tmp_path / "config.yaml"
    file.write_text(OmegaConf.to_yaml(OmegaConf.structured(release)))
    script = tmp_path / "draw.py"
    script.write_text(
        f"""
import sys
from accelerate import Accelerator
from omegaconf import OmegaConf
from llamagen.sampling.filters import SamplingConfig
from llamagen.sampling.plan import SampleConfig
from llamagen.release import ReleaseConfig
from llamagen.sampling.draw import sample

release = OmegaConf.merge(OmegaConf.structured(ReleaseConfig), OmegaConf.load({str(file)!r}))
settings = {{"num_images": 21, "batch_size": 3, "sampling": SamplingConfig(guidance=2.0)}}
sample(SampleConfig(release=OmegaConf.to_object(release), name=sys.argv[1], form=sys.argv[2], **settings))
assert Accelerator().num_processes == int(sys.argv[3])
"""
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    for form in ("npz", "png"):
        for processes in ("1", "4"):
            command = [*launch, processes, str(script), f"{form}{processes}", form, processes]
            done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        one, four = (SampleSet(Release(release, Path("artifacts")), f"{form}{processes}") for processes in (1, 4))
        assert contents(one) == contents(four)


def test_captions_condition_a_text_model(release, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    encoder = make_encoder(tmp_path / "t5")
    lines = ["two cats", "a green dog in rain", "trees", "two cats"]
    extract_text_features(Captions(lines, None), T5Encoder(encoder), tmp_path / "text", 2)
    meta = load_golden("t2i_120")[0]
    model = build_gpt(meta["config"])
    torch.save({"model": load_state("t2i_120")}, tmp_path / "t2i.pt")
    decoder = replace(
        release.tokenizer, options=release.tokenizer.options | {"num_tokens": 64}, weights="vq64.safetensors"
    )
    save_file(decoder.build().state_dict(), decoder.weights)
    sizes = {"model": model.backbone.config, "num_tokens": 64, "tokenizer": decoder}
    text = replace(release, name="t2i", weights="t2i.pt", **sizes)
    settings = {"release": text, "num_images": 4, "sampling": SamplingConfig(guidance=7.5, top_k=10)}
    samples = sample(SampleConfig(captions="text", **settings))
    where, tokens = samples.directory, samples.tokens
    single = sample(SampleConfig(captions="text", batch_size=1, name="single", **settings)).tokens
    assert np.array_equal(tokens, single) and tokens.max() < 64
    assert not np.array_equal(tokens[0], tokens[1])
    manifest = json.loads((where / "manifest.json").read_text())
    assert manifest["config"]["labels"] is None and manifest["captions"]["encoder"] == "t5"
    assert json.loads((where / "captions.json").read_text()) == lines and not (where / "labels.npy").exists()
    extract_text_features(Captions(lines[::-1], None), T5Encoder(encoder), tmp_path / "other", 2)
    with pytest.raises(InputError, match=r"holds samples of other settings:\n  captions\.captions_sha256"):
        sample(SampleConfig(captions="other", **settings))
    assert np.array_equal(np.load(where / "tokens.npy"), tokens)
    with pytest.raises(InputError, match="golden is text-conditional"):
        sample(SampleConfig(name="none", **settings))
    with pytest.raises(InputError, match="holds 4 captions for 5 images"):
        sample(SampleConfig(captions="text", name="five", **(settings | {"num_images": 5})))
    wide = replace(text, model=replace(text.model, caption_dim=2048))
    with pytest.raises(InputError, match=r"takes captions of 120 x 2048 numbers, text holds 120 x 16"):
        check_features(wide.model, TextFeatures.load(tmp_path / "text"), Path("text"))


def test_off_the_preset_is_warned_of_and_on_it_is_not(release, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    preset = SamplingConfig(guidance=2.0)
    sample(SampleConfig(release=release, num_images=2, sampling=preset, name="on"), preset)
    assert "off the preset" not in caplog.text
    config = SampleConfig(
        release=release, num_images=2, resolution=16, sampling=SamplingConfig(guidance=4.0, top_k=5), name="off"
    )
    sample(config, preset)
    for words in (
        "off the preset of c2i_tiny",
        "guidance 4.0 instead of 2.0",
        "top_k 5",
        "resolution 16 instead of 12",
    ):
        assert words in caplog.text
    assert is_sampled(config)


def test_samples_that_another_process_drew_meanwhile_are_kept(draw, monkeypatch):
    plan = sampling.make_plan

    def slowly(*arguments):
        with monkeypatch.context() as patch:
            patch.setattr(sampling, "make_plan", plan)
            draw(name="a")
        monkeypatch.setattr(sampling, "_draw_tokens", None)
        return plan(*arguments)

    monkeypatch.setattr(sampling, "make_plan", slowly)
    assert draw(name="a").is_drawn and not Path("runs/c2i_tiny/samples/.a.unfinished").exists()


@pytest.mark.parametrize("part", ["", "tokens"])
def test_a_link_where_pieces_are_removed_is_refused(draw, tmp_path, part):
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "tokens").mkdir(parents=True)
    (elsewhere / "tokens" / "mine.txt").write_text("mine")
    place = tmp_path / "runs" / "c2i_tiny" / "samples" / ".default.unfinished" / part
    place.parent.mkdir(parents=True)
    place.symlink_to(elsewhere)
    with pytest.raises(InputError, match="found a link; remove the link"):
        draw()
    assert (elsewhere / "tokens" / "mine.txt").read_text() == "mine"
