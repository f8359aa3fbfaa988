"""`make eval-coco` from end to end: captions, text features, samples, references, both protocols, with a stand-in for
the Inception network and a small CLIP."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from coco_folder import make_coco
from golden import load_golden, load_state
from golden_adapter import build_gpt
from inception_weights import StandIn
from messages import PlainFormatter
from PIL import Image
from safetensors.torch import save_file
from stage import load_config
from text_encoder import make_encoder
from user_errors import tells

from llamagen.conditions.captions import read_captions
from llamagen.conditions.encoders import T5Encoder
from llamagen.conditions.features import extract_text_features
from llamagen.evaluation.coco import ChoiceConfig, ClipConfig, EvalCocoConfig, evaluate_coco, make_captions
from llamagen.evaluation.images import ExtractorConfig
from llamagen.sampling.filters import SamplingConfig
from masc.runtime.errors import InputError
from masc.runtime.files import hash_file
from metrics.coco_protocol import CocoProtocolConfig, load_captions
from metrics.frechet import frechet_distance
from metrics.resize import pil_bicubic
from metrics.results import Results

COUNT, SIZE = 12, 12
TINY = {
    "embed_dim": 8,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
}


def protocols(pairing="all", names=("coco", "coco-clean")):
    small = {"size": SIZE, "num_images": COUNT, "pairing": pairing}
    given = load_config("eval_coco", EvalCocoConfig, []).protocols
    return {name: replace(given[name], **small) for name in names}


@pytest.fixture(scope="module")
def text_release(tiny_release, tmp_path_factory):
    """Golden weights of a text model as a released file."""
    folder = tmp_path_factory.mktemp("text")
    model = build_gpt(load_golden("t2i_120")[0]["config"])
    torch.save({"model": load_state("t2i_120")}, folder / "t2i.pt")
    decoder = replace(
        tiny_release.tokenizer,
        options=tiny_release.tokenizer.options | {"num_tokens": 64},
        weights=str(folder / "vq64.safetensors"),
    )
    torch.manual_seed(0)
    save_file(decoder.build().state_dict(), decoder.weights)
    sizes = {"model": model.backbone.config, "num_tokens": 64, "tokenizer": decoder}
    return replace(tiny_release, name="t2i", weights=str(folder / "t2i.pt"), **sizes)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return make_encoder(tmp_path_factory.mktemp("t5"))


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    """Where references lie that tests share, for each takes seconds: a factor of 2048 x 2048."""
    return tmp_path_factory.mktemp("references")


@pytest.fixture
def place(tmp_path, monkeypatch, references):
    """A folder with COCO in it, where the stand-in is the network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ExtractorConfig, "load", lambda self, state: StandIn())
    make_coco(tmp_path / "coco")
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts" / "references").symlink_to(references)
    return tmp_path


