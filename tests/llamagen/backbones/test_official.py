"""LlamaGen's checkpoint files: both layouts in, ours out, and what does not fit named with its cause."""

import argparse
import pickle
import zipfile

import pytest
import torch
from golden import load_golden, load_state
from golden_adapter import FLAT, build_gpt

from llamagen.backbones.base import DataShape
from llamagen.backbones.official import load_official, save_official
from llamagen.model import build_model
from masc.heads.config import MascConfig, MascTwoLevelConfig
from masc.runtime.errors import InputError
from masc.tree import Partition


def config_of(name="c2i_a", **changes):
    return load_golden(name)[0]["config"] | changes


@pytest.fixture
def state():
    return load_state("c2i_a")


def saved(tmp_path, content, name="given.pt"):
    torch.save(content, tmp_path / name)
    return tmp_path / name


def logits(model):
    tokens = torch.arange(16)[None] % 128
    with torch.no_grad():
        return model.head.output(model.eval().backbone(tokens, torch.tensor([3])))


def test_both_released_layouts_and_a_users_own_give_the_same_model(state, tmp_path):
    caches = {f"layers.{i}.attention.kv_cache.{kv}_cache": torch.zeros(2, 4, 24, 16) for i in range(3) for kv in "kv"}
    own = {
        "model": state,
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.95)}]},
        "steps": 7,
        "args": argparse.Namespace(image_size=64, downsample_size=16, gpt_model="GPT-B"),
        "ema": {name: value + 1 for name, value in state.items()},
    }
    files = {
        "ddp": {"model": state},
        "fsdp": state,
        "module": {"module": state},
        "state_dict": {"state_dict": state},
        "after sampling": {"model": state | caches},
        "own": own,
    }
    found = []
    for name, content in files.items():
        model = build_gpt(config_of())
        load_official(model, saved(tmp_path, content, f"{name}.pt"))
        found.append(logits(model))
    assert all(torch.equal(found[0], other) for other in found)
    averaged = build_gpt(config_of())
    load_official(averaged, tmp_path / "own.pt", use_ema=True)
    assert not torch.equal(logits(averaged), found[0])
    with pytest.raises(InputError, match="no averaged weights"):
        load_official(averaged, tmp_path / "ddp.pt", use_ema=True)


@pytest.mark.parametrize("name", ["c2i_a", "c2i_gqa", "t2i_a"])
def test_what_is_exported_is_the_released_layout_bit_for_bit(name, tmp_path):
    model, original = build_gpt(config_of(name)), load_state(name)
    load_official(model, saved(tmp_path, {"model": original}))
    save_official(model, tmp_path / "out.pt")
    exported = torch.load(tmp_path / "out.pt", weights_only=True)
    assert list(exported) == ["model"] and set(exported["model"]) == set(original)
    assert all(torch.equal(exported["model"][key], original[key]) for key in original)


def test_a_masc_model_is_exported_with_its_clusters_as_vocabulary(tmp_path):
    import numpy as np

    half = Partition(np.arange(64) // 2)
    config = build_gpt(config_of()).backbone.config
    shape = DataShape(64, 10, 16)
    masc = build_model(config, MascConfig(name="masc", context="cluster"), shape, half, seed=0)
    save_official(masc, tmp_path / "masc.pt")
    coarse = build_model(config, FLAT, DataShape(32, 10, 16), None, seed=1)
    load_official(coarse, tmp_path / "masc.pt")
    assert torch.equal(coarse.head.output.weight, masc.head.output.weight)
    tokens = build_model(config, MascConfig(name="masc"), shape, half, seed=0)
    with pytest.raises(InputError, match="embeds 64 tokens, and its MascHead predicts 32 clusters"):
        save_official(tokens, tmp_path / "tokens.pt")
    two_level = build_model(config, MascTwoLevelConfig(name="two"), shape, half, seed=0)
    with pytest.raises(InputError, match="has a MascTwoLevelHead; export a run of the head flat, masc or tree-shared"):
        save_official(two_level, tmp_path / "two.pt")
    assert not (tmp_path / "two.pt").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vocab_size": 128}, ["tok_embeddings.weight", "(256, 64)", "(128, 64)", "vocabulary has 256 tokens"]),
        ({"num_classes": 5}, ["embedding_table.weight", "(11, 64)", "(6, 64)", "knows 11 classes"]),
        ({"n_layer": 2}, ["layers.2", "unexpected", "3 layers of width 64", "choose another MODEL"]),
        ({"n_layer": 4}, ["layers.3", "missing", "3 layers of width 64"]),
        ({"dim": 128}, ["(192, 64)", "(384, 128)", "3 layers of width 64"]),
        ({"model_type": "t2i", "cls_token_num": 8}, ["cap_proj", "class-conditional", "set model.condition"]),
    ],
)
def test_weights_of_another_model_are_refused_with_the_cause(state, tmp_path, changes, words):
    model = build_gpt(config_of(**changes))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InputError) as error:
        load_official(model, saved(tmp_path, {"model": state}))
    assert all(word in str(error.value) for word in [*words, "given.pt"]), error.value
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("content", "name", "why"),
    [
        (lambda state: {"model": state}, "c2i_B_256.pt", "its name"),
        (lambda state: {"model": state, "args": argparse.Namespace(image_size=256)}, "x.pt", "its own arguments"),
        (
            lambda state: {"model": state | {"layers.0.attention.kv_cache.k_cache": torch.zeros(2, 4, 264, 16)}},
            "x.pt",
            "the length of its key-value cache",
        ),
    ],
)
def test_a_256_checkpoint_with_another_grid_is_refused(state, tmp_path, content, name, why):
    # Every shape fits: nothing in LlamaGen's weights depends on the grid.
    with pytest.raises(InputError, match=f"trained on 16 x 16 tokens \\({why}\\), the model here has 4 x 4"):
        load_official(build_gpt(config_of()), saved(tmp_path, content(state), name))


