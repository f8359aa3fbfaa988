"""From images to packed codes, and from a tokenizer to its codebook."""

from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from masc.artifacts import Codebook, hash_file
from masc.codes import save_codes
from masc.run import plain
from vq.autoencoder import ConvVQ
from vq.images import ImageSource, to_tensor


def save_codebook(model: ConvVQ, weights: Path, path: Path) -> Codebook:
    """Write the effective codebook of the tokenizer stored at `weights`."""
    vectors = model.codebook.detach().float().cpu().numpy()
    return Codebook.save(path, vectors, plain(model.config), {"tokenizer": hash_file(weights)})


@torch.no_grad()
def extract_codes(
    model: ConvVQ, source: ImageSource, flip: bool, codebook: Codebook, path: Path, batch_size: int = 128
) -> None:
    """Write the codes of every image of a source: the picture and, with `flip`, its mirror image.

    The same codes whatever the batch size; about 2 ms an image and view on one CPU core at 32 x 32."""
    device = next(model.parameters()).device
    tokens = []
    for start in tqdm(range(0, len(source), batch_size), desc=f"codes {source.split}", disable=None):
        images = to_tensor(source.pixels[start : start + batch_size]).to(device)
        views = [images, images.flip(-1)] if flip else [images]
        tokens.append(torch.stack([model.encode(view) for view in views], dim=1).cpu().numpy())
    config = {"source": source.name, "split": source.split, "flip": flip, "tokenizer": plain(model.config)}
    save_codes(
        path,
        np.concatenate(tokens),
        source.labels,
        source.groups,
        list(source.class_names),
        codebook.num_tokens,
        codebook.meta.sha256,
        config,
    )
