"""Samples of a run or of a released model: labels, tokens, pictures, and a manifest of everything that made them.

A sample depends on (seed, image index) only. Processes take whole batches, so their number changes nothing; the
batch size changes no more than the rounding of the matrix products (in bf16 that can change a sample)."""

import json
import logging
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from llamagen.checkpoint import hash_weights
from llamagen.filters import SamplingConfig
from llamagen.generate import generate, image_uniforms
from llamagen.pictures import UNIT, decode_units, join_npz, png_path, read_units
from llamagen.plan import SampleConfig, Subject, load_subject, plan_labels, sampling_precision
from llamagen.run import load_config_of
from llamagen.text import TextFeatures
from masc.artifacts import InputError, hash_file, replacing, write_json
from masc.run import plain, provenance
from metrics.figures import image_grid
from vq.pretrained import tokenizer_path

logger = logging.getLogger(__name__)
SHOWN = 64  # pictures of the grid


def manifest_of(config: SampleConfig) -> dict[str, Any]:
    """Everything that decides the samples of a trained run or a release."""
    settings = plain(config) | {"labels": config.label_plan, "precision": sampling_precision(config.precision)}
    for volatile in ("batch_size", "run"):
        settings.pop(volatile)
    if config.release is not None:
        weights = hash_file(config.release.path)
        tokenizer = hash_file(tokenizer_path(config.release.tokenizer, Path()))
    else:
        weights = hash_weights(Path(config.run))
        tokenizer = load_config_of(Path(config.run)).layout.load_codebook().meta.parents["tokenizer"]
    manifest = {"config": settings, "weights_sha256": weights, "tokenizer_sha256": tokenizer}
    if config.captions is not None:
        manifest["captions_sha256"] = TextFeatures.load(Path(config.captions)).sha256
    return manifest


def is_sampled(config: SampleConfig) -> bool:
    """Whether the samples are there, drawn from the present weights."""
    return _holds(config.directory, manifest_of(config))


def _holds(directory: Path, manifest: dict[str, Any]) -> bool:
    file = directory / "manifest.json"
    return file.exists() and json.loads(file.read_text()) == manifest


def sample(config: SampleConfig, preset: SamplingConfig | None = None) -> Path:
    """Draw samples and write samples/<name>: tokens.npy, labels.npy, images.npz (ADM's layout, `arr_0`) or
    images/000000.png and on, grid.png, manifest.json (all that decides them) and provenance.json (commit, versions,
    machine). Returns that directory; nothing to do if it holds them. Processes must share its file system.

    Settings that differ from `preset` are warned of: the result compares with no published number. Interrupted, the
    same command goes on: every batch of tokens and every unit of pictures is kept as it is finished."""
    _warn_off_preset(config, preset)
    manifest = manifest_of(config)
    if _holds(config.directory, manifest):
        logger.info("%s holds these samples already", config.directory)
        return config.directory
    accelerator = Accelerator()
    work = config.directory.with_name(f".{config.directory.name}.unfinished")
    if accelerator.is_main_process:
        if work.exists() and not _holds(work, manifest):
            logger.warning("beginning anew: %s was begun with other settings or weights", work)
            shutil.rmtree(work)
        write_json(work / "manifest.json", manifest)
    accelerator.wait_for_everyone()
    subject = load_subject(config)
    labels = plan_labels(config.label_plan, subject.num_classes, subject.population, config.num_images, config.seed)
    _draw_tokens(config, accelerator, subject, labels, work / "tokens")
    accelerator.wait_for_everyone()
    tokens = _join_tokens(work / "tokens", config.num_images, subject.model.head.num_tokens)
    tokenizer = subject.load_tokenizer().to(accelerator.device)
    resolution = config.resolution or (config.release.resolution if config.release else None)
    decode_units(accelerator, tokenizer, tokens, work / "images", config.form, resolution)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        _finish(config, work, tokens, labels)
    accelerator.wait_for_everyone()
    return config.directory


def _warn_off_preset(config: SampleConfig, preset: SamplingConfig | None) -> None:
    if config.release is None or preset is None:
        return
    used, wanted = asdict(config.sampling), asdict(preset)
    differing = [f"{key} {used[key]} instead of {wanted[key]}" for key in used if used[key] != wanted[key]]
    if config.resolution not in (None, config.release.resolution):
        differing.append(f"resolution {config.resolution} instead of {config.release.resolution}")
    if differing:
        logger.warning(
            "off the preset of %s: %s; the result compares with none of its published numbers",
            config.release.name,
            ", ".join(differing),
        )