@pytest.fixture
def clip(place):
    (place / "eval-coco-clip.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(place / "eval-coco-clip.json")
    torch.manual_seed(0)
    torch.save(open_clip.create_model("eval-coco-clip").state_dict(), place / "clip.pt")
    return ClipConfig(weights="clip.pt", model="eval-coco-clip")


@pytest.fixture
def images(place):
    """A folder of images, their names without leading zeros."""
    rng, folder = np.random.default_rng(1), place / "drawn"
    folder.mkdir()
    for index in range(COUNT):
        pixels = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


def choose(num_images=COUNT, **changes):
    return make_captions(ChoiceConfig(coco="coco", num_images=num_images, **changes))


def config_of(**changes):
    given = {"coco": "coco", "bootstrap": 0, "protocols": protocols("all", ["coco"])}
    return EvalCocoConfig(**{**given, **changes})


def of_release(release, **changes):
    return config_of(release=release, samples="coco30k", sampling=SamplingConfig(guidance=2.0), **changes)


def test_a_text_model_is_measured_from_captions_to_both_protocols(place, text_release, encoder, clip):
    config = of_release(text_release, clip=clip, protocols=protocols(), bootstrap=2)
    with tells(r"no text features at artifacts/text/.*make text-features CAPTIONS=artif"):
        evaluate_coco(config)
    path = place / "artifacts" / "coco" / f"captions_val2014-{COUNT}-seed0.json"
    captions = load_captions(path)  # chosen on the way
    extract_text_features(read_captions(path), T5Encoder(encoder), Path("artifacts/text") / path.stem, 4)
    files = evaluate_coco(config)
    assert [str(file) for file in files] == ["runs/t2i/eval/coco30k-coco.json", "runs/t2i/eval/coco30k-coco-clean.json"]
    shown = json.loads((place / "runs/t2i/samples/coco30k/captions.json").read_text())
    assert shown == captions.texts
    coco, clean = map(Results.load, files)
    assert list(coco.by_metric) == ["FID", "IS", "CLIP score"] and list(clean.by_metric) == ["FID", "CLIP score"]
    about = coco["FID"]["protocol"]
    wanted = {
        "protocol": "coco",
        "evaluator": "torch-fidelity",
        "release": "t2i",
        "reference": f"coco{SIZE}-val2014",
        "reference_split": "val2014",
        "reference_images": "all",
        "reference_size": 20,
        "num_images": COUNT,
        "crop": "adm",
        "resize": "tf1-bilinear",
        "image_size": SIZE,
        "ids_sha256": hash_file(path.with_suffix("").with_suffix(".ids.txt")),
        "captions_sha256": captions.sha256,
        "labels": None,
    }
    assert {key: about.get(key) for key in wanted} == wanted
    about = clean["FID"]["protocol"]
    wanted = {"evaluator": "clean-fid", "crop": "lanczos", "resize": "pil-bicubic", "protocol": "coco-clean"}
    assert {key: about.get(key) for key in wanted} == wanted
    assert about["reference"] == f"coco{SIZE}-val2014-lanczos-pil-bicubic"
    assert "reference_images" not in coco["IS"]["protocol"] and coco["IS"]["protocol"]["form"] == "torch-fidelity"
    about = coco["CLIP score"]["protocol"]
    assert about["extractor_sha256"] == hash_file(place / "clip.pt") and about["protocol"] == "coco"
    assert about["captions_sha256"] == captions.sha256 and about["text"] == "A photo depicts <caption>"
    assert coco["FID"]["interval"]["replicates"] == coco["CLIP score"]["interval"]["replicates"] == 2


def test_images_are_measured_in_the_order_of_their_numbers(place, images, clip):
    path = choose()
    given = {"samples": str(images), "caption_list": str(path), "clip": clip}
    files = evaluate_coco(config_of(**given))
    assert [re.sub("-[0-9a-f]{8}-", "-", str(file)) for file in files] == ["runs/pictures/eval/drawn-coco.json"]
    padded = place / "padded"
    padded.mkdir()
    for index in range(COUNT):
        (padded / f"{index:06d}.png").write_bytes((images / f"{index}.png").read_bytes())
    again = evaluate_coco(config_of(**given | {"samples": str(padded)}))
    for one, other in zip(files, again, strict=True):
        for metric, row in Results.load(one).by_metric.items():
            assert Results.load(other)[metric]["value"] == pytest.approx(row["value"], rel=1e-6), metric


def test_the_clean_distance_is_that_of_pillows_resizes_by_hand(place, images):
    files = evaluate_coco(
        config_of(samples=str(images), caption_list=str(choose()), protocols=protocols("all", ["coco-clean"]))
    )
    network = StandIn()

    def features(squares):
        batch = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2)
        return network(pil_bicubic(batch, 299))[0].numpy()

    def square(file):
        image = Image.open(file).convert("RGB")
        side = min(image.size)
        left, top = (round((length - side) / 2) for length in image.size)
        crop = image.crop((left, top, left + side, top + side))
        return np.asarray(crop.resize((SIZE, SIZE), Image.Resampling.LANCZOS))

    reference = features([square(file) for file in sorted((place / "coco" / "val2014").glob("*.jpg"))])
    samples = features([np.asarray(Image.open(file)) for file in images.glob("*.png")])
    assert Results.load(files[0])["FID"]["value"] == pytest.approx(frechet_distance(samples, reference), rel=1e-6)


def test_paired_references_are_those_whose_captions_were_shown(place, images):
    path = choose()
    captions = load_captions(path)
    given = {"samples": str(images), "caption_list": str(path)}
    paired = evaluate_coco(config_of(**given, protocols=protocols("paired", ["coco"])))
    about = Results.load(paired[0])["FID"]["protocol"]
    assert about["reference"] == f"coco{SIZE}-val2014-paired-{captions.ids_sha256[:8]}"
    assert about["reference_images"] == "paired" and about["reference_size"] == COUNT
    value = Results.load(paired[0])["FID"]["value"]
    every = evaluate_coco(config_of(**given))
    assert Results.load(every[0])["FID"]["value"] != pytest.approx(value, rel=1e-3)
    # Made once, the references need no images of COCO.
    evaluate_coco(config_of(**given, protocols=protocols("paired", ["coco"]), coco=None))
    with pytest.raises(InputError, match=r"coco12-val2014-lanczos.npz; say where COCO lies"):
        lanczos = {"coco": replace(protocols()["coco"], crop="lanczos")}
        evaluate_coco(config_of(**given, protocols=lanczos, coco=None))


