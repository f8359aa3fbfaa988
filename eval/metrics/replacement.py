"""Semantic Replacement Test (MASC, Sec. 4): does swapping tokens within their clusters change the image?

Shapes: M images, T positions, H x W pixels."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from masc.runtime.streams import Purpose, random_stream
from masc.tree import Partition
from metrics.fidelity import Comparison, ImageSet, Judges
from metrics.results import row
from metrics.streams import Images, read_batches
from vq.interface import Tokenizer
from vq.pixels import decode_pixels, encode_pixels, image_grid

BATCH = 64
GRID_WIDTH, MOST_SHOWN = 2048, 24  # pixels and images a row


@dataclass(frozen=True)
class TreeCut:
    """A partition of the tokens: the cut of a tree at K."""

    tree: str
    num_clusters: int
    partition: Partition


def draws(seed: int) -> np.random.Generator:
    """The random numbers of a test, equal for every partition."""
    return random_stream(seed, Purpose.REPLACEMENT)


def replace_tokens(tokens: np.ndarray, partition: Partition, rng: np.random.Generator) -> np.ndarray:
    """Replace every token by a uniformly drawn member of its cluster, which may be the token itself: (M, T) -> (M, T).

    Draws M T numbers from `rng` in order, so that the batch size does not change the result."""
    cluster = partition.cluster_of[tokens]
    draw = rng.random(tokens.shape)
    return partition.members[partition.offsets[cluster] + (draw * partition.sizes[cluster]).astype(np.int64)]


def measure_replacement(
    model: Tokenizer,
    images: Images,
    cuts: list[TreeCut],
    seeds: list[int],
    judges: Judges,
    source: dict[str, Any],
    batch_size: int = BATCH,
) -> list[dict[str, Any]]:
    """Results of each cut against the plain reconstructions: tree, K, largest cluster and rows of metrics.

    A value is the mean over seeds; its protocol holds `sd_over_seeds` and `by_seed`. Every image is decoded and
    compared once for each cut and seed; no image is kept."""
    plain = ImageSet(judges)
    found = {
        (place, seed): (cut.partition, draws(seed), Comparison(judges))
        for place, cut in enumerate(cuts)
        for seed in seeds
    }
    total = len(images) * (1 + len(found))
    with tqdm(total=total, desc="replacement test", unit="image", disable=None) as bar:
        for _, pixels in read_batches(images, range(0, len(images), batch_size), batch_size):
            tokens = encode_pixels(model, pixels)
            reconstruction = decode_pixels(model, tokens)
            plain.add(reconstruction)
            bar.update(len(pixels))
            for partition, rng, comparison in found.values():
                comparison.add(decode_pixels(model, replace_tokens(tokens, partition, rng)), reconstruction)
                bar.update(len(pixels))
    originals = plain.gaussians()
    common = {**source, "num_images": len(images), "seeds": seeds, "against": "plain reconstruction"}
    results = []
    for place, cut in enumerate(cuts):
        by_seed = [found[place, seed][2].values(originals) for seed in seeds]
        protocol = {**common, "tree": cut.tree, "K": cut.num_clusters}
        results.append(
            {
                "tree": cut.tree,
                "K": cut.num_clusters,
                "largest_cluster": int(cut.partition.sizes.max()),
                "metrics": [_over_seeds(metric, by_seed, protocol, judges) for metric in by_seed[0]],
            }
        )
    return results


def _over_seeds(
    metric: str, by_seed: list[dict[str, float]], protocol: dict[str, Any], judges: Judges
) -> dict[str, Any]:
    values = [found[metric] for found in by_seed]
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
    over = {"sd_over_seeds": spread, "by_seed": values}
    return row(metric, float(np.mean(values)), {**protocol, **judges.protocol(metric), **over})


def shown_images(model: Tokenizer, originals: np.ndarray, cuts: list[TreeCut], seed: int) -> dict[str, np.ndarray]:
    """The rows of the paper's Figure 4 by label: originals, reconstructions, and the replaced images of each cut."""
    tokens = encode_pixels(model, originals)
    rows = {"original": originals, "reconstruction": decode_pixels(model, tokens)}
    for cut in cuts:
        replaced = replace_tokens(tokens, cut.partition, draws(seed))
        rows[f"{cut.tree} K={cut.num_clusters}"] = decode_pixels(model, replaced)
    return rows


def num_shown(side: int) -> int:
    """How many images of `side` pixels a row of the grid holds."""
    return max(4, min(MOST_SHOWN, GRID_WIDTH // side))


def labelled_grid(rows: dict[str, np.ndarray]) -> Image.Image:
    """A sheet of rows of images (M, H, W, 3) uint8 with labels at the left. Small images are enlarged."""
    scale = max(1, 64 // next(iter(rows.values())).shape[1])
    strips = {
        label: image_grid(row.repeat(scale, axis=1).repeat(scale, axis=2), len(row)) for label, row in rows.items()
    }
    font = ImageFont.load_default(size=14)
    margin = int(max(font.getlength(label) for label in strips)) + 16
    height, width = next(iter(strips.values())).shape[:2]
    sheet = Image.new("RGB", (margin + width, height * len(strips)), "white")
    pen = ImageDraw.Draw(sheet)
    for place, (label, strip) in enumerate(strips.items()):
        sheet.paste(Image.fromarray(strip), (margin, place * height))
        pen.text((8, place * height + height / 2), label, fill="black", font=font, anchor="lm")
    return sheet
