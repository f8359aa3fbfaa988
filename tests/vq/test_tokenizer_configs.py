"""Every tokenizer of configs/tokenizer: it builds, has the sizes it is known by, and its weights have a name."""

from pathlib import Path

import pytest
import torch
from codebook import CodebookStage, main
from stage import CONFIGS, load_config

from masc.runtime.artifacts import Codebook
from masc.runtime.errors import InputError
from vq.hub.releases import RELEASES

SIZES = {  # tokens, dimensions, pixels a token and side
    "emoji32": (1024, 8, 4),
    "emoji32-512": (512, 8, 4),
    "emoji64": (1024, 8, 8),
    "vq16": (16384, 8, 16),
    "vq16-t2i": (16384, 8, 16),
    "vq8": (16384, 8, 8),
    "vqgan1024": (1024, 256, 16),
    "vqgan16384": (16384, 256, 16),
    "maskgit-vq": (1024, 256, 16),
    "ibq": (262144, 256, 16),
    "magvit2": (262144, 18, 16),
}


def stage_of(name, *overrides):
    return load_config("codebook", CodebookStage, [f"tokenizer={name}", *overrides])


def test_all_are_listed():
    assert {file.stem for file in (CONFIGS / "tokenizer").glob("*.yaml")} == set(SIZES)


@pytest.mark.parametrize("name", SIZES)
def test_sizes(name):
    config = stage_of(name).tokenizer
    assert config.name == name
    with torch.device("meta"):
        model = config.build()
        codebook = model.codebook
    assert (*codebook.shape, model.downsample) == SIZES[name]
    assert model.num_tokens == len(codebook)


@pytest.mark.parametrize("name", [name for name in SIZES if not name.startswith("emoji")])
def test_weights_are_those_of_a_known_release(name):
    path = Path(stage_of(name).tokenizer.weights)
    assert path in [release.path(Path("weights")) for release in RELEASES.values()]


def test_absent_weights_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"no weights of the tokenizer vq16 at weights/vq_ds16_c2i.pt"):
        main(stage_of("vq16"))


def test_a_codebook_from_a_file_in_the_released_layout(tmp_path):
    sizes = {"channels": 32, "z_channels": 16, "channel_multipliers": "[1,1]"}
    small = [f"++tokenizer.options.{key}={value}" for key, value in sizes.items()]
    stage = stage_of("vq16", *small, f"tokenizer.weights={tmp_path}/vq.pt", f"artifacts={tmp_path}")
    model = stage.tokenizer.build()
    torch.save({"model": model.state_dict(), "steps": 5}, tmp_path / "vq.pt")
    main(stage)
    codebook = Codebook.load(tmp_path / "vq16" / "codebook.npz")
    assert codebook.vectors.shape == (16384, 8)
    torch.testing.assert_close(torch.from_numpy(codebook.vectors), model.codebook.detach())
