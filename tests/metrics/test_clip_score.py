"""The CLIP score against open_clip used directly, with random weights in files of the published form."""

import builtins
import json

import numpy as np
import open_clip
import pytest
import torch
from accelerate import PartialState
from PIL import Image
from safetensors.torch import save_file
from user_errors import tells

from masc.runtime.errors import InputError, MissingArtifact
from masc.runtime.files import hash_file
from metrics.clip_score import MODEL, clip_cosines, clip_score, load_clip
from metrics.streams import NpzImages

STATE = PartialState(cpu=True)
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (7, 40, 40, 3), dtype=np.uint8)
TEXTS = ["A cat, on a mat", '"Quoted" start', "'s odd", "dog " * 90, "zebra zebra", "two  spaces", "ümlaut & sign"]
TINY = "tiny-clip"
CONFIG = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A file of a small network's weights; its name is known to open_clip."""
    folder = tmp_path_factory.mktemp("clip")
    (folder / f"{TINY}.json").write_text(json.dumps(CONFIG))
    open_clip.add_model_config(folder)
    return save_random(TINY, folder / "weights.pt")


def save_random(name, path):
    torch.manual_seed(0)
    torch.save(open_clip.create_model(name).state_dict(), path)
    return path


@pytest.fixture
def images(tmp_path):
    np.savez(tmp_path / "pictures.npz", PIXELS)
    return NpzImages(tmp_path / "pictures.npz")


def spliced_tokens(texts):
    """As LlamaGen's code makes them: the three tokens of the prefix put behind the start, cut again at 77."""
    tokens = open_clip.tokenize(texts)
    prefix = open_clip.tokenize(["A photo depicts "])[:, 1:4].expand(len(texts), -1)
    joined = torch.cat([tokens[:, :1], prefix, tokens[:, 1:]], 1)[:, :77]
    joined[:, 76][joined[:, 76] > 0] = 49407
    return joined


@torch.no_grad()
def directly(name, path):
    """Cosines by open_clip and the rule alone."""
    model, _, preprocess = open_clip.create_model_and_transforms(name, pretrained=str(path))
    images = model.eval().encode_image(torch.stack([preprocess(Image.fromarray(image)) for image in PIXELS]))
    texts = model.encode_text(spliced_tokens(TEXTS))
    images, texts = (rows / rows.norm(dim=1, keepdim=True) for rows in (images, texts))
    return (images * texts).sum(1).numpy()


def test_cosines_are_those_of_open_clip_and_llamagens_tokens(tiny, images):
    clip = load_clip(tiny, hash_file(tiny), name=TINY)
    found = clip_cosines(images, TEXTS, clip, 3, STATE)
    np.testing.assert_allclose(found, directly(TINY, tiny), atol=1e-6)
    np.testing.assert_allclose(clip_cosines(images, TEXTS, clip, 64, STATE), found, atol=1e-6)
    assert np.abs(clip_cosines(images, TEXTS[::-1], clip, 64, STATE) - found).max() > 1e-3


def test_half_precision_weights_in_safetensors_are_read_as_float32(tiny, tmp_path, images):
    state = {key: value.half() for key, value in torch.load(tiny, weights_only=True).items()}
    save_file(state, tmp_path / "half.safetensors")
    clip = load_clip(tmp_path / "half.safetensors", name=TINY)
    assert clip.model.text_projection.dtype == torch.float32
    found, whole = (clip_cosines(images, TEXTS, one, 64, STATE) for one in (clip, load_clip(tiny, name=TINY)))
    np.testing.assert_allclose(found, whole, atol=5e-3)


def test_the_score_is_the_plain_mean_with_its_interval_and_protocol(tiny, images):
    clip = load_clip(tiny, name=TINY)
    cosines = clip_cosines(images, TEXTS, clip, 3, STATE)
    row = clip_score(cosines, clip, {"captions_sha256": "c" * 64}, 50)
    assert row["metric"] == "CLIP score" and row["value"] == pytest.approx(cosines.mean())
    assert row["interval"]["low"] < row["value"] < row["interval"]["high"]
    about = row["protocol"]
    assert about["extractor"] == TINY and about["extractor_sha256"] == hash_file(tiny)
    assert about["text"] == "A photo depicts <caption>" and "bicubic to 32" in about["preprocessing"]
    assert about["num_images"] == 7 and about["captions_sha256"] == "c" * 64
    with pytest.raises(InputError, match="there are 7 images and 6 texts"):
        clip_cosines(images, TEXTS[:6], clip, 3, STATE)


def test_weights_that_are_not_the_networks_are_refused(tiny, tmp_path):
    with tells(r"no weights of .*`make weights NAME=clip-vit-b-32"):
        load_clip(tmp_path / "none.pt", name=TINY)
    with pytest.raises(MissingArtifact, match=f"have SHA-256 {hash_file(tiny)}, expected 0000") as caught:
        load_clip(tiny, "0" * 64, name=TINY)
    assert not caught.value.remove  # the user's own file
    torch.save({"visual.proj": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(InputError, match=f"does not hold the tensors of {TINY}"):
        load_clip(tmp_path / "other.pt", name=TINY)
    for name, is_published in (("cut.pt", False), ("open_clip_model.safetensors", True)):
        (tmp_path / name).write_bytes(tiny.read_bytes()[:1000])
        with pytest.raises(MissingArtifact, match="does not hold the tensors") as caught:
            load_clip(tmp_path / name, name=TINY)
        assert caught.value.remove == is_published
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "program.pt")
    with pytest.raises(InputError, match="is a program, which is not run here"):
        load_clip(tmp_path / "program.pt", name=TINY)


def test_a_missing_package_is_named_with_its_extra(tiny, monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **more):
        if name == "open_clip":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match="extra `t2i`"):
        load_clip(tiny, name=TINY)


def test_the_network_is_openais_with_its_activation():
    config = open_clip.get_model_config(MODEL)
    assert config["quick_gelu"] and not open_clip.get_model_config("ViT-B-32").get("quick_gelu", False)
    assert (config["vision_cfg"]["patch_size"], config["vision_cfg"]["width"], config["embed_dim"]) == (32, 768, 512)
    assert open_clip.get_pretrained_cfg("ViT-B-32", "openai")["quick_gelu"]


@pytest.mark.slow
def test_the_real_size_gives_open_clips_cosines(images, tmp_path):
    path = save_random(MODEL, tmp_path / "vit-b-32.pt")
    found = clip_cosines(images, TEXTS, load_clip(path), 3, STATE)
    np.testing.assert_allclose(found, directly(MODEL, path), atol=1e-5)
