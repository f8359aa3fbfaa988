"""Files from outside: read if they hold tensors, refused unread if they hold code, explained if they do not fit."""

import json
import os
import pickle
import re
import sys
import types
import zipfile
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel
from user_errors import tells

from masc.runtime.errors import InputError
from vq.checkpoint import find_state, load_state, read_checkpoint

STATE = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.tensor([1.0, 2.0])}


class Trap:
    """Makes a directory when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def lightning(monkeypatch):
    """Classes that pickle as PyTorch Lightning's; the library itself is not installed."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    module = types.ModuleType(name)
    for title, bases in (("ModelCheckpoint", ()), ("AttributeDict", (dict,))):
        made = type(title, bases, {"__module__": name})
        setattr(module, title, made)
    for part in ("pytorch_lightning", "pytorch_lightning.callbacks"):
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    monkeypatch.setitem(sys.modules, name, module)
    return module


def assert_state(found):
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[name], STATE[name]) for name in STATE)


@pytest.mark.parametrize("is_archive", [True, False], ids=["archive", "legacy"])
@pytest.mark.parametrize("container", ["model", "module", "state_dict", "model_state_dict", "ema", None])
def test_a_state_dict_is_found_wherever_released_files_hold_it(tmp_path, container, is_archive):
    path = tmp_path / "file.pt"
    content = STATE if container is None else {container: STATE, "steps": 5, "args": Namespace(lr=1e-4)}
    torch.save(content, path, _use_new_zipfile_serialization=is_archive)
    assert_state(find_state(read_checkpoint(path), path))


def test_safetensors(tmp_path):
    path = tmp_path / "file.safetensors"
    save_file(STATE, path)
    assert_state(find_state(read_checkpoint(path), path))


def test_objects_of_a_training_framework_are_read_as_nothing(tmp_path, lightning):
    callback = lightning.ModelCheckpoint()
    callback.best_model_score = torch.tensor(1.0)
    checkpoint = {
        "state_dict": STATE,
        "callbacks": {lightning.ModelCheckpoint: {"best_model_score": 0.5}},
        "last": callback,
        "hyper_parameters": lightning.AttributeDict(learning_rate=4.5e-6),
    }
    path = tmp_path / "last.ckpt"
    torch.save(checkpoint, path)
    for name in [name for name in sys.modules if name.startswith("pytorch_lightning")]:
        del sys.modules[name]
    found = read_checkpoint(path)
    assert_state(find_state(found, path))
    assert vars(found["last"]) == {} and found["hyper_parameters"] == {"learning_rate": 4.5e-6}
    assert "pytorch_lightning" not in sys.modules


@pytest.mark.parametrize("is_archive", [True, False], ids=["archive", "legacy"])
def test_code_in_a_file_is_refused_and_not_run(tmp_path, is_archive):
    path, trace = tmp_path / "trap.pt", tmp_path / "it-ran"
    torch.save({"state_dict": STATE, "extra": Trap(trace)}, path, _use_new_zipfile_serialization=is_archive)
    with pytest.raises(InputError, match=r"was not run \(.*mkdir"):
        read_checkpoint(path)
    assert not trace.exists()
    with path.open("wb") as file:
        pickle.dump(Trap(trace), file, protocol=2)  # torch's
    with pytest.raises(InputError, match="was not run"):
        read_checkpoint(path)
    assert not trace.exists()


def test_code_below_the_name_of_a_framework_is_not_run_either(tmp_path, lightning):
    trace = tmp_path / "it-ran"
    lightning.ModelCheckpoint.__reduce__ = lambda self: (lightning.ModelCheckpoint, (str(trace),))
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": STATE, "callback": lightning.ModelCheckpoint()}, path)
    lightning.ModelCheckpoint.__init__ = lambda self, where: Path(where).mkdir()
    assert_state(find_state(read_checkpoint(path), path))
    assert not trace.exists()


@pytest.mark.parametrize("name", ["file.pt", "file.safetensors"])
def test_files_that_are_missing_truncated_or_something_else(tmp_path, name):
    path = tmp_path / name
    with tells(r"no checkpoint at .*make weights"):
        read_checkpoint(path)
    save = save_file if path.suffix == ".safetensors" else torch.save
    save(STATE, path)
    whole = path.read_bytes()
    for cut in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(InputError, match=str(path)):
            read_checkpoint(path)
    path.write_text("<html>404 Not Found</html>")
    with pytest.raises(InputError, match=str(path)):
        read_checkpoint(path)


