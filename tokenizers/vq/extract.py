"""From images to packed codes, and from a tokenizer to its codebook."""

import contextlib
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from masc.artifacts import Codebook, InputError, hash_file, reuse_npz
from masc.codes import load_codes, save_codes
from masc.run import plain
from vq.autoencoder import ConvVQ
from vq.images import ImageSource, to_tensor


def save_codebook(model: ConvVQ, weights: Path, path: Path) -> Codebook:
    """The effective codebook of the tokenizer stored at `weights`, written to `path` unless it is there."""
    config, parents = plain(model.config), {"tokenizer": hash_file(weights)}
    found = reuse_npz(path, "codebook", Codebook.VERSION, config, parents)
    if found is not None:
        return Codebook(found[0]["vectors"], found[1])
    return Codebook.save(path, model.codebook.detach().float().cpu().numpy(), config, parents)


@torch.no_grad()
def extract_codes(
    model: ConvVQ, source: ImageSource, flip: bool, codebook: Codebook, path: Path, batch_size: int = 128
) -> None:
    """Write the codes of every image of a source, the picture and, with `flip`, its mirror image, unless
    they are there. The same codes whatever the batch size."""
    if source.pixels.shape[1] != model.config.resolution:
        raise InputError(
            f"the images of {source.name} have {source.pixels.shape[1]} pixels a side, the tokenizer "
            f"{model.config.name} takes {model.config.resolution}; choose DATA and TOKENIZER that agree"
        )
    config = {
        "source": source.name,
        "split": source.split,
        "flip": flip,
        "images_sha256": source.sha256,
        "tokenizer": plain(model.config),
        "tokenizer_sha256": codebook.meta.parents["tokenizer"],
    }
    with contextlib.suppress(InputError):
        found = load_codes(path, codebook.meta.sha256, make="")
        if found.config == config and np.array_equal(found.labels, source.labels):
            return
    device = next(model.parameters()).device
    tokens = []
    for start in tqdm(range(0, len(source), batch_size), desc=f"codes {source.split}", disable=None):
        images = to_tensor(source.pixels[start : start + batch_size]).to(device)
        views = [images, images.flip(-1)] if flip else [images]
        tokens.append(torch.stack([model.encode(view) for view in views], dim=1).cpu().numpy())
    save_codes(
        path,
        np.concatenate(tokens),
        source.labels,
        source.groups,
        list(source.class_names),
        list(source.captions),
        codebook.num_tokens,
        codebook.meta.sha256,
        config,
    )
