"""The released checkpoints themselves, where `make weights` has brought them: `pytest -m weights`."""

import math

import numpy as np
import pytest
import torch
from codebook import CodebookStage
from stage import CONFIGS, load_config

from llamagen.evaluation.fid import evaluate_fid
from llamagen.evaluation.images import EvalFidConfig
from llamagen.release import Release
from llamagen.sampling.filters import SamplingConfig
from llamagen.sampling.generate import generate, image_uniforms
from llamagen.sampling.plan import SampleConfig
from metrics.evaluators import NAME
from metrics.results import Results
from vq.hub.fetch import weights_path
from vq.hub.releases import RELEASES as KNOWN
from vq.interface import tokenizer_path
from vq.pixels import to_tensor
from vq.pretrained import load_tokenizer
from vq.quality import peak_signal_to_noise
from vq.readers import load_images

pytestmark = pytest.mark.weights
RELEASES = sorted(file.stem for file in (CONFIGS / "release").glob("*.yaml"))
TOKENIZERS = ["vq16", "vq8", "vq16-t2i", "vqgan1024", "vqgan16384", "maskgit-vq", "ibq", "magvit2"]


@pytest.fixture(autouse=True)
def in_the_repository(root, monkeypatch):
    monkeypatch.chdir(root)


def skip_without(path):
    if not path.exists():
        pytest.skip(f"no {path}; `make weights` brings it")


@pytest.mark.parametrize("name", RELEASES)
def test_a_released_model_loads_and_draws_what_it_holds_likely(name, root):
    config = load_config("sample", SampleConfig, [f"release={name}", f"sampling={name}"])
    skip_without(root / config.release.weights)
    model = Release(config.release, root / "artifacts").load_model()
    if config.release.model.condition == "text":
        condition = model.backbone.cls_embedding.null(torch.zeros(2, 120, 2048))
    else:
        condition = torch.tensor([207, 360])
    tokens = generate(model, condition, image_uniforms(0, range(2), 8, 1), SamplingConfig())
    assert tokens.shape == (2, 8)
    full = torch.cat([tokens, torch.zeros(2, model.backbone.num_positions - 8, dtype=torch.long)], dim=1)
    with torch.no_grad():
        nats = -model(full, condition).sum(-1)[:, :8].mean().item()
    assert nats < math.log(config.release.num_tokens) - 0.5  # its own draws are likelier than chance


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_released_tokenizer_loads_and_reconstructs(name, root):
    config = load_config("codebook", CodebookStage, [f"tokenizer={name}"]).tokenizer
    skip_without(root / config.weights)
    model = load_tokenizer(tokenizer_path(config, root / "artifacts"), config)
    pixels = load_images("twemoji", "val", 256).pixels[:4]
    with torch.inference_mode():
        images = model.decode(model.encode(to_tensor(pixels))).clamp(-1, 1)
    found = ((images.permute(0, 2, 3, 1).numpy() + 1) * 127.5).astype(np.uint8)
    assert peak_signal_to_noise(pixels, found).mean() > 15  # dB; untrained weights give less than 10


def test_adms_published_samples_give_adms_published_numbers(root, tmp_path):
    """README.md of openai/guided-diffusion, evaluations/: admnet_guided_upsampled_imagenet256.npz. 7 hours of a CPU."""
    for name in (NAME, "adm-imagenet256", "adm-samples-imagenet256"):
        skip_without(KNOWN[name].path(root / "weights"))
    samples = weights_path("adm-samples-imagenet256", root / "weights")
    overrides = [f"samples={samples}", "+protocol@protocols.adm=adm", "bootstrap=0", f"out={tmp_path}"]
    found = Results.load(evaluate_fid(load_config("eval_fid", EvalFidConfig, overrides))[0])
    expected = {"FID": (3.9426, 0.005), "sFID": (6.140, 0.01), "IS": (215.84, 0.2)}
    expected |= {"precision": (0.8265, 0.003), "recall": (0.5309, 0.003)}
    for metric, (value, tolerance) in expected.items():
        assert found[metric]["value"] == pytest.approx(value, abs=tolerance), metric
