"""Samples of a run or of a released model: labels, tokens, pictures, and a manifest of everything that made them.

A sample depends on (seed, image index) only. Processes take whole batches, so their number changes nothing; the
batch size changes no more than the rounding of the matrix products (in bf16 that can change a sample)."""

import contextlib
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
from tqdm import tqdm

from llamagen.conditions.features import TextFeatures
from llamagen.runs import load_config_of
from llamagen.sampling.filters import SamplingConfig
from llamagen.sampling.generate import forget_compiled, generate, image_uniforms
from llamagen.sampling.pictures import UNIT, decode_units, join_npz, read_units
from llamagen.sampling.plan import SampleConfig, Subject, load_subject, sampling_precision
from llamagen.sampling.sets import TokenPictures, manifest_at
from llamagen.training.checkpoint import hash_weights
from masc.runtime.artifacts import InputError, hash_file, recover, replacing, write_json
from masc.runtime.codes import code_type
from masc.runtime.device import patient_accelerator
from masc.runtime.run import differences, flatten, locked, plain, provenance
from vq.interface import tokenizer_path
from vq.pixels import image_grid

logger = logging.getLogger(__name__)
SHOWN = 64  # pictures of the grid


def manifest_of(config: SampleConfig) -> dict[str, Any]:
    """Everything that decides the samples of a trained run or a release: settings, and hashes of what is read."""
    settings = plain(config) | {"labels": config.label_plan, "precision": sampling_precision(config.precision)}
    for elsewhere in ("batch_size", "run", "captions", "artifacts"):  # changes nothing, or is there by its hash
        settings.pop(elsewhere)
    if config.release is not None:
        release = settings["release"]
        release.pop("weights")
        release["tokenizer"].pop("weights")
        weights = hash_file(config.release.path)
        tokenizer = hash_file(tokenizer_path(config.release.tokenizer, Path(config.artifacts)))
    else:
        weights = hash_weights(Path(config.run), config.use_ema)
        tokenizer = load_config_of(Path(config.run)).layout.load_codebook().meta.parents["tokenizer"]
    manifest = {"config": settings, "weights_sha256": weights, "tokenizer_sha256": tokenizer}
    if config.captions is not None:
        features = TextFeatures.load(Path(config.captions))
        manifest["captions"] = {"sha256": features.sha256, **features.config}
    return manifest


def is_sampled(config: SampleConfig) -> bool:
    """Whether the samples are there, drawn from the present weights."""
    return manifest_at(config.directory) == manifest_of(config)


def sample(config: SampleConfig, preset: SamplingConfig | None = None) -> Path:
    """Draw samples and write samples/<name>: tokens.npy, labels.npy or captions.json, images.npz (ADM's layout,
    `arr_0`) or images/000000.png and on, grid.png, manifest.json (all that decides them) and provenance.json (commit,
    versions, machine). Returns that directory; nothing to do if it holds them. Processes must share its file system.

    Settings of a release that differ from its `preset` are warned of: the result compares with no published number.
    Interrupted, the same command goes on: every batch of tokens and every unit of pictures is kept as it is finished.
    Samples of other settings are never replaced: InputError names the keys that differ."""
    accelerator = patient_accelerator()
    if accelerator.is_main_process:
        _warn_off_preset(config, preset)
        recover(config.directory)
    accelerator.wait_for_everyone()
    manifest = manifest_of(config)
    if manifest_at(config.directory) == manifest:
        logger.info("%s holds these samples already", config.directory)
        return config.directory
    work = config.directory.with_name(f".{config.directory.name}.unfinished")
    for directory in (config.directory, work):
        _refuse_other_settings(directory, manifest)
    subject = load_subject(config)
    with locked(work) if accelerator.is_main_process else contextlib.nullcontext():
        if accelerator.is_main_process and manifest_at(work) != manifest:
            for part in (work / "tokens", work / "images"):
                shutil.rmtree(part, ignore_errors=True)
            write_json(work / "manifest.json", manifest)
        accelerator.wait_for_everyone()
        _draw_tokens(config, accelerator, subject, work / "tokens")
        accelerator.wait_for_everyone()
        tokens = _join_tokens(work / "tokens", config.num_images, subject.model.head.num_tokens)
        tokenizer = subject.tokenizer.to(accelerator.device)
        resolution = config.resolution or (config.release.resolution if config.release else None)
        if config.form != "tokens":
            decode_units(accelerator, tokenizer, tokens, work / "images", config.form, resolution)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            _finish(config, work, tokens, subject, TokenPictures(tokens, tokenizer, resolution))
        accelerator.wait_for_everyone()
    return config.directory