@pytest.mark.parametrize(
    "extra",
    [
        {"args": argparse.Namespace(image_size="256")},
        {"args": argparse.Namespace(image_size=256, downsample_size=0)},
        {"args": argparse.Namespace(image_size=None)},
    ],
)
def test_arguments_that_say_no_grid_are_passed_over(state, tmp_path, extra):
    load_official(build_gpt(config_of()), saved(tmp_path, {"model": state, **extra}))


@pytest.mark.parametrize(
    "change",
    [
        {"layers.x.weight": torch.zeros(1)},
        {"tok_embeddings.weight": torch.zeros(256)},
        {"cls_embedding.embedding_table.weight": torch.zeros(())},
        {"layers.0.attention.kv_cache.k_cache": torch.zeros(2)},
        {"layers.0.attention.kv_cache.k_cache": torch.zeros(1, 1, 0, 1), "more": torch.zeros(1)},
    ],
)
def test_tensors_of_no_llamagen_are_one_error(state, tmp_path, change):
    file = saved(tmp_path, {"model": state | change})
    if list(change) == ["layers.0.attention.kv_cache.k_cache"]:
        load_official(build_gpt(config_of()), file)  # caches are skipped
        return
    with pytest.raises(InputError, match=r"given\.pt does not fit"):
        load_official(build_gpt(config_of()), file)


def test_a_compiled_and_parallel_models_checkpoint_loads(state, tmp_path):
    wrapped = {f"_orig_mod.module.{name}": value for name, value in state.items()}
    model, other = build_gpt(config_of()), build_gpt(config_of())
    load_official(model, saved(tmp_path, {"model": wrapped}))
    load_official(other, saved(tmp_path, {"model": state}, "plain.pt"))
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), other.parameters(), strict=True))


def test_a_tokenizers_file_is_told_from_a_transformers(tmp_path):
    file = saved(tmp_path, {"model": {"encoder.conv_in.weight": torch.zeros(3)}})
    with pytest.raises(InputError, match="no LlamaGen transformer"):
        load_official(build_gpt(config_of()), file)


class Bomb:
    def __reduce__(self):
        return (print, ("this ran",))


def test_a_checkpoint_with_code_is_refused_without_running_it(tmp_path, capsys):
    for name, save in (("zip.pt", torch.save), ("raw.pt", lambda x, path: path.write_bytes(pickle.dumps(x)))):
        save({"model": {"a": torch.zeros(1)}, "extra": Bomb()}, tmp_path / name)
        with pytest.raises(InputError, match=f"{name} holds pickled code"):
            load_official(build_gpt(config_of()), tmp_path / name)
    assert "this ran" not in capsys.readouterr().out


def test_a_truncated_or_missing_checkpoint_is_named(state, tmp_path):
    file = saved(tmp_path, {"model": state}, "whole.pt")
    (tmp_path / "cut.pt").write_bytes(file.read_bytes()[:-2000])
    with pytest.raises(InputError, match=r"cut.pt is truncated"):
        load_official(build_gpt(config_of()), tmp_path / "cut.pt")
    with pytest.raises(InputError, match=r"no checkpoint at .*none.pt"):
        load_official(build_gpt(config_of()), tmp_path / "none.pt")
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as archive:
        archive.writestr("hello", "world")
    with pytest.raises(InputError, match=r"other.pt"):
        load_official(build_gpt(config_of()), tmp_path / "other.pt")