def _draw_tokens(
    config: SampleConfig, accelerator: Accelerator, subject: Subject, labels: np.ndarray, folder: Path
) -> None:
    """Draw what `folder` does not hold yet, one file a batch."""
    done = np.zeros(config.num_images, bool)
    for file in folder.glob("*.npy"):
        done[_rows(file)] = True
    missing = np.flatnonzero(~done)
    batches = [missing[start : start + config.batch_size] for start in range(0, len(missing), config.batch_size)]
    batches = [run for batch in batches for run in np.split(batch, np.flatnonzero(np.diff(batch) > 1) + 1)]
    accelerator.wait_for_everyone()  # all have looked before any writes
    mine = batches[accelerator.process_index :: accelerator.num_processes]
    model = subject.model.to(accelerator.device)
    if sampling_precision(config.precision) == "bf16":
        model = model.to(torch.bfloat16)
    captions = None if config.captions is None else TextFeatures.load(Path(config.captions))
    if (captions is None) == (model.backbone.config.condition == "text"):
        raise InputError(
            "a text-conditional model is sampled with captions=DIRECTORY (`make text-features`), a class-conditional "
            f"one without; {model.backbone.config.name} is {model.backbone.config.condition}-conditional"
        )
    positions, decisions = model.backbone.num_positions, model.head.num_decisions
    quiet = None if accelerator.is_main_process else True
    bar = tqdm(total=sum(map(len, mine)), desc=f"sample {model.backbone.config.name}", unit="image", disable=quiet)
    for rows in mine:
        condition, mask = _condition(labels, captions, rows, accelerator.device)
        uniforms = image_uniforms(config.seed, rows, positions, decisions)
        drawn = generate(model, condition, uniforms, config.sampling, mask, config.compile).cpu().numpy()
        with replacing(folder / f"{rows[0]:08d}-{rows[-1] + 1:08d}.npy") as temporary, temporary.open("wb") as file:
            np.save(file, drawn)
        bar.update(len(rows))
    subject.model.to("cpu")  # the decoder may need the room


def _condition(
    labels: np.ndarray, captions: TextFeatures | None, rows: np.ndarray, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """What the images of `rows` show, and the mask of their captions."""
    if captions is None:
        return torch.from_numpy(labels[rows]).to(device), None
    features, mask = captions.batch(rows % len(captions))
    return torch.as_tensor(features).to(device), torch.as_tensor(mask).to(device)


def _rows(file: Path) -> slice:
    first, end = map(int, file.stem.split("-"))
    return slice(first, end)


def _join_tokens(folder: Path, num_images: int, num_tokens: int) -> np.ndarray:
    """The tokens of all batches: (M, T) uint16, or uint32 above 65,536 tokens."""
    tokens = None
    for file in sorted(folder.glob("*.npy")):
        part = np.load(file)
        if tokens is None:
            tokens = np.zeros((num_images, part.shape[1]), np.uint16 if num_tokens <= 2**16 else np.uint32)
        tokens[_rows(file)] = part
    assert tokens is not None, "every batch was drawn"
    return tokens


def _finish(config: SampleConfig, work: Path, tokens: np.ndarray, labels: np.ndarray) -> None:
    """Put the pieces together in the directory's place, and drop what was kept on the way."""
    units = read_units(work / "images", config.form, config.num_images)
    shown = np.concatenate([next(units) for _ in range(-(-min(SHOWN, config.num_images) // UNIT))])[:SHOWN]
    with replacing(config.directory) as temporary:
        temporary.mkdir(parents=True)
        Image.fromarray(image_grid(shown, 8)).save(temporary / "grid.png")
        np.save(temporary / "tokens.npy", tokens)
        np.save(temporary / "labels.npy", labels)
        write_json(temporary / "manifest.json", json.loads((work / "manifest.json").read_text()))
        write_json(temporary / "provenance.json", provenance())
        if config.form == "npz":
            join_npz(work / "images", config.num_images, temporary / "images.npz")
        else:
            (work / "images").rename(temporary / "images")
    shutil.rmtree(work)


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
    settings = load_manifest(directory)["config"]
    if settings["form"] == "png":
        paths = [png_path(directory / "images", index) for index in range(settings["num_images"])]
        return np.stack([np.asarray(Image.open(path)) for path in paths])
    with np.load(directory / "images.npz", allow_pickle=False) as archive:
        return archive["arr_0"]
