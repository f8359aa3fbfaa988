"""Plans of sample sets: settings, labels, and models and tokenizers that do not belong together."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sample as sample_script
import torch
from golden import load_state
from safetensors.torch import save_file
from stage import CONFIGS, load_config

from llamagen.release import Release
from llamagen.sampling.draw import sample
from llamagen.sampling.filters import SamplingConfig
from llamagen.sampling.plan import SampleConfig, plan_labels
from masc.runtime.errors import InputError


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_tokens": 64}, "tokenizer has 64 tokens, the model 256"),
        ({"resolution": 24}, "cannot decode the model's grids of 16 tokens"),
    ],
)
def test_a_decoder_that_does_not_fit_is_refused_before_drawing(tiny_release, tmp_path, monkeypatch, changes, words):
    monkeypatch.chdir(tmp_path)
    tokenizer = replace(
        tiny_release.tokenizer,
        options=tiny_release.tokenizer.options | changes,
        weights=str(tmp_path / "other.safetensors"),
    )
    save_file(tokenizer.build().state_dict(), tokenizer.weights)
    with pytest.raises(InputError, match=words):
        sample(SampleConfig(release=replace(tiny_release, tokenizer=tokenizer), num_images=2))
    assert not list(tmp_path.glob("runs/**/tokens"))


def test_guidance_of_a_model_without_a_null_condition_is_refused(tiny_release, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = load_state("c2i_a")
    state["cls_embedding.embedding_table.weight"] = state["cls_embedding.embedding_table.weight"][:10]
    torch.save({"model": state}, tmp_path / "bare.pt")
    bare = replace(tiny_release, weights="bare.pt", model=replace(tiny_release.model, class_dropout=0.0))
    with pytest.raises(InputError, match="without a null condition"):
        sample(SampleConfig(release=bare, num_images=2, sampling=SamplingConfig(guidance=2.0)))
    sample(SampleConfig(release=bare, num_images=2))


@pytest.mark.parametrize(
    "bad",
    [{"name": "a/b"}, {"name": ".."}, {"resolution": 0}, {"precision": "fp8"}, {"form": "gif"}, {"use_ema": True}],
)
def test_bad_settings_are_refused_by_name(tiny_release, bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        SampleConfig(release=tiny_release, **bad)


def test_labels_are_balanced_or_uniform_by_index(tiny_release):
    source = Release(tiny_release, Path("artifacts"))
    assert np.array_equal(np.bincount(plan_labels("balanced", source, 500, 0)), np.full(10, 50))
    drawn = plan_labels("uniform", source, 5000, 0)
    assert np.array_equal(drawn[:7], plan_labels("uniform", source, 7, 0))
    # Chi-square with 9 degrees of freedom; 33.7 is exceeded by chance once in 10,000.
    assert (np.square(np.bincount(drawn) - 500) / 500).sum() < 33.7
    with pytest.raises(InputError, match="labels=uniform or balanced"):
        plan_labels("training", source, 5, 0)


def test_the_preset_of_a_release_is_its_own_whatever_was_chosen():
    for chosen in (["sampling=gallery"], ["sampling=c2i_B_256"], [], ["sampling=c2i_L_256", "sampling.guidance=3"]):
        config = load_config("sample", SampleConfig, ["release=c2i_L_256", *chosen])
        assert sample_script.preset_of(config).guidance == 1.75 and sample_script.preset_of(config).top_k == 0
    assert sample_script.preset_of(load_config("sample", SampleConfig, ["run=x"])) is None


def test_every_released_model_has_a_preset_and_composes():
    releases = sorted(file.stem for file in (CONFIGS / "release").glob("*.yaml"))
    assert len(releases) == 9
    guidance = {}
    for name in releases:
        config = load_config("sample", SampleConfig, [f"release={name}", f"sampling={name}"])
        assert config.release.name == name and config.release.weights == f"weights/{name}.pt"
        assert config.release.resolution <= config.release.grid * 16
        assert config.label_plan == "uniform"
        guidance[name] = config.sampling.guidance
    assert guidance["c2i_B_256"] == 2.0 and guidance["c2i_L_256"] == 1.75 and guidance["c2i_B_384"] == 2.25
    assert guidance["c2i_3B_384"] == 1.65 and guidance["t2i_XL_stage2_512"] == 7.5
    with pytest.raises(InputError, match="one of the two"):
        load_config("sample", SampleConfig, [])