def test_what_is_no_state_dict_is_listed(tmp_path):
    path = tmp_path / "file.pt"
    torch.save([1, 2], path)
    with pytest.raises(InputError, match="found list"):
        read_checkpoint(path)
    with pytest.raises(InputError, match="found optimizer, steps"):
        find_state({"optimizer": {}, "steps": 3}, path)
    with pytest.raises(InputError, match="found nothing"):
        find_state({}, path)
    with pytest.raises(InputError, match="found NoneType as 'scale'"):
        find_state({"model": STATE | {"scale": None}}, path)
    assert find_state({"ema": STATE, "model": {}}, path, ("ema",)) is STATE


def test_a_state_that_does_not_fit_names_keys_shapes_and_cause(tmp_path):
    module, path = nn.Linear(3, 2), tmp_path / "file.pt"
    load_state(module, {name: value.half() for name, value in STATE.items()}, path)
    assert torch.equal(module.weight, STATE["weight"]) and module.weight.dtype == torch.float32
    with pytest.raises(InputError, match=r"weight is \(2, 3\) there, \(2, 4\) here. Choose the config"):
        load_state(nn.Linear(4, 2), STATE, path)
    with pytest.raises(InputError, match=r"bias \(2,\) is unexpected. It has a bias"):
        load_state(nn.Linear(3, 2, bias=False), STATE, path, lambda state: "It has a bias" if "bias" in state else None)
    with pytest.raises(InputError, match=r"bias \(2,\) is missing"):
        load_state(module, {"weight": STATE["weight"]}, path)


@pytest.mark.parametrize(
    "prefix",
    [
        *("_orig_mod.", "module.", "_orig_mod.module.", "module._orig_mod.", "module.module.", "model."),
        *("_forward_module.", "_forward_module.model._orig_mod.", "module.model."),
    ],
)
def test_names_of_a_wrapped_module_are_read_as_its_own(tmp_path, caplog, prefix):
    path = tmp_path / "file.pt"
    torch.save({"model": {prefix + name: value for name, value in STATE.items()}}, path)
    with caplog.at_level("INFO"):
        assert_state(find_state(read_checkpoint(path), path))
    assert f"saved from a wrapped module: {prefix}weight is read as weight" in caplog.text


@pytest.mark.parametrize("wrap", [lambda module: module, nn.DataParallel], ids=["plain", "parallel"])
def test_the_state_of_an_averaged_model_is_read(wrap):
    module = nn.Linear(3, 2)
    module.load_state_dict(STATE)
    state = wrap(AveragedModel(wrap(module))).state_dict()
    assert any("n_averaged" in name for name in state)
    assert_state(find_state({"ema": state}, Path("x.pt")))


def test_of_several_containers_the_first_is_read_and_named(caplog):
    with caplog.at_level("INFO"):
        assert find_state({"ema": {"bias": STATE["bias"]}, "model": STATE}, Path("x.pt")) is STATE
    assert "x.pt holds weights as model, ema: reading model" in caplog.text


@pytest.mark.parametrize("prefix", ["model.", "module.", "module.model."])
def test_a_modules_own_names_keep_what_looks_like_a_wrapper(prefix):
    inner = nn.ModuleDict({"model": nn.ModuleDict({"module": nn.Linear(3, 2)})})
    state = {f"{prefix}{name}": value for name, value in inner.state_dict().items()}
    assert find_state(state, Path("x.pt"), own=inner.state_dict()).keys() == inner.state_dict().keys()
    assert find_state(inner.state_dict(), Path("x.pt"), own=inner.state_dict()).keys() == inner.state_dict().keys()


def test_a_wrapper_around_a_part_is_taken_out_and_a_module_of_that_name_stays(caplog):
    inner = {"layers.0._orig_mod.weight": STATE["weight"], "bias": STATE["bias"]}
    assert list(find_state(inner, Path("x.pt"))) == ["layers.0.weight", "bias"]
    own = {"module.weight": STATE["weight"], "bias": STATE["bias"]}
    assert find_state(own, Path("x.pt")) is own
    twice = {"_orig_mod.bias": STATE["bias"], "bias": STATE["bias"]}
    assert find_state(twice, Path("x.pt")) is twice


def test_the_advice_to_load_a_file_unsafely_is_never_shown(tmp_path):
    path = tmp_path / "trap.pt"
    path.write_bytes(pickle.dumps(Trap(tmp_path / "it-ran"), protocol=4))
    with pytest.raises(InputError) as error:
        read_checkpoint(path)
    assert not re.search("weights_only|torch.load|safe_globals|trust", str(error.value))


