"""Near codes: the exact nearest neighbours of the encoder's output, of which the first is the token."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from vq import quantize
from vq.autoencoder import ConvVQ
from vq.llamagen import LlamaGenVQ
from vq.maskgit import MaskGITVQ
from vq.quantize import VectorQuantizer
from vq.taming import TamingVQ


@pytest.fixture(params=[True, False], ids=["unit vectors", "any vectors"])
def quantizer(request):
    torch.manual_seed(0)
    return VectorQuantizer(300, 8, commitment=0.25, l2_norm=request.param)


def test_near_codes_are_the_exact_nearest_neighbours_of_what_is_compared(quantizer, monkeypatch):
    monkeypatch.setattr(quantize, "MAX_SCORES", 10_000)  # 33 latents at once
    z = torch.randn(3, 8, 6, 6)
    ids, distances = quantizer.near(z, 7)
    assert ids.shape == distances.shape == (3, 36, 7) and (ids.dtype, distances.dtype) == (torch.int64, torch.float32)
    assert torch.equal(ids[..., 0], quantizer.tokens(z)) and (distances.diff() >= 0).all()
    compared = quantizer.compared(z).reshape(-1, 8).double().numpy()
    exact = cdist(compared, quantizer.codebook.detach().double().numpy(), "sqeuclidean")
    np.testing.assert_allclose(distances.reshape(-1, 7), np.sort(exact)[:, :7], rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(
        distances.reshape(-1, 7), np.take_along_axis(exact, ids.reshape(-1, 7).numpy(), 1), rtol=1e-5, atol=2e-6
    )


def test_of_equal_codes_the_token_comes_first_and_all_come_once(quantizer):
    with torch.no_grad():
        quantizer.embedding.weight.copy_(quantizer.embedding.weight[:5].repeat(60, 1))
    z = torch.randn(2, 8, 3, 3)
    ids, distances = quantizer.near(z, 300)
    assert torch.equal(ids[..., 0], quantizer.tokens(z))
    assert torch.equal(ids.sort().values, torch.arange(300).expand(2, 9, 300))
    assert (distances.diff() >= 0).all()


def test_a_latent_on_a_code_has_distance_zero(quantizer):
    codebook = quantizer.codebook.detach()
    ids, distances = quantizer.near(codebook[:9].T.reshape(1, 8, 3, 3), 2)
    assert torch.equal(ids[0, :, 0], torch.arange(9)) and (distances[..., 0] < 2e-6).all() and (distances >= 0).all()


SIZES = {"num_tokens": 40, "code_dim": 8, "channels": 32, "channel_multipliers": [1, 1], "num_blocks": 1}


@pytest.mark.parametrize(
    "model",
    [
        lambda: ConvVQ(resolution=16, num_tokens=40, width=16),
        lambda: LlamaGenVQ(**SIZES, z_channels=16),
        lambda: TamingVQ(**SIZES, z_channels=16),
        lambda: MaskGITVQ(**SIZES),
    ],
    ids=["ConvVQ", "LlamaGenVQ", "TamingVQ", "MaskGITVQ"],
)
def test_the_first_near_code_of_every_tokenizer_is_its_token(model):
    torch.manual_seed(0)
    model = model().eval()
    images = torch.randn(3, 3, 16, 16)
    ids, distances = model.encode_near(images, 5)
    assert torch.equal(ids[..., 0], model.encode(images)) and not distances.requires_grad
