"""The small tokenizer: its quantizer's laws, the shipped weights, and training."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from codebook import CodebookStage
from safetensors import safe_open
from safetensors.torch import save_file
from stage import load_config
from user_errors import tells

from masc.layout import Layout
from masc.runtime.artifacts import Codebook
from masc.runtime.errors import InputError
from masc.runtime.streams import Purpose, random_stream
from vq.codebook import make_codebook
from vq.images import ImageSource
from vq.interface import TokenizerConfig, tokenizer_path
from vq.pretrained import load_decoder, load_tokenizer
from vq.quality import peak_signal_to_noise, reconstruction_quality
from vq.quantize import VectorQuantizer
from vq.readers import load_images
from vq.train import TokenizerTraining, _Batches, train_tokenizer


def config_of(name, **options):
    return TokenizerConfig(name=name, target="vq.autoencoder:ConvVQ", options=options)


SMALL, EMOJI32 = config_of("small", resolution=16, num_tokens=32, width=16, num_blocks=1), config_of("emoji32")


def source_of(pixels, split="train"):
    count = len(pixels)
    return ImageSource(
        name="squares",
        split=split,
        pixels=pixels,
        labels=np.arange(count) % 2,
        groups=np.arange(count),
        keys=tuple(map(str, range(count))),
        captions=("",) * count,
        class_names=("a", "b"),
        attribution="",
    )


@pytest.fixture(scope="module")
def squares():
    rng = np.random.default_rng(0)
    pixels = np.full((64, 16, 16, 3), 255, np.uint8)
    for image in pixels:
        top, left = rng.integers(0, 10, 2)
        image[top : top + 6, left : left + 6] = rng.integers(0, 200, 3)
    return source_of(pixels)


def test_tokens_are_the_nearest_vectors_of_the_effective_codebook():
    torch.manual_seed(0)
    quantizer = VectorQuantizer(20, 5, commitment=0.25)
    z = torch.randn(2, 5, 3, 3)
    found = quantizer(z)
    unit = torch.nn.functional.normalize(z.permute(0, 2, 3, 1), dim=-1).reshape(-1, 5)
    nearest = torch.cdist(unit, quantizer.codebook).argmin(-1)
    assert torch.equal(found.tokens.ravel(), nearest)
    torch.testing.assert_close(found.latents, quantizer.lookup(found.tokens, 3))
    torch.testing.assert_close(quantizer.codebook.norm(dim=-1), torch.ones(20))
    expected = 1.25 * (quantizer.codebook[nearest] - unit).square().mean()
    torch.testing.assert_close(found.loss, expected)


def test_the_gradient_passes_straight_through():
    quantizer = VectorQuantizer(20, 5, commitment=0.0)
    z = torch.nn.functional.normalize(torch.randn(1, 5, 2, 2), dim=1).requires_grad_()
    weight = torch.randn(1, 5, 2, 2)
    (grad,) = torch.autograd.grad((quantizer(z).latents * weight).sum(), z)
    plain = torch.nn.functional.normalize(z, dim=1)
    (expected,) = torch.autograd.grad((plain * weight).sum(), z)
    torch.testing.assert_close(grad, expected)


def test_kmeans_initialisation_fits_the_data_and_needs_enough_of_it():
    torch.manual_seed(0)
    quantizer = VectorQuantizer(16, 4, commitment=0.25)
    latents = torch.nn.functional.normalize(torch.randn(2000, 4), dim=-1)

    def error():
        return torch.cdist(latents, quantizer.codebook).amin(1).square().mean().item()

    before = error()
    quantizer.initialise(latents, seed=0)
    assert error() < 0.75 * before
    with pytest.raises(ValueError, match="as many latents, found 3"):
        quantizer.initialise(latents[:3], seed=0)


@pytest.mark.parametrize(("resolution", "downsample"), [(32, 4), (64, 8), (16, 2), (32, 16)])
def test_shapes_of_every_downsampling(resolution, downsample):
    config = config_of("x", resolution=resolution, downsample=downsample, num_tokens=16, width=16)
    model = config.build()
    images = torch.randn(2, 3, resolution, resolution)
    tokens = model.encode(images)
    assert tokens.shape == (2, (resolution // downsample) ** 2)
    assert model.decode(tokens).shape == images.shape
    reconstruction, quantized = model(images)
    torch.testing.assert_close(reconstruction, model.decode(quantized.tokens), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "bar"), [("emoji32", 23.0)])
def test_a_shipped_tokenizer_reaches_what_it_claims(tmp_path, name, bar):
    config = load_config("codebook", CodebookStage, [f"tokenizer={name}"]).tokenizer
    path = tokenizer_path(config, tmp_path)
    model = load_tokenizer(path, config)
    found = reconstruction_quality(model, load_images("twemoji", "val", model.resolution))
    assert found["psnr_db"] >= bar
    assert found["usage"] >= 0.95
    with safe_open(path, "pt") as file:
        claimed = json.loads(file.metadata()["extra"])["held_out"]
    assert abs(found["psnr_db"] - claimed["psnr_db"]) < 0.01  # stored as float16


@pytest.mark.parametrize(
    ("step", "digest"), [(0, "6f9343e0ad13ac43"), (3, "5f005e63b4968a39"), (1003, "40ecc6d8ff56455c")]
)
def test_batches_from_given_numbers_are_those_that_were_recorded(step, digest):
    """Recorded when the batches had their own grouping of variants."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), np.uint8)
    source = replace(source_of(pixels), groups=np.array([2, 0, 1, 1, 3, 2, 2, 0, 4, 4, 4, 4]))
    batches = _Batches(source, TokenizerTraining(batch_size=6, max_shift=2))
    found = batches.draw(np.random.default_rng([0, step]))
    values = ((found + 1) * 127.5).round().byte().numpy()
    assert hashlib.sha256(values.tobytes()).hexdigest()[:16] == digest
    assert torch.equal(batches(step), batches.draw(random_stream(0, Purpose.TOKENIZER, step)))


