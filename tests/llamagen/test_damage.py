"""Files of runs, samples, captions and checkpoints, damaged: see tests/damage.py."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from damage import Kind, check, plain
from safetensors.torch import save_file

from llamagen.conditions.captions import read_captions
from llamagen.conditions.features import TextFeatures
from llamagen.runs import Run
from llamagen.sampling.sets import SampleSet
from llamagen.training.checkpoint import Progress, load_progress
from masc.runtime.files import hash_file, write_json
from vq.checkpoint import find_state, read_checkpoint

pytestmark = [pytest.mark.usefixtures("little_memory"), pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def text_features(tmp_path):
    """Text features of three captions, as they are stored."""
    lengths = [2, 0, 5]
    np.save(tmp_path / "features.npy", np.arange(7 * 4, dtype=np.uint16).reshape(7, 4))
    np.save(tmp_path / "offsets.npy", np.cumsum([0, *lengths]))
    (tmp_path / "captions.json").write_text(json.dumps({"texts": ["a", "", "é"], "images": ["0", "1", "2"]}))
    sha256 = {name: hash_file(tmp_path / name) for name in ("features.npy", "offsets.npy", "captions.json")}
    config = {"encoder": "flan-t5-xl", "max_tokens": 120}
    meta = {"format": "masc-text-features", "version": 1, "shape": [7, 4], "config": config, "sha256": sha256}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    return tmp_path


@pytest.mark.parametrize("name", ["meta.json", "features.npy", "offsets.npy", "captions.json"])
def test_text_features(text_features, name):
    def read():
        found = TextFeatures.load(text_features, verify=True)
        features, mask = found.batch([0, 1, 2])
        return features.tolist(), mask.tolist(), found.captions, found.images

    check(Kind(text_features / name, read, 500, is_json=name == "meta.json", is_hashed=name != "meta.json"))


@pytest.fixture
def directory(small_run):
    """The directory of a run without weights."""
    config = small_run()
    config.open_directory({"codes": "a" * 64})
    write_json(config.directory / "checkpoints" / "last" / "progress.json", asdict(Progress(step=4)))
    return config.directory


@pytest.mark.parametrize("name", ["config.yaml", "provenance.json", "checkpoints/last/progress.json"])
def test_runs(directory, name):
    reads = {
        "config.yaml": lambda: Run(directory).config,
        "provenance.json": lambda: Run(directory).provenance,
        "checkpoints/last/progress.json": lambda: load_progress(directory / "checkpoints" / "last"),
    }
    count = 100 if name == "config.yaml" else 300  # a config takes 10 ms to read
    check(Kind(directory / name, reads[name], count, is_json=name.endswith(".json")))


@pytest.mark.parametrize("name", ["manifest.json", "tokens.npy", "labels.npy"])
def test_sample_sets(directory, name):
    run = Run(directory)
    found = SampleSet(run, "default").directory
    found.mkdir(parents=True)
    settings = {
        "num_images": 4,
        "use_ema": False,
        "labels": None,
        "seed": 0,
        "precision": "fp32",
        "form": "npz",
        "resolution": None,
        "release": None,
        "sampling": {"guidance": 2.0},
    }
    manifest = {"config": settings, "weights_sha256": "a" * 64, "tokenizer_sha256": "b" * 64}
    (found / "manifest.json").write_text(json.dumps(manifest))
    np.save(found / "tokens.npy", np.zeros((4, 9), np.uint16))
    np.save(found / "labels.npy", np.arange(4))

    def read():
        drawn = SampleSet(run, "default")
        return drawn.protocol(), plain(drawn.tokens), plain(drawn.labels), drawn.label_evidence()

    check(Kind(found / name, read, 300, is_json=name.endswith(".json")))


CAPTIONS = {
    "captions.txt": "a red house\né\nanother\n",
    "coco.json": json.dumps({"annotations": [{"image_id": 3, "id": i, "caption": "a cat"} for i in range(4)]}),
    "codes.json": json.dumps(["a", "", {"captions": ["b", "c"]}]),
    "lines.jsonl": '{"image_path": "a.jpg", "text": ["a", "b"]}\n' * 3,
}


@pytest.mark.parametrize("name", CAPTIONS)
def test_captions(tmp_path, name):
    (tmp_path / name).write_text(CAPTIONS[name])
    check(Kind(tmp_path / name, lambda: read_captions(tmp_path / name), is_json=name.endswith(".json")))


WRITERS = {
    "model.safetensors": lambda state, path: save_file(state, path, metadata={"format": "pt"}),
    "model.pt": lambda state, path: torch.save({"model": state, "steps": 3}, path),
    "legacy.pt": lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False),
}


@pytest.mark.parametrize("name", WRITERS)
def test_checkpoints(tmp_path, name):
    path = tmp_path / name
    WRITERS[name]({"a": torch.arange(6.0).view(2, 3), "b": torch.zeros(2, dtype=torch.bfloat16)}, path)

    def read():
        return {key: tuple(value.shape) for key, value in find_state(read_checkpoint(path), path).items()}

    check(Kind(path, read, 700))
