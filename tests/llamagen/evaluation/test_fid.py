"""`make eval-fid` from end to end, with a stand-in for the network: releases, images, on the fly, in parallel."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from inception_weights import StandIn
from PIL import Image
from safetensors.torch import load_file, save_file

from llamagen.evaluation import fid
from llamagen.evaluation.fid import evaluate_fid
from llamagen.evaluation.images import EvalFidConfig, ExtractorConfig
from llamagen.evaluation.saved import save_beside
from llamagen.sampling.draw import sample
from llamagen.sampling.filters import SamplingConfig
from llamagen.sampling.plan import SampleConfig
from masc.runtime.errors import InputError
from metrics.protocol import ProtocolConfig
from metrics.results import Results, row

RNG = np.random.default_rng(0)


def protocol(name="adm", **changes):
    given = {"name": name, "evaluator": name, "reference": "reference.npz", "num_images": 21}
    return ProtocolConfig(**{**given, "metrics": ["FID", "sFID", "IS", "precision", "recall"], **changes})


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a reference of images, where the stand-in is the network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ExtractorConfig, "load", lambda self, state: StandIn())
    np.savez(tmp_path / "reference.npz", RNG.integers(0, 256, (40, 12, 12, 3), dtype=np.uint8))
    return tmp_path


@pytest.fixture
def evaluate(place, tiny_release):
    def run(**changes):
        given = {"release": tiny_release, "sampling": SamplingConfig(guidance=2.0), "bootstrap": 3}
        protocols = {"adm": protocol(), "paper": protocol("paper", inception_score="torch-fidelity")}
        return evaluate_fid(EvalFidConfig(**{**given, "protocols": protocols, **changes}))

    return run


def values(path):
    return {row["metric"]: row["value"] for row in Results.load(path).rows}


def test_samples_are_drawn_and_measured_without_an_image_on_disk(evaluate, place, tiny_release, monkeypatch):
    passes = []
    compute = fid.inception_features
    monkeypatch.setattr(fid, "inception_features", lambda *given: passes.append(1) or compute(*given))
    files = evaluate()
    assert [file.name for file in files] == ["default-adm.json", "default-paper.json"]
    assert len(passes) == 1  # one pass of the network for both protocols
    directory = place / "runs" / "c2i_tiny" / "samples" / "default"
    assert not (directory / "images").exists() and not (directory / "images.npz").exists()
    results = Results.load(files[0])
    about = results["FID"]["protocol"]
    wanted = {"release": "c2i_tiny", "guidance": 2.0, "labels": "uniform", "file_type": "tokens", "weights": "raw"}
    assert {key: about[key] for key in wanted} == wanted
    assert about["num_images"] == 21 and about["reference"] == "reference"
    assert results.evidence["labels"]["classes"] == 10
    stored = sample(SampleConfig(release=tiny_release, num_images=21, sampling=SamplingConfig(guidance=2.0), name="b"))
    outside = evaluate(release=None, samples=str(shutil.copy(stored.directory / "images.npz", place / "pictures.npz")))
    assert re.fullmatch(r"runs/pictures/eval/pictures-[0-9a-f]{8}-adm\.json", str(outside[0]))
    for inside, other in zip(files, outside, strict=True):
        assert values(inside) == pytest.approx(values(other), rel=1e-5)


def test_a_sample_set_that_is_there_is_measured_as_it_is(evaluate, tiny_release, place, caplog):
    sample(SampleConfig(release=tiny_release, num_images=23, seed=9, name="mine"))
    found = Results.load(evaluate(samples="mine")[0])["FID"]["protocol"]
    assert found["seed"] == 9 and found["guidance"] == 1.0 and found["num_images"] == 23
    # What the command says otherwise is not passed over in silence.
    assert "seed: 9 there, 0 now" in caplog.text and "sampling.guidance: 1.0 there, 2.0 now" in caplog.text


def test_the_first_images_are_measured_if_fewer_are_asked_for(evaluate, place, caplog):
    pixels = RNG.integers(0, 256, (45, 12, 12, 3), dtype=np.uint8)
    np.savez(place / "all.npz", pixels)
    np.savez(place / "few.npz", pixels[:30])
    given = {"release": None, "protocols": {"adm": protocol()}}
    first = evaluate(samples="all.npz", num_images=30, **given)[0]
    assert values(first) == pytest.approx(values(evaluate(samples="few.npz", **given)[0]), rel=1e-6)
    assert Results.load(first)["FID"]["protocol"]["num_images"] == 30 and "the first 30 of 45 images" in caplog.text


def test_tokens_are_not_decoded_by_another_tokenizer(evaluate, tiny_release, tmp_path):
    release = replace(tiny_release, tokenizer=replace(tiny_release.tokenizer, weights=str(tmp_path / "vq.safetensors")))
    shutil.copy(tiny_release.tokenizer.weights, tmp_path / "vq.safetensors")
    evaluate(release=release, bootstrap=0)
    state = load_file(tmp_path / "vq.safetensors")
    save_file({key: value + 1 for key, value in state.items()}, tmp_path / "vq.safetensors")
    with pytest.raises(InputError, match=r"holds tokens of the tokenizer .*`rm -r .*default`"):
        evaluate(release=release, bootstrap=0)


def test_images_of_one_name_and_folders_whose_names_have_dots_have_results_of_their_own(evaluate, place):
    for name in ("run.v1", "run.v2", "other/run.v2"):
        (place / name).mkdir(parents=True)
        for index in range(4):
            pixels = RNG.integers(0, 256, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / name / f"{index}.png")
    given = {"release": None, "protocols": {"adm": protocol(metrics=["FID"])}, "bootstrap": 0}
    files = [evaluate(samples=name, **given)[0] for name in ("run.v1", "run.v2/", "other/run.v2")]
    assert [re.sub("-[0-9a-f]{8}-", "-", file.name) for file in files] == [
        "run.v1-adm.json",
        "run.v2-adm.json",
        "run.v2-adm.json",
    ]
    assert len(set(files)) == 3


@pytest.mark.parametrize("change", [lambda file: file.write_bytes(b"another"), lambda file: file.unlink()])
def test_images_that_change_while_they_are_measured_have_no_results(evaluate, place, monkeypatch, change):
    (place / "drawn").mkdir()
    for index in range(4):
        pixels = RNG.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / "drawn" / f"{index}.png")
    measure = fid.inception_features

    def slowly(*arguments):
        found = measure(*arguments)
        change(place / "drawn" / "2.png")
        return found

    monkeypatch.setattr(fid, "inception_features", slowly)
    with pytest.raises(InputError, match="drawn changed while it was measured"):
        evaluate(release=None, samples="drawn", protocols={"adm": protocol(metrics=["FID"])}, bootstrap=0)
    assert not list(place.rglob("*-adm.json"))


def test_results_of_another_reference_stay(evaluate, place, caplog):
    np.savez(place / "some.npz", RNG.integers(0, 256, (21, 12, 12, 3), dtype=np.uint8))
    np.savez(place / "another.npz", RNG.integers(0, 256, (30, 12, 12, 3), dtype=np.uint8))
    given = {"release": None, "samples": "some.npz", "bootstrap": 0}
    first, second, third, again = (
        evaluate(**given, protocols={"adm": protocol(metrics=["FID"], reference=reference)}, num_images=count)[0]
        for reference, count in (("reference.npz", 21), ("another.npz", 21), ("reference.npz", 11), ("another.npz", 21))
    )
    assert len({first, second, third}) == 3 and again == second
    assert "results of another reference_sha256 and stays" in caplog.text
    assert Results.load(first)["FID"]["protocol"]["reference"] == "reference"
    assert Results.load(third)["FID"]["protocol"]["num_images"] == 11


def test_results_that_cannot_be_read_stay(tmp_path, caplog):
    found = Results([row("FID", 5.0, {"num_images": 10, "reference_sha256": "a" * 64})])
    path = save_beside(found, tmp_path / "default-adm.json")
    path.write_text(path.read_text().replace('"num_images"', '"number_of_images"'))
    kept = path.read_text()
    other = save_beside(found, path)
    assert other != path and path.read_text() == kept and Results.load(other).rows == found.rows
    assert "holds what cannot be read and stays" in caplog.text


def test_what_is_measured_is_looked_for_before_its_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no samples at nowhere"):
        evaluate_fid(EvalFidConfig(samples="nowhere", protocols={"adm": protocol()}))
    with pytest.raises(InputError, match="no run at runs/none"):
        evaluate_fid(EvalFidConfig(run="runs/none", protocols={"adm": protocol()}))


def test_what_is_missing_is_said_before_anything_is_drawn(evaluate, place, caplog):
    with pytest.raises(InputError, match="no reference 'absent'"):
        evaluate(protocols={"adm": protocol(reference="absent")})
    assert not (place / "runs").exists()
    np.savez(place / "few.npz", RNG.integers(0, 256, (9, 12, 12, 3), dtype=np.uint8))
    evaluate(release=None, samples="few.npz", protocols={"adm": protocol()})
    assert "9 images, but the published numbers of this protocol are of 21" in caplog.text
    with pytest.raises(InputError, match=r"30 images are wanted, but few.npz holds 9; set num_images=9"):
        evaluate(release=None, samples="few.npz", num_images=30)
    with pytest.raises(InputError, match="no samples at"):
        evaluate(release=None, samples="nowhere")


def test_a_config_that_cannot_be_is_refused(tiny_release):
    with pytest.raises(ValueError, match="only one of these"):
        EvalFidConfig(run="a", release=tiny_release, protocols={"adm": protocol()})
    with pytest.raises(ValueError, match="name a protocol"):
        EvalFidConfig(run="a")
    for changes, words in (
        ({"num_images": 0}, "num_images must be at least 2"),
        ({"labels": "sorted"}, "labels must be one of"),
        ({"samples": "a/b"}, "name must be the name of a folder"),
    ):
        with pytest.raises(ValueError, match=words):
            EvalFidConfig(release=tiny_release, protocols={"adm": protocol()}, **changes)
    with pytest.raises(ValueError, match=r"extractor.batch_size"):
        ExtractorConfig(batch_size=0)


def test_two_processes_give_the_numbers_of_one(evaluate, place, root):
    np.savez(place / "many.npz", RNG.integers(0, 256, (45, 12, 12, 3), dtype=np.uint8))
    (file, _) = evaluate(release=None, samples="many.npz", extractor=ExtractorConfig(batch_size=4))
    alone = values(file)
    shutil.rmtree(place / "artifacts")
    shutil.rmtree(place / "runs")
    program = place / "shared.py"
    program.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(root / 'tests')!r})\n"
        "from accelerate import PartialState\n"
        "from inception_weights import StandIn\n"
        "from llamagen.evaluation.fid import evaluate_fid\n"
        "from llamagen.evaluation.images import EvalFidConfig, ExtractorConfig\n"
        "from metrics.protocol import ProtocolConfig\n"
        "ExtractorConfig.load = lambda self, state: StandIn()\n"
        "metrics = ['FID', 'sFID', 'IS', 'precision', 'recall']\n"
        "adm = ProtocolConfig(name='adm', evaluator='adm', reference='reference.npz', num_images=21, metrics=metrics)\n"
        "extractor = ExtractorConfig(batch_size=4)\n"
        "evaluate_fid(EvalFidConfig(samples='many.npz', protocols={'adm': adm}, extractor=extractor, bootstrap=0))\n"
        "PartialState().destroy_process_group()\n"  # else a process may abort as it ends
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(program)]
    done = subprocess.run(
        launch, cwd=place, capture_output=True, text=True, env=os.environ | {"ACCELERATE_USE_CPU": "1"}, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert values(file) == pytest.approx(alone, rel=1e-9)


def test_a_release_in_another_form_is_read_from_its_images(evaluate, tiny_release):
    given = {"num_images": 21, "sampling": SamplingConfig(guidance=2.0)}
    sample(SampleConfig(release=tiny_release, name="png", form="png", **given))
    by_form = values(evaluate(samples="png")[0]), values(evaluate(samples="default")[0])
    assert by_form[0] == pytest.approx(by_form[1], rel=1e-5)