def test_training_learns_and_gives_the_same_weights_twice(squares, tmp_path):
    training = TokenizerTraining(steps=60, batch_size=16, precision="fp32", max_shift=1)
    results = [
        train_tokenizer(SMALL, training, squares, squares, tmp_path / f"{name}.safetensors") for name in ("a", "b")
    ]
    assert results[0]["psnr_db"] > 12 and results[0]["psnr_db"] == results[1]["psnr_db"]
    a, b = (load_tokenizer(tmp_path / f"{name}.safetensors", SMALL).state_dict() for name in ("a", "b"))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_weights_that_do_not_fit_are_refused(tmp_path, squares):
    with tells("make tokenizer TOKENIZER=nonesuch"):
        tokenizer_path(config_of("nonesuch"), tmp_path)
    path = tokenizer_path(EMOJI32, tmp_path)
    with pytest.raises(InputError, match="width is 64 there, 32 here"):
        load_tokenizer(path, config_of("emoji32", width=32))
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="truncated"):
        load_tokenizer(broken, SMALL)
    with pytest.raises(ValueError, match="power of two"):
        config_of("x", downsample=3).build()


@pytest.mark.parametrize("stored", ["", "[1]", "{", '{"name": ["emoji32"]}', None])
def test_weights_with_a_damaged_description_are_one_error(tmp_path, stored):
    path = tmp_path / "tokenizer.safetensors"
    save_file({"a": torch.zeros(1)}, path, metadata=None if stored is None else {"config": stored})
    with pytest.raises(InputError, match=r"tokenizer\.safetensors"):
        load_tokenizer(path, EMOJI32)


def test_a_codebook_of_other_weights_is_refused(tmp_path):
    path, layout = tokenizer_path(EMOJI32, tmp_path), Layout(tmp_path, "emoji32")
    model = load_tokenizer(path, EMOJI32)
    codebook = make_codebook(EMOJI32, path, tmp_path / "codebook.npz", model)
    for config in (None, EMOJI32):  # without one, it is that of the name in the codebook
        assert torch.equal(load_decoder(codebook, layout, config).codebook, model.codebook)
    mine = tmp_path / "emoji32" / "tokenizer.safetensors"
    mine.parent.mkdir()
    mine.write_bytes(path.read_bytes() + b" ")
    with tells(r"codebook was made from the tokenizer .*make codebook TOKENIZER=emoji32"):
        load_decoder(codebook, layout)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target": "os:system"}, r"names the class 'os:system', but the config emoji32 .* names 'vq.autoencoder:Conv"),
        ({"name": "mine"}, r"name: 'mine' there, 'emoji32' now"),
        ({"options": {"width": 10**9}}, r"options.width: 1000000000 there, 64 now"),
        ({"options": {"colour": 1}}, r"options.colour: 1 there, None now"),
        ({"options": [1]}, r"options: \[1\] there"),
    ],
)
def test_the_header_of_a_codebook_chooses_neither_class_nor_options(tmp_path, changes, words):
    layout, vectors = Layout(tmp_path, "emoji32"), np.eye(4, dtype=np.float32)
    described = {"name": "emoji32", "target": "vq.autoencoder:ConvVQ", "options": {"width": 64}, "weights": None}
    codebook = Codebook.save(layout.codebook, vectors, described | changes, {"tokenizer": "0" * 64})
    with pytest.raises(InputError, match=words):
        load_decoder(codebook, layout, EMOJI32)


def test_without_a_config_the_one_with_the_name_in_the_codebook_is_taken(tmp_path):
    layout, vectors = Layout(tmp_path, "vq8"), np.eye(4, dtype=np.float32)
    described = {"name": "vq8", "target": "vq.llamagen:LlamaGenVQ", "options": {"channel_multipliers": [1, 2, 2, 4]}}
    codebook = Codebook.save(layout.codebook, vectors, described | {"weights": "no.pt"}, {"tokenizer": "0" * 64})
    with pytest.raises(InputError, match=r"no weights of the tokenizer vq8 at no\.pt"):
        load_decoder(codebook, layout)
    for name in ("nonesuch", "../tokenizer/vq8", None):
        codebook = Codebook.save(layout.codebook, vectors, described | {"name": name}, {"tokenizer": "0" * 64})
        with pytest.raises(InputError, match="configs/tokenizer has no config of that name"):
            load_decoder(codebook, layout)


def test_psnr_of_known_errors():
    black, grey = np.zeros((1, 4, 4, 3), np.uint8), np.full((1, 4, 4, 3), 51, np.uint8)
    np.testing.assert_allclose(peak_signal_to_noise(black, grey), 20 * np.log10(5))
    assert peak_signal_to_noise(black, black) == np.inf
