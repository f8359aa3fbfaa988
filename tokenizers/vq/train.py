"""Training of the small tokenizer.

The loss has no perceptual term: the embedded metrics use EfficientNet-Lite0, so training on its features would bias
them."""

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from masc.runtime.device import build_accelerator, check_precision, resolve_precision
from masc.runtime.errors import InputError
from masc.runtime.files import replacing, save_safetensors
from masc.runtime.groups import Groups
from masc.runtime.run import plain
from masc.runtime.streams import Purpose, random_stream
from vq.autoencoder import ConvVQ
from vq.images import ImageSource
from vq.interface import TokenizerConfig
from vq.pixels import to_tensor
from vq.quality import reconstruction_quality


@dataclass(kw_only=True)
class TokenizerTraining:
    """Settings of the training of a ConvVQ: loss l1_weight |e| + (1 - l1_weight) 2 e^2, AdamW, cosine schedule."""

    steps: int = 1200
    batch_size: int = 32
    learning_rate: float = 2e-3  # peak, after 50 steps of linear warm-up
    l1_weight: float = 0.5
    continuous_share: float = 0.25  # share of the steps before k-means sets the codebook
    max_shift: int = 3  # pixels, in each direction
    seed: int = 0
    precision: str = "auto"

    def __post_init__(self) -> None:
        check_precision(self.precision)
        if not (self.steps > 0 and self.batch_size > 0 and 0 <= self.continuous_share < 1):
            raise ValueError(
                "the training of a tokenizer needs steps > 0, batch_size > 0 and 0 <= continuous_share < 1, found "
                f"{self.steps}, {self.batch_size}, {self.continuous_share}"
            )


class _Batches:
    """Augmented batches as a function of (seed, step): groups, one image of each, flips and a shift."""

    def __init__(self, source: ImageSource, config: TokenizerTraining):
        self.images, self.groups, self.config = to_tensor(source.pixels), Groups(source.groups), config

    def __call__(self, step: int) -> Tensor:
        """The batch of a step: (B, 3, S, S) in [-1, 1]."""
        return self.draw(random_stream(self.config.seed, Purpose.TOKENIZER, step))

    def draw(self, rng: np.random.Generator) -> Tensor:
        """A batch from the next numbers of `rng`: (B, 3, S, S) in [-1, 1]."""
        drawn = rng.integers(len(self.groups), size=self.config.batch_size)
        variants = rng.integers(self.groups.sizes[drawn])
        images = self.images[self.groups.members[self.groups.starts[drawn] + variants]]
        flip = torch.from_numpy(rng.random(len(images)) < 0.5)
        images = torch.where(flip[:, None, None, None], images.flip(-1), images)
        shift = self.config.max_shift
        down, right = (int(value) for value in rng.integers(0, 2 * shift + 1, size=2))
        side = images.shape[-1]
        padded = F.pad(images, (shift,) * 4, value=1.0)  # white
        return padded[..., down : down + side, right : right + side]


def train_tokenizer(
    config: TokenizerConfig, training: TokenizerTraining, source: ImageSource, held_out: ImageSource, path: Path
) -> dict[str, float]:
    """Train a tokenizer on `source`, write it to `path` (safetensors) and return its quality on `held_out`.

    The same training on the same machine, with the same number of threads, gives the same weights. The bytes of the
    file differ, because its header says how long it took and safetensors orders the header at random.
    A step of 32 images of 32 x 32 pixels takes about 0.3 s on one CPU core with width 64."""
    precision = resolve_precision(training.precision)
    accelerator = build_accelerator(precision)
    torch.manual_seed(training.seed)
    model = config.build().to(memory_format=torch.channels_last)
    if not isinstance(model, ConvVQ):
        raise InputError(
            f"the tokenizer {config.name} is a {config.target}, but this stage trains vq.autoencoder:ConvVQ only. "
            "Train it with its own code and name its file with tokenizer.weights"
        )
    if source.pixels.shape[1] != model.resolution:
        raise InputError(
            f"the images of {source.name} have {source.pixels.shape[1]} pixels a side, the tokenizer {config.name} "
            f"takes {model.resolution}; choose DATA and TOKENIZER of one size"
        )
    optimizer = torch.optim.AdamW(model.parameters(), lr=training.learning_rate, betas=(0.9, 0.95), weight_decay=1e-4)
    model, optimizer = accelerator.prepare(model, optimizer)
    batches = _Batches(source, training)
    quantize_from = int(training.continuous_share * training.steps)
    started = time.perf_counter()
    bar = tqdm(range(training.steps), desc=f"tokenizer {config.name}", disable=None)
    for step in bar:
        images = batches(step).to(accelerator.device, memory_format=torch.channels_last)
        if step == quantize_from:
            _initialise_codebook(accelerator.unwrap_model(model), batches, step, training.seed)
        progress = step / training.steps
        warm_up = min(1.0, (step + 1) / 50)
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate * warm_up * 0.5 * (1 + math.cos(math.pi * progress))
        with accelerator.autocast():
            if step < quantize_from:
                reconstruction = model.decoder(model.latents(images))
                quantization_loss = torch.zeros((), device=images.device)
            else:
                reconstruction, quantized = model(images)
                quantization_loss = quantized.loss
        error = reconstruction.float() - images
        loss = training.l1_weight * error.abs().mean() + (1 - training.l1_weight) * 2 * error.square().mean()
        optimizer.zero_grad()
        accelerator.backward(loss + quantization_loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.4f}")
    model = accelerator.unwrap_model(model).eval().float()
    results = reconstruction_quality(model, held_out) | {"seconds": round(time.perf_counter() - started, 1)}
    save_tokenizer(config.name, model, path, {"training": plain(training), "held_out": results})
    return results


def _initialise_codebook(model: ConvVQ, batches: _Batches, step: int, seed: int) -> None:
    # 64 latents for each token are enough for k-means in 8 dimensions.
    needed = math.ceil(64 * model.num_tokens / (model.grid**2 * batches.config.batch_size))
    device = next(model.parameters()).device
    with torch.no_grad():
        latents = [model.latents(batches(step + i).to(device)) for i in range(needed)]
    model.quantize.initialise(torch.cat(latents).permute(0, 2, 3, 1).flatten(0, 2).float(), seed)


def save_tokenizer(name: str, model: ConvVQ, path: Path, extra: dict[str, Any]) -> None:
    """Write the weights as float16 (half the bytes), with sizes and training settings in the header."""
    state = {name: value.detach().half().contiguous() for name, value in model.state_dict().items()}
    header = {"config": json.dumps({"name": name, **model.options}), "extra": json.dumps(extra)}
    with replacing(path) as temporary:
        save_safetensors(temporary, state, header)