def test_absent_weights_leave_the_score_out_with_one_warning(place, images, caplog):
    files = evaluate_coco(config_of(samples=str(images), caption_list=str(choose())))
    assert list(Results.load(files[0]).by_metric) == ["FID", "IS"]
    lines = [PlainFormatter().format(record) for record in caplog.records]
    (line,) = (line for line in lines if "no CLIP score" in line)
    assert "make weights NAME=clip-vit-b-32" in line


def test_llamagens_captions_pair_by_place_alone(place, images):
    (place / "coco_captions.csv").write_text("Prompt\n" + "".join(f"caption {i}\n" for i in range(COUNT)))
    given = {"samples": str(images), "caption_list": "coco_captions.csv"}
    about = Results.load(evaluate_coco(config_of(**given))[0])["FID"]["protocol"]
    assert "ids_sha256" not in about and "by place alone" in about["captions"]
    # What `make text-features` is given are the same captions.
    lines = read_captions(Path("artifacts/coco/coco_captions.txt"))
    assert lines.texts == [f"caption {i}" for i in range(COUNT)]
    with pytest.raises(InputError, match="paired references need the image ids"):
        evaluate_coco(config_of(**given, protocols=protocols("paired")))


def test_too_few_captions_or_images_are_refused_and_more_are_named(place, images, caplog):
    few, whole = str(choose(5)), str(choose())
    with pytest.raises(InputError, match=r"holds 5 captions for 12 images; set num_images=5"):
        evaluate_coco(config_of(samples=str(images), caption_list=few))
    (images / "11.png").unlink()
    with pytest.raises(InputError, match=r"12 images are wanted, but .* holds 11; .*num_images=11"):
        evaluate_coco(config_of(samples=str(images), caption_list=whole))
    files = evaluate_coco(config_of(samples=str(images), caption_list=few, num_images=5))
    assert Results.load(files[0])["FID"]["protocol"]["num_images"] == 5
    assert "the first 5 of 11 images" in caplog.text and "5 images, but the published numbers" in caplog.text


def test_what_does_not_belong_together_is_refused(place, images, text_release, tiny_release, encoder):
    with pytest.raises(InputError, match="say which captions the images show"):
        evaluate_coco(config_of(samples=str(images)))
    with pytest.raises(InputError, match="class-conditional"):
        evaluate_coco(of_release(tiny_release))
    path = choose()
    extract_text_features(read_captions(path), T5Encoder(encoder), Path("artifacts/text") / path.stem, 4)
    evaluate_coco(of_release(text_release))
    other = choose(caption_seed=1)
    with pytest.raises(InputError, match="the samples in runs/t2i/samples/coco30k are of the captions"):
        evaluate_coco(of_release(text_release, caption_seed=1))
    with pytest.raises(InputError, match=r"the text features in .* are of the captions"):
        config = of_release(text_release, caption_list=str(other), captions=f"artifacts/text/{path.stem}")
        evaluate_coco(replace(config, samples="anew"))
    with pytest.raises(InputError, match="are not among the images of val2017"):
        make_coco(place / "later", split="val2017", ids=range(100, 140))
        later = config_of(coco="later", split="val2017", caption_list=str(path), samples=str(images))
        evaluate_coco(replace(later, protocols=protocols("paired")))
    with pytest.raises(InputError, match=r"captions_val2014.json in .*, found .*captions_val2017.json"):
        evaluate_coco(config_of(coco="later", caption_list=str(path), samples=str(images)))


def test_a_reference_lacking_images_is_named_and_replaces_none(place, images, caplog):
    path = choose()
    config = config_of(samples=str(images), caption_list=str(path))
    evaluate_coco(config)
    next((place / "coco" / "val2014").glob("*3.jpg")).unlink()
    with pytest.raises(InputError, match=r"coco12-val2014.npz holds another reference: count 20 there, 19 now"):
        evaluate_coco(config)
    assert "1 of its images are not in coco" in caplog.text


def test_the_shipped_protocols_are_of_30000_samples_at_256_pixels():
    config = load_config("eval_coco", EvalCocoConfig, ["protocols.coco.pairing=paired"])
    assert config.wanted == 30_000 and all(isinstance(one, CocoProtocolConfig) for one in config.protocols.values())
    assert config.protocols["coco"].pairing == "paired" and config.protocols["coco-clean"].pairing == "all"
    assert {one.size for one in config.protocols.values()} == {256}
    assert load_config("coco_captions", ChoiceConfig, []).num_images == 30_000