def _refuse_other_settings(directory: Path, manifest: dict[str, Any]) -> None:
    """Raise InputError if a directory holds samples of other settings or captions; those of older weights may be
    replaced."""
    there = manifest_at(directory)
    if there is None:
        return
    lines = differences(*(flatten(one["config"] | {"captions": one.get("captions")}) for one in (there, manifest)))
    if lines:
        raise InputError(
            f"{directory} holds samples of other settings:\n{lines}\nChoose another name with SAMPLES=..., or delete "
            f"these with `rm -r {directory}`"
        )
    if there != manifest:
        logger.warning("%s was drawn from other weights; drawing anew", directory)


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


def _draw_tokens(config: SampleConfig, accelerator: Accelerator, subject: Subject, folder: Path) -> None:
    """Draw what `folder` does not hold yet, one file a batch."""
    done = np.zeros(config.num_images, bool)
    for file in folder.glob("[0-9]*.npy"):
        done[_rows(file)] = True
    missing = np.flatnonzero(~done)
    batches = [missing[start : start + config.batch_size] for start in range(0, len(missing), config.batch_size)]
    batches = [run for batch in batches for run in np.split(batch, np.flatnonzero(np.diff(batch) > 1) + 1)]
    accelerator.wait_for_everyone()  # all have looked before any writes
    mine = batches[accelerator.process_index :: accelerator.num_processes]
    model, device = subject.model.to(accelerator.device), accelerator.device
    if sampling_precision(config.precision) == "bf16":
        model = model.to(torch.bfloat16)
    positions, decisions = model.backbone.num_positions, model.head.num_decisions
    quiet = None if accelerator.is_main_process else True
    bar = tqdm(total=sum(map(len, mine)), desc=f"sample {model.backbone.config.name}", unit="image", disable=quiet)
    for rows in mine:
        condition, mask = subject.conditions.batch(rows)
        mask = None if mask is None else mask.to(device)
        uniforms = image_uniforms(config.seed, rows, positions, decisions)
        drawn = generate(model, condition.to(device), uniforms, config.sampling, mask, config.compile).cpu().numpy()
        with replacing(folder / f"{rows[0]:08d}-{rows[-1] + 1:08d}.npy") as temporary, temporary.open("wb") as file:
            np.save(file, drawn)
        bar.update(len(rows))
    forget_compiled()
    subject.model.to("cpu")  # the decoder may need the room


def _rows(file: Path) -> slice:
    first, end = map(int, file.stem.split("-"))
    return slice(first, end)


def _join_tokens(folder: Path, num_images: int, num_tokens: int) -> np.ndarray:
    """The tokens of all batches: (M, T), in the type of codes."""
    tokens = None
    for file in sorted(folder.glob("[0-9]*.npy")):
        part = np.load(file)
        if tokens is None:
            tokens = np.zeros((num_images, part.shape[1]), code_type(num_tokens))
        tokens[_rows(file)] = part
    assert tokens is not None, "every batch was drawn"
    return tokens


def _finish(config: SampleConfig, work: Path, tokens: np.ndarray, subject: Subject, decoded: TokenPictures) -> None:
    """Put the pieces together in the directory's place, and drop what was kept on the way."""
    num_shown = min(SHOWN, config.num_images)
    if config.form == "tokens":
        shown = decoded.read(0, num_shown)
    else:
        units = read_units(work / "images", config.form, config.num_images)
        shown = np.concatenate([next(units) for _ in range(-(-num_shown // UNIT))])[:SHOWN]
    with replacing(config.directory) as temporary:
        temporary.mkdir(parents=True)
        Image.fromarray(image_grid(shown, 8)).save(temporary / "grid.png")
        np.save(temporary / "tokens.npy", tokens)
        if isinstance(subject.conditions, TextFeatures):
            write_json(temporary / "captions.json", subject.conditions.captions[: config.num_images])
        else:
            np.save(temporary / "labels.npy", subject.conditions.labels)
        write_json(temporary / "manifest.json", json.loads((work / "manifest.json").read_text()))
        write_json(temporary / "provenance.json", provenance())
        if config.form == "npz":
            join_npz(work / "images", config.num_images, temporary / "images.npz")
        elif config.form == "png":
            for leftover in (work / "images").glob(".*.partial"):  # of a process that died while it wrote
                leftover.unlink()
            (work / "images").rename(temporary / "images")
    shutil.rmtree(work)
