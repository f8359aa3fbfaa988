"""Samples of a run: labels, tokens, pictures, and a manifest of everything that made them."""

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from tqdm import tqdm

from llamagen.checkpoint import hash_weights
from llamagen.codes import LABELS, group_labels
from llamagen.filters import SamplingConfig
from llamagen.generate import generate, image_uniforms
from llamagen.run import load_config_of, load_run
from masc.artifacts import InputError, replacing, write_json
from masc.codes import Codes
from masc.run import plain
from metrics.figures import image_grid
from metrics.tokenizer import decode_pixels
from vq.pretrained import load_decoder

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class SampleConfig:
    """Which samples to draw from a run."""

    run: str  # its directory
    num_images: int = 1000
    batch_size: int = 100  # changes no sample
    labels: str = "training"  # `training`: drawn as often as in training; `balanced`: each class in turn
    seed: int = 0
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    name: str = "default"  # of the sample set: runs/.../samples/<name>

    def __post_init__(self) -> None:
        if self.labels not in ("training", "balanced"):
            raise ValueError(f"labels must be training or balanced, not {self.labels!r}")
        if self.num_images < 1 or self.batch_size < 1:
            raise ValueError("num_images and batch_size must be positive")

    @property
    def directory(self) -> Path:
        return Path(self.run) / "samples" / self.name


def plan_labels(codes: Codes, kind: str, num_images: int, seed: int) -> np.ndarray:
    """The label of each image by index: (M,) int64. Image i has the same label whatever M is."""
    if kind == "balanced":
        return np.arange(num_images) % len(codes.class_names)
    population = group_labels(codes)
    draws = [np.random.default_rng([seed, LABELS, index]).random() for index in range(num_images)]
    return population[(np.array(draws) * len(population)).astype(np.int64)]


def manifest_of(config: SampleConfig) -> dict[str, Any]:
    """Everything that decides the samples of a trained run."""
    settings = plain(config)
    for volatile in ("batch_size", "run"):
        settings.pop(volatile)
    run = load_config_of(Path(config.run))
    tokenizer = run.layout.load_codebook().meta.parents["tokenizer"]
    return {"config": settings, "weights_sha256": hash_weights(Path(config.run)), "tokenizer_sha256": tokenizer}


def is_sampled(config: SampleConfig) -> bool:
    """Whether the samples are there, drawn from the run's present weights."""
    file = config.directory / "manifest.json"
    return file.exists() and json.loads(file.read_text()) == manifest_of(config)


def sample(config: SampleConfig) -> Path:
    """Draw the samples of a run and write samples/<name>: tokens.npy, labels.npy, images.npz (ADM's layout,
    `arr_0`), grid.png and manifest.json. Returns that directory; nothing to do if it holds them."""
    train_config, inputs, model = load_run(Path(config.run))
    if is_sampled(config):
        logger.info("%s holds these samples already", config.directory)
        return config.directory

    accelerator = Accelerator()
    model.to(accelerator.device)
    labels = torch.from_numpy(plan_labels(inputs.train, config.labels, config.num_images, config.seed))
    positions, decisions = inputs.train.num_positions, model.head.num_decisions
    tokens = torch.zeros(config.num_images, positions, dtype=torch.int64, device=accelerator.device)
    stride = config.batch_size * accelerator.num_processes
    starts = range(accelerator.process_index * config.batch_size, config.num_images, stride)
    for start in tqdm(starts, desc=f"sample {train_config.label}", unit="batch", disable=None):
        rows = np.arange(start, min(start + config.batch_size, config.num_images))
        uniforms = image_uniforms(config.seed, rows, positions, decisions)
        tokens[rows] = generate(model, labels[rows].to(accelerator.device), uniforms, config.sampling)
    tokens = accelerator.reduce(tokens, "sum").cpu()
    if accelerator.is_main_process:
        layout = train_config.layout
        tokenizer = load_decoder(layout.load_codebook(), layout.root)
        images = decode_pixels(tokenizer, tokens.numpy())
        with replacing(config.directory) as temporary:
            temporary.mkdir()
            np.save(temporary / "tokens.npy", tokens.numpy().astype(inputs.train.tokens.dtype))
            np.save(temporary / "labels.npy", labels.numpy())
            np.savez(temporary / "images.npz", arr_0=images)
            Image.fromarray(image_grid(images[:64], 8)).save(temporary / "grid.png")
            write_json(temporary / "manifest.json", manifest_of(config))
    accelerator.wait_for_everyone()
    return config.directory


def load_manifest(directory: Path) -> dict[str, Any]:
    """What made a sample set; InputError if it is missing."""
    file = directory / "manifest.json"
    if not file.exists():
        raise InputError(
            f"no samples at {directory}; draw them with `make sample RUN={directory.parent.parent} "
            f'ARGS="name={directory.name}"`'
        )
    return json.loads(file.read_text())


def load_samples(directory: Path) -> np.ndarray:
    """Pictures of a sample set: (M, H, W, 3) uint8."""
    load_manifest(directory)
    with np.load(directory / "images.npz", allow_pickle=False) as archive:
        return archive["arr_0"]
