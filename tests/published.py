"""Published tokenizers against the outputs of their official classes; see tests/data/README.md."""

from typing import Any

import numpy as np
import torch
from golden import load_golden, load_state

from vq.interface import Tokenizer, TokenizerConfig
from vq.pretrained import load_tokenizer

SIZES = ("num_tokens", "code_dim", "channels", "channel_multipliers", "num_blocks", "z_channels")


def golden_config(name: str, target: str, **options: Any) -> TokenizerConfig:
    """The config of the golden tokenizer `name`, as a file in configs/tokenizer would give it."""
    meta, _ = load_golden(name)
    sizes = {key: meta[key] for key in SIZES if key in meta}
    return TokenizerConfig(name=name, target=target, options=sizes | options, weights="given by the test")


def golden_state(name: str) -> dict[str, torch.Tensor]:
    """The official state dict, with what a training checkpoint holds beside it."""
    return load_state(name) | {"loss.discriminator.main.0.weight": torch.zeros(2)}


def averaged(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A checkpoint of SEED-Voken whose averaged weights are `state`; the others are wrong on purpose."""
    stored = {"model_ema." + name.replace(".", ""): value for name, value in state.items()}
    counters = {"model_ema.decay": torch.tensor(0.999), "model_ema.num_updates": torch.tensor(7)}
    return {name: value + 1 for name, value in state.items()} | stored | counters


def load_written(checkpoint: dict[str, Any], config: TokenizerConfig, folder) -> Tokenizer:
    """The tokenizer read back from a checkpoint file written into `folder`."""
    torch.save(checkpoint, folder / "published.ckpt")
    return load_tokenizer(folder / "published.ckpt", config)


def assert_as_official(model: Tokenizer, name: str, scale: float = 1.0, shift: float = 0.0) -> None:
    """Latents, tokens and images equal the official ones, the images after `scale` and `shift`."""
    _, arrays = load_golden(name)
    images = torch.from_numpy(arrays["images"])
    latents = model.latents(images)
    np.testing.assert_allclose(latents.numpy(), arrays["latents"], atol=2e-5)
    tokens = model.encode(images)
    assert tokens.dtype == torch.int64
    np.testing.assert_array_equal(tokens.numpy(), arrays["tokens"])
    for codes, expected in (("tokens", "reconstruction"), ("random_tokens", "decoded")):
        decoded = model.decode(torch.from_numpy(arrays[codes]))
        np.testing.assert_allclose(decoded.numpy(), scale * arrays[expected] + shift, atol=2e-4)


def assert_batch_free(model: Tokenizer, name: str) -> None:
    """An image's tokens do not depend on the batch it is in."""
    images = torch.from_numpy(load_golden(name)[1]["images"])
    assert torch.equal(model.encode(images), torch.cat([model.encode(image[None]) for image in images]))


def num_parameters(target: type, **options: Any) -> int:
    """Parameters of a tokenizer of the given options, without allocating them."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in target(**options).parameters())
