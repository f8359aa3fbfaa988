"""Drawing a sample set: labels, tokens, images, and a manifest of everything that decides them.

A sample depends on (seed, image index) only. Processes take whole batches, so their number changes nothing. The batch
size changes only the rounding of the matrix products (in bf16 that can change a sample)."""

import contextlib
import logging
import math
import re
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
from llamagen.conditions.images import Labels
from llamagen.model import ARModel
from llamagen.sampling.filters import SamplingConfig
from llamagen.sampling.generate import generate, image_uniforms
from llamagen.sampling.images import UNIT, check_folder, check_piece, decode_units, join_npz, read_units
from llamagen.sampling.plan import SampleConfig, SamplePlan, make_plan, sampling_precision
from llamagen.sampling.sets import SampleSet, Source, TokenImages, read_manifest, resolution_of
from masc.runtime.codes import check_tokens, code_type
from masc.runtime.device import check_agreement, from_main, patient_accelerator
from masc.runtime.errors import InputError, removal
from masc.runtime.files import remove_leftovers, replacing, write_json
from masc.runtime.npy import save_npy
from masc.runtime.reading import open_array
from masc.runtime.run import differences, flatten, locked, plain, provenance
from masc.runtime.writing import make_folder
from vq.pixels import image_grid

logger = logging.getLogger(__name__)
SHOWN = 64  # images in the grid


def _settings_of(config: SampleConfig, captions: TextFeatures | None) -> dict[str, Any]:
    """The part of a manifest that a command chooses: settings and captions."""
    settings = plain(config) | {"labels": config.label_plan, "precision": sampling_precision(config.precision)}
    # The batch does not affect the samples; the others are recorded by the hashes of their files.
    for elsewhere in ("batch_size", "run", "captions", "artifacts"):
        settings.pop(elsewhere)
    if config.release is not None:
        settings["release"].pop("weights")
        settings["release"]["tokenizer"].pop("weights")
        settings["release"]["model"].pop("target")  # always LlamaGen's
    shown = {} if captions is None else {"captions": {"sha256": captions.sha256, **captions.config}}
    return {"config": settings, **shown}


def manifest_of(config: SampleConfig, source: Source, captions: TextFeatures | None) -> dict[str, Any]:
    """Everything that decides the samples: settings, and hashes of what is read."""
    hashes = {"weights_sha256": source.weights_sha256, "tokenizer_sha256": source.tokenizer_sha256}
    return _settings_of(config, captions) | hashes


def is_sampled(config: SampleConfig) -> bool:
    """Whether the samples are there, drawn with the present weights."""
    source = config.open_source()
    return SampleSet(source, config.name).holds(manifest_of(config, source, config.open_captions()))


def check_settings(config: SampleConfig) -> None:
    """Raise InputError if a sample set, finished or not, holds samples of other settings, or if a run or captions are
    missing. Nothing is written."""
    samples, wanted = SampleSet(config.open_source(), config.name), _settings_of(config, config.open_captions())
    for directory in (samples.directory, samples.unfinished):
        _refuse_other_settings(directory, wanted)


