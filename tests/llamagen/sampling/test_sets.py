"""Sample sets on disk: what they hold, and what results say about them."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from sample_files import images_of
from user_errors import tells

from llamagen.release import Release
from llamagen.runs import Run
from llamagen.sampling.draw import sample
from llamagen.sampling.filters import SamplingConfig
from llamagen.sampling.plan import SampleConfig
from llamagen.sampling.sets import SampleSet
from masc.runtime.errors import InputError


@pytest.fixture
def samples(tiny_release, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = SampleConfig(
        release=tiny_release,
        num_images=12,
        labels="balanced",
        form="tokens",
        sampling=SamplingConfig(guidance=2.0),
        name="a",
    )
    return sample(config)


def test_a_set_that_is_not_drawn_names_the_command(tiny_release, tmp_path):
    run = SampleSet(Run(tmp_path / "run"), "mine")
    assert not run.is_drawn and run.directory == tmp_path / "run" / "samples" / "mine"
    with tells(r"no samples at .*/run/samples/mine.*make sample RUN="):
        run.protocol()
    with tells(r"no samples at runs/c2i_tiny/samples/b.*make sample .*RELEASE=c2i_tiny"):
        SampleSet(Release(tiny_release, Path("artifacts")), "b").protocol()


def test_the_manifest_is_read_once_and_is_what_results_name(samples):
    file = samples.directory / "manifest.json"
    wanted = hashlib.sha256(file.read_bytes()).hexdigest()
    about = samples.protocol()
    file.unlink()
    assert samples.protocol() == about and about["manifest_sha256"] == wanted
    assert about["guidance"] == 2.0 and about["labels"] == "balanced" and about["num_images"] == 12
    assert samples.source.protocol(samples.manifest)["resolution"] == 12
    with pytest.raises(InputError, match="no samples at"):
        _ = SampleSet(samples.source, "a").manifest


def test_tokens_are_decoded_at_the_resolution_they_were_drawn_for(samples):
    images = samples.open_images(torch.device("cpu"))
    assert len(images) == 12 and images.read(3, 5).shape == (2, 12, 12, 3)
    whole = images.read(0, 12)
    assert np.array_equal(images.read(7, 12), whole[7:]) and samples.tokens.shape == (12, 16)


def test_evidence_counts_the_labels_of_the_images_measured(samples):
    counted = {"classes": 10, "present": 10, "fewest": 1, "most": 2, "sorted": False}
    assert samples.label_evidence() == counted
    assert samples.label_evidence(10) == counted | {"most": 1, "sorted": True}
    (samples.directory / "labels.npy").unlink()
    with pytest.raises(InputError, match=r"labels\.npy"):
        samples.label_evidence()
    samples.manifest["captions"] = {"sha256": "0" * 64}  # captions were shown
    assert samples.label_evidence() is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("weights_sha256", None),
        ("config", []),
        ("config.num_images", "12"),
        ("config.num_images", True),
        ("config.num_images", 0),
        ("config.num_images", 13),  # tokens.npy has another length
        ("config.form", "exe"),
        ("config.use_ema", 1),
        ("config.sampling", {"guidance": 2.0, "colour": 1}),
        ("config.sampling", {"guidance": "much"}),
        ("config.sampling", {"top_p": 7}),
        ("config.release", {"name": "a"}),
        ("config.release.grid", "4"),
        ("", [1]),
    ],
)
def test_a_damaged_manifest_is_one_error_that_names_its_file(samples, key, value):
    file = samples.directory / "manifest.json"
    content = json.loads(file.read_text())
    if not key:
        content = value
    else:
        part = content
        *outer, last = key.split(".")
        for name in outer:
            part = part[name]
        part[last] = value
    file.write_text(json.dumps(content))
    fresh = SampleSet(samples.source, "a")
    with pytest.raises(InputError, match=r"manifest\.json|tokens\.npy"):
        fresh.source.protocol(fresh.manifest | fresh.protocol())
        fresh.open_images(torch.device("cpu"))


def test_arrays_that_do_not_fit_the_manifest_are_one_error_each(samples):
    for name, array in (
        ("labels", np.arange(11)),
        ("labels", np.full(12, 10)),  # there are 10 classes
        ("labels", np.full(12, -1)),
        ("labels", np.full(12, 2**62)),
        ("labels", np.zeros(12)),
        ("tokens", np.full((12, 16), 256)),
        ("tokens", np.zeros(12, np.int64)),
    ):
        kept = (samples.directory / f"{name}.npy").read_bytes()
        np.save(samples.directory / f"{name}.npy", array)
        with pytest.raises(InputError, match=f"{name}.npy"):
            samples.label_evidence()
            samples.open_images(torch.device("cpu"))
        (samples.directory / f"{name}.npy").write_bytes(kept)


GONE = [
    *(("npz", "images.npz"), ("png", "images/000007.png"), ("tokens", "tokens.npy")),
    *(("npz", "labels.npy"), ("tokens", "labels.npy")),
]


@pytest.mark.parametrize(("form", "gone"), GONE)
def test_a_set_that_lacks_a_file_is_not_measured_and_is_drawn_again(draw, form, gone):
    samples = draw(name="a", form=form)
    before = images_of(samples)
    (samples.directory / gone).unlink()
    with pytest.raises(InputError, match=rf"a lacks {'1 of 21 images' if form == 'png' else gone}; .*delete"):
        SampleSet(samples.source, "a").open_images(torch.device("cpu"))
    assert np.array_equal(images_of(draw(name="a", form=form)), before)


@pytest.mark.parametrize("form", ["npz", "png"])
def test_a_set_of_another_number_of_images_is_not_measured_and_is_drawn_again(draw, form):
    samples = draw(name="a", form=form)
    before, directory = images_of(samples), samples.directory
    if form == "npz":
        np.savez(directory / "images.npz", before[:9])
    else:
        shutil.copy(directory / "images" / "000000.png", directory / "images" / "Copy.png")
    with pytest.raises(InputError, match=rf"a holds {9 if form == 'npz' else 22} images, but its manifest says 21; "):
        SampleSet(samples.source, "a").open_images(torch.device("cpu"))
    assert np.array_equal(images_of(draw(name="a", form=form)), before)