@pytest.mark.parametrize(
    "value",
    [
        torch.eye(2).to_sparse(),
        torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        torch.ones(2, dtype=torch.complex64),
        torch.ones(2, device="meta"),
    ],
    ids=["sparse", "quantized", "complex", "meta"],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_no_dense_numbers_are_named(value):
    with pytest.raises(InputError, match=r"expected dense numbers in x\.pt, found .* as 'weight'"):
        find_state({"weight": value}, Path("x.pt"))
    with pytest.raises(InputError, match="expected a state dict"):
        find_state({1: torch.ones(2)}, Path("x.pt"))


def test_weights_of_another_kind_of_number_or_not_finite_are_refused():
    module, path = nn.Linear(3, 2), Path("x.pt")
    before = module.weight.clone()
    with pytest.raises(InputError, match=r"weight is torch\.int8 there, torch\.float32 here"):
        load_state(module, STATE | {"weight": STATE["weight"].to(torch.int8)}, path)
    for bad in (float("nan"), float("-inf")):
        with pytest.raises(InputError, match="not finite in bias"):
            load_state(module, STATE | {"bias": torch.tensor([1.0, bad])}, path)
    with pytest.raises(InputError, match="not finite in bias"):
        load_state(module, STATE | {"bias": torch.tensor([1.0, 1e300], dtype=torch.float64)}, path)
    assert torch.equal(module.weight, before)
    for place in (0, 10_000, -1):  # of a large tensor the first, middle and last values are looked at
        large = torch.zeros(1, 20_000)
        large[0, place] = float("inf")
        with pytest.raises(InputError, match="not finite in weight"):
            load_state(nn.Linear(20_000, 1, bias=False), {"weight": large}, path)
    large = torch.zeros(1, 20_000)
    large[0, 5_000] = float("inf")  # outside the sample
    load_state(nn.Linear(20_000, 1, bias=False), {"weight": large}, path)
    module.register_buffer("mask", torch.zeros(2))
    load_state(module, STATE | {"mask": torch.tensor([0.0, float("-inf")])}, path)
    assert module.mask[1] == float("-inf")


def test_an_archive_that_inflates_is_refused_before_it_is_read(tmp_path):
    small, path = tmp_path / "small.pt", tmp_path / "bomb.pt"
    torch.save(STATE, small)
    with zipfile.ZipFile(small) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for member in source.infolist():
            target.writestr(member.filename, source.read(member))
        target.writestr("small/data/7", bytes(10**6))
    with pytest.raises(InputError, match=r"bomb\.pt .*claim \d+ bytes"):
        read_checkpoint(path)


SOUND = {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]}
HEADERS = {
    "claims": {"weight": SOUND | {"shape": [10**8, 10**7]}},
    "overlap": {"a": SOUND, "b": SOUND},
    "dtype": {"weight": SOUND | {"dtype": "F99"}},
    "negative": {"weight": SOUND | {"shape": [-8]}},
    "reversed": {"weight": SOUND | {"data_offsets": [32, 0]}},
    "list": [1],
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_safetensors_header_that_lies_is_one_error(tmp_path, name):
    path, header = tmp_path / "file.safetensors", json.dumps(HEADERS[name]).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(32))
    with pytest.raises(InputError, match=r"file\.safetensors is truncated, or it is not a checkpoint"):
        read_checkpoint(path)
    path.write_bytes((10**15).to_bytes(8, "little") + header)
    with pytest.raises(InputError, match=r"file\.safetensors"):
        read_checkpoint(path)


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_a_pipe_in_the_place_of_a_checkpoint_is_refused_at_once(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match=r"expected a file at .*model.*, found a device or a pipe; download it again"):
        read_checkpoint(tmp_path / name)


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "a pointer of git-lfs, .*git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "a web page; download it again"),
        (b"<html>404 Not Found</html>", "a web page; download it again"),
        (b"\xef\xbb\xbf\n<?xml version='1.0'?><Error>", "a web page; download it again"),
        (b"\x1f\x8b\x08\x00" + bytes(20), "compressed by gzip, to be unpacked"),
    ],
    ids=["git-lfs", "doctype", "html", "xml", "gzip"],
)
def test_another_file_in_the_place_of_a_checkpoint_is_named_with_its_remedy(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"expected a checkpoint in .*{re.escape(name)}, found .*{words}"):
        read_checkpoint(tmp_path / name)