def sample(config: SampleConfig, preset: SamplingConfig | None = None, source: Source | None = None) -> SampleSet:
    """Draw a sample set, unless it is there, and return it.

    Its directory gets tokens.npy, labels.npy or captions.json, images.npz (ADM's layout, `arr_0`) or
    images/000000.png and on, grid.png, manifest.json (all that decides the samples) and provenance.json (commit,
    versions, machine). Processes must share its file system. `source` is the run or release of `config`, if it is open
    already.

    Settings of a release that differ from its `preset` give a warning: the result compares with no published number.
    After an interruption the same command continues: every batch of tokens and every unit of images is kept as it is
    finished. Samples of other settings are never replaced: InputError names the keys that differ."""
    accelerator = patient_accelerator()
    source = source or config.open_source()
    samples, captions = SampleSet(source, config.name), config.open_captions()
    if accelerator.is_main_process:
        _warn_off_preset(config, preset)
    accelerator.wait_for_everyone()
    manifest = manifest_of(config, source, captions)
    check_agreement(manifest)
    if samples.holds(manifest):
        logger.info("%s holds these samples already", samples.directory)
        return samples
    work = samples.unfinished
    for directory in (samples.directory, work):
        if _refuse_other_settings(directory, manifest) not in (None, manifest):
            logger.warning("%s was drawn from other weights; drawing again", directory)
    from_main(lambda: _make_room(work, source))
    plan = make_plan(config, source, captions)
    with contextlib.ExitStack() as held:
        from_main(lambda: held.enter_context(locked(work)))
        if from_main(lambda: SampleSet(source, config.name).holds(manifest)):  # drawn meanwhile by another process
            from_main(lambda: shutil.rmtree(work, ignore_errors=True))
            return SampleSet(source, config.name)
        from_main(lambda: _prepare(work, manifest, plan))
        _draw_tokens(config, accelerator, plan, work / "tokens")
        accelerator.wait_for_everyone()
        tokens = _join_tokens(work / "tokens", config.num_images, plan.model)
        tokenizer = plan.tokenizer.to(accelerator.device)
        resolution = resolution_of(manifest["config"])
        if config.form != "tokens":
            decode_units(accelerator, tokenizer, tokens, work / "images", config.form, resolution)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            decoded = TokenImages(tokens, tokenizer, resolution)
            _finish(samples.directory, config, work, decoded, plan.conditions)
        accelerator.wait_for_everyone()
    return SampleSet(source, config.name)


def _make_room(work: Path, source: Source) -> None:
    """Create the folder that samples are drawn in; InputError if the run belongs to another user.

    A link in its place is refused: pieces of other settings are removed there, and a run from elsewhere may have it."""
    for place in (work, work / "tokens", work / "images"):
        if place.is_symlink():
            raise InputError(f"expected a folder at {place}, found a link; remove the link")
    try:
        make_folder(work)
    except InputError as error:
        raise InputError(
            f"{error}. Samples are written into the folder of their run; to draw from a run that you may not write "
            f"to, copy {source.directory}"
        ) from error


def _prepare(work: Path, manifest: dict[str, Any], plan: SamplePlan) -> None:
    """Keep the pieces of an unfinished set that are of this manifest and whole; remove the others.

    Raises InputError for a foreign image among them."""
    num_images, model = manifest["config"]["num_images"], plan.model
    if (work / "images").exists():
        check_folder(work / "images", num_images)
    if read_manifest(work) != manifest:
        for part in (work / "tokens", work / "images"):
            shutil.rmtree(part, ignore_errors=True)
        write_json(work / "manifest.json", manifest)
    side = math.isqrt(model.backbone.num_positions) * plan.tokenizer.downsample
    side = resolution_of(manifest["config"]) or side
    tokens, units = _pieces(work / "tokens"), work.glob("images/unit-*.npy")
    units = [file for file in units if re.fullmatch(r"unit-\d{8,}\.npy", file.name)]
    for file in [*tokens, *units, *work.glob("images/[0-9]*.png")]:
        try:
            if file in tokens:
                _read_piece(file, tokens[file], num_images, model)
            else:
                check_piece(file, num_images, side)
        except InputError as error:
            logger.warning("making a piece of the samples again: %s", error)
            file.unlink()


