"""Images decoded from drawn tokens: in fixed units, written one by one, joined at the end.

An image is always decoded in one batch with the same fifteen others, whatever the batch of the sampler or the number of
processes, so its pixels depend on the tokens alone. Only a unit of images is in memory at a time."""

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from masc.runtime.errors import InputError
from masc.runtime.files import replacing
from masc.runtime.npy import save_npy, write_npy
from masc.runtime.reading import open_array, read_bytes
from vq.interface import Tokenizer
from vq.pixels import to_uint8
from vq.readers.members import is_archive, is_image, list_folder
from vq.readers.stored import decoding, parse_image

UNIT = 16  # images decoded together


def finish(images: Tensor, resolution: int | None) -> np.ndarray:
    """Decoded images (B, 3, S, S) -> images (B, R, R, 3) uint8.

    Another resolution R comes from bicubic interpolation without antialiasing, before the rounding to uint8
    (FoundationVision/LlamaGen ce98ec4, autoregressive/sample/sample_c2i_ddp.py)."""
    if resolution is not None and images.shape[-1] != resolution:
        images = F.interpolate(images, size=(resolution, resolution), mode="bicubic")
    return to_uint8(images)


def unit_starts(num_images: int) -> range:
    return range(0, num_images, UNIT)


@torch.inference_mode()
def decode_unit(tokenizer: Tokenizer, tokens: np.ndarray, resolution: int | None, device: torch.device) -> np.ndarray:
    """Up to UNIT code grids (B, T) -> images (B, R, R, 3) uint8. A short unit is filled up with its last grid."""
    filled = np.concatenate([tokens, np.repeat(tokens[-1:], UNIT - len(tokens), axis=0)])
    images = tokenizer.decode(torch.from_numpy(filled.astype(np.int64)).to(device))
    return finish(images, resolution)[: len(tokens)]


def decode_units(
    accelerator: Accelerator, tokenizer: Tokenizer, tokens: np.ndarray, folder: Path, form: str, resolution: int | None
) -> None:
    """Decode tokens (M, T) into `folder`: one PNG an image, or one .npy a unit.

    Units that are there are kept; processes share the others."""
    waiting = [start for start in unit_starts(len(tokens)) if not _is_done(folder, form, start, len(tokens))]
    accelerator.wait_for_everyone()  # every process looks before one writes, so that all share the same units
    mine = waiting[accelerator.process_index :: accelerator.num_processes]
    for start in tqdm(mine, desc="decode", unit="unit", disable=None if accelerator.is_main_process else True):
        images = decode_unit(tokenizer, tokens[start : start + UNIT], resolution, accelerator.device)
        if form == "png":
            for index, image in enumerate(images, start):
                with replacing(png_path(folder, index, len(tokens)), is_flushed=False) as temporary:
                    Image.fromarray(image).save(temporary, format="PNG")
        else:
            with replacing(_unit_path(folder, start), is_flushed=False) as temporary:
                save_npy(temporary, images)


def png_path(folder: Path, index: int, num_images: int) -> Path:
    """The file of an image of a set of `num_images`. The names have one width, so their order is that of the images."""
    return folder / f"{index:0{max(6, len(str(num_images - 1)))}d}.png"


def _unit_path(folder: Path, start: int) -> Path:
    return folder / f"unit-{start:08d}.npy"


def _is_done(folder: Path, form: str, start: int, num_images: int) -> bool:
    if form == "npz":
        return _unit_path(folder, start).exists()
    return all(png_path(folder, index, num_images).exists() for index in range(start, min(start + UNIT, num_images)))


def read_units(folder: Path, form: str, num_images: int) -> Iterator[np.ndarray]:
    """The images of a folder in order, a unit (B, R, R, 3) at a time."""
    for start in unit_starts(num_images):
        if form == "npz":
            yield open_array(_unit_path(folder, start), "u", (None, None, None, 3))
            continue
        files = [png_path(folder, index, num_images) for index in range(start, min(start + UNIT, num_images))]
        yield np.stack([np.asarray(parse_image(read_bytes(file))) for file in files])


def check_piece(file: Path, num_images: int, side: int) -> None:
    """Raise InputError unless a file of an unfinished set holds the images of its name, `side` pixels a side, whole."""
    if file.suffix == ".npy":
        start = int(file.stem.removeprefix("unit-"))
        open_array(file, "u", (len(range(num_images)[start : start + UNIT]), side, side, 3), mapped=True)
        return
    with decoding(str(file)), parse_image(read_bytes(file)) as image:
        if (image.format, image.mode, image.size) != ("PNG", "RGB", (side, side)):
            raise ValueError(f"expected a PNG of {side} x {side} pixels in RGB")
        image.verify()  # the checksums of all its parts


def check_folder(folder: Path, num_images: int) -> None:
    """Raise InputError if a folder holds an image or archive that is none of the PNG files of a set of `num_images`.

    Readers of the set would count the image, and would stop at the archive."""
    own = {png_path(folder, index, num_images).name for index in range(num_images)}
    for name in list_folder(folder).names:
        if (is_image(name) or is_archive(name)) and name not in own:
            raise InputError(f"expected only images of these samples in {folder}, found {name}; move it away")


def join_npz(folder: Path, num_images: int, path: Path) -> None:
    """Write the units of a folder in ADM's layout: one array `arr_0` (M, R, R, 3) uint8 in an .npz."""
    with (
        replacing(path) as temporary,
        zipfile.ZipFile(temporary, "w") as archive,
        archive.open("arr_0.npy", "w", force_zip64=True) as file,
    ):
        write_npy(file, read_units(folder, "npz", num_images), num_images, str(path))