def _refuse_other_settings(directory: Path, manifest: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest in a directory, or None if there is none; InputError if it is of other settings or captions."""
    there = read_manifest(directory)
    if there is None:
        return None
    lines = differences(*(flatten(one["config"] | {"captions": one.get("captions")}) for one in (there, manifest)))
    if lines:
        raise InputError(
            f"{directory} holds samples of other settings:\n{lines}\nChoose another name with SAMPLES=..., or delete "
            f"these with `{removal(directory)}`"
        )
    return there


def _warn_off_preset(config: SampleConfig, preset: SamplingConfig | None) -> None:
    if config.release is None or preset is None:
        return
    used, wanted = asdict(config.sampling), asdict(preset)
    differing = [f"{key} {used[key]} instead of {wanted[key]}" for key in used if used[key] != wanted[key]]
    if config.resolution not in (None, config.release.resolution):
        differing.append(f"resolution {config.resolution} instead of {config.release.resolution}")
    if differing:
        logger.warning(
            "off the preset of %s: %s; the result does not compare with its published numbers",
            config.release.name,
            ", ".join(differing),
        )


def _draw_tokens(config: SampleConfig, accelerator: Accelerator, plan: SamplePlan, folder: Path) -> None:
    """Draw what `folder` does not hold yet, one file a batch."""
    done = np.zeros(config.num_images, bool)
    for rows in _pieces(folder).values():
        done[rows] = True
    missing = np.flatnonzero(~done)
    batches = [missing[start : start + config.batch_size] for start in range(0, len(missing), config.batch_size)]
    batches = [run for batch in batches for run in np.split(batch, np.flatnonzero(np.diff(batch) > 1) + 1)]
    accelerator.wait_for_everyone()  # all have looked before any writes
    mine = batches[accelerator.process_index :: accelerator.num_processes]
    model, device = plan.model.to(accelerator.device), accelerator.device
    if sampling_precision(config.precision) == "bf16":
        model = model.to(torch.bfloat16)
    positions, decisions = model.backbone.num_positions, model.head.num_decisions
    quiet = None if accelerator.is_main_process else True
    bar = tqdm(total=sum(map(len, mine)), desc=f"sample {model.backbone.config.name}", unit="image", disable=quiet)
    for rows in mine:
        condition, mask = plan.conditions.batch(rows)
        mask = None if mask is None else mask.to(device)
        uniforms = image_uniforms(config.seed, rows, positions, decisions)
        drawn = generate(model, condition.to(device), uniforms, config.sampling, mask, config.compile).cpu().numpy()
        with replacing(folder / f"{rows[0]:08d}-{rows[-1] + 1:08d}.npy", is_flushed=False) as temporary:
            save_npy(temporary, drawn)
        bar.update(len(rows))
    plan.model.backbone.end_decoding()
    plan.model.to("cpu")  # the decoder may need the room


def _pieces(folder: Path) -> dict[Path, slice]:
    """The files of drawn tokens, each with the images that its name says."""
    named = {file: re.fullmatch(r"(\d{8,})-(\d{8,})\.npy", file.name) for file in sorted(folder.glob("*.npy"))}
    return {file: slice(int(found[1]), int(found[2])) for file, found in named.items() if found}


def _read_piece(file: Path, rows: slice, num_images: int, model: ARModel) -> np.ndarray:
    """The drawn tokens (B, T) of the images `rows`; InputError if the file holds other rows or unknown tokens."""
    tokens = open_array(file, "i", (len(range(num_images)[rows]), model.backbone.num_positions))
    check_tokens(tokens, model.head.num_tokens, str(file))
    return tokens


def _join_tokens(folder: Path, num_images: int, model: ARModel) -> np.ndarray:
    """The tokens of all batches: (M, T), in the type of codes."""
    tokens = np.zeros((num_images, model.backbone.num_positions), code_type(model.head.num_tokens))
    for file, rows in _pieces(folder).items():
        tokens[rows] = _read_piece(file, rows, num_images, model)
    return tokens


def _finish(
    directory: Path, config: SampleConfig, work: Path, decoded: TokenImages, conditions: Labels | TextFeatures
) -> None:
    """Put the pieces in `work` together at `directory`, and delete `work`."""
    num_shown = min(SHOWN, config.num_images)
    if config.form == "tokens":
        shown = decoded.read(0, num_shown)
    else:
        units = read_units(work / "images", config.form, config.num_images)
        shown = np.concatenate([next(units) for _ in range(-(-num_shown // UNIT))])[:SHOWN]
    with replacing(directory) as temporary:
        temporary.mkdir(parents=True)
        Image.fromarray(image_grid(shown, 8)).save(temporary / "grid.png")
        save_npy(temporary / "tokens.npy", decoded.tokens)
        if isinstance(conditions, TextFeatures):
            write_json(temporary / "captions.json", conditions.captions[: config.num_images])
        else:
            save_npy(temporary / "labels.npy", conditions.labels)
        write_json(temporary / "manifest.json", read_manifest(work))
        write_json(temporary / "provenance.json", provenance())
        if config.form == "npz":
            join_npz(work / "images", config.num_images, temporary / "images.npz")
        elif config.form == "png":
            check_folder(work / "images", config.num_images)
            remove_leftovers(work / "images")
            (work / "images").rename(temporary / "images")
    shutil.rmtree(work, ignore_errors=True)  # a network disk may keep the open file of the lock
