"""`make eval-text`: whether a text model's likelihood knows captions from one another, on held-out images.

Two questions. Does its own caption make an image more probable than another image's caption, than one of its class, or
than the null caption of guidance? And does the likelihood retrieve: is an image's own caption the best of a gallery of
captions, and a caption's own image the best of a gallery of images? A gallery has as many images as captions, so all
its pairs are measured once.

Shapes: M images, Q images of a gallery, P positions of a caption, C its width."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from torch import Tensor
from tqdm import tqdm

from llamagen.conditions.captions import clean_caption
from llamagen.conditions.images import ImageCaptions
from llamagen.evaluation.saved import holds
from llamagen.runs import Run
from llamagen.training.likelihood import image_nats
from masc.runtime.codes import Codes
from masc.runtime.device import build_accelerator
from masc.runtime.errors import InputError
from masc.runtime.streams import Purpose, random_stream
from metrics.results import Results, row
from metrics.retrieval import recall_row

FILE = "text.json"
GALLERIES = 3  # at most
KS = (1, 5)


@dataclass(kw_only=True)
class EvalTextConfig:
    """A run of a text model, and the size of its galleries."""

    run: str  # its directory
    candidates: int = 50  # Q

    def __post_init__(self) -> None:
        if self.candidates < 2:
            raise ValueError(f"candidates must be 2 or more, found {self.candidates}")


@dataclass(frozen=True)
class Pairs:
    """Pairs of an image and the caption of an image: codes and conditions of a likelihood, by the row of the pair."""

    codes: Codes
    captions: ImageCaptions
    images: np.ndarray  # rows of the codes
    shown: np.ndarray  # rows of the images whose captions are shown
    null: Tensor | None = None  # (P, C), shown in the place of every caption, at its positions

    @property
    def num_images(self) -> int:
        return len(self.images)

    def read(self, rows: np.ndarray, views: np.ndarray | int) -> np.ndarray:
        """The tokens of the pairs `rows`, as `Codes.read`."""
        return self.codes.read(self.images[rows], views)

    def batch(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """The captions of the pairs `rows`: features (B, P, C), mask (B, P)."""
        features, mask = self.captions.batch(self.shown[rows])
        return (features if self.null is None else self.null.to(features.dtype).expand_as(features)), mask


def texts_of(captions: ImageCaptions) -> list[str]:
    """The first caption of each image, as the encoder reads it."""
    return [clean_caption(captions.features.captions[place]) for place in captions.starts]


def others(texts: list[str], labels: np.ndarray | None = None) -> np.ndarray:
    """For each image another one, whose caption is shown to it: the next in a random order with another text (M,), and
    of the same class if `labels` (M,) are given; -1 where there is none.

    Raises InputError if no image has another."""
    order = random_stream(0, Purpose.OTHER_CAPTIONS).permutation(len(texts))
    kinds = np.zeros(len(texts), np.int64) if labels is None else labels
    found = np.full(len(texts), -1)
    for place, image in enumerate(order):
        fitting = (other for other in np.roll(order, -place - 1) if kinds[other] == kinds[image])
        found[image] = next((other for other in fitting if texts[other] != texts[image]), -1)
    if (found < 0).all():
        raise InputError(
            f"expected held-out images with different captions{'' if labels is None else ' in a class'}, found "
            f"{len(texts)} with {texts[:1]}"
        )
    return found


def draw_galleries(texts: list[str], candidates: int) -> list[np.ndarray]:
    """Up to GALLERIES disjoint sets of `candidates` images (Q,), drawn at random; of images with one text only one is
    drawn, because no likelihood could tell their captions apart. Raises InputError if there are too few."""
    order = random_stream(0, Purpose.GALLERIES).permutation(len(texts))
    first: dict[str, int] = {}
    for image in order:
        first.setdefault(texts[image], int(image))
    images = np.array(list(first.values()))
    if len(images) < candidates:
        raise InputError(
            f"expected {candidates} held-out images with captions of their own, found {len(images)}; set "
            f"candidates={len(images)}"
        )
    count = min(GALLERIES, len(images) // candidates)
    return [images[start : start + candidates] for start in range(0, count * candidates, candidates)]


def _open(config: EvalTextConfig) -> tuple[Run, Codes, ImageCaptions]:
    """The run, its held-out codes and their captions; InputError unless it is a run on captions with a null caption."""
    run = Run(Path(config.run))
    model = run.config.model
    if model.condition != "text" or not model.class_dropout:
        raise InputError(
            f"expected a run on captions with a null caption at {run.directory}, found {model.name} with "
            f"model.condition={model.condition} model.class_dropout={model.class_dropout}; train a text model such as "
            "llamagen-tiny-text"
        )
    return run, run.inputs.held_out, run.inputs.conditions["val"]


def _about(config: EvalTextConfig, run: Run, codes: Codes, captions: ImageCaptions) -> dict[str, Any]:
    """Settings and hashes that the results must carry."""
    return {
        "images": f"{run.config.data.name} val, first view",
        "num_images": codes.num_images,
        "candidates": config.candidates,
        "codes_sha256": codes.sha256,
        "captions_sha256": captions.features.sha256,
        "weights_sha256": run.weights_sha256,
    }


def is_evaluated(config: EvalTextConfig) -> bool:
    """Whether the run has results for its present weights, images and captions."""
    run, *found = _open(config)
    return holds(run.directory / "eval" / FILE, _about(config, run, *found))


def evaluate_text(config: EvalTextConfig) -> Path:
    """Write eval/text.json of a run, unless it is there, and return the file."""
    run, codes, captions = _open(config)
    path, about = run.directory / "eval" / FILE, _about(config, run, codes, captions)
    if not holds(path, about):
        Results(measure(run, codes, captions, about)).save(path)
    return path


def measure(run: Run, codes: Codes, captions: ImageCaptions, about: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows: nats per token under three captions, the gains between them, and recall in galleries."""
    texts = texts_of(captions)
    galleries, own = draw_galleries(texts, about["candidates"]), np.arange(codes.num_images)
    accelerator, model = build_accelerator(), run.load_model()
    model.to(accelerator.device)
    null = model.backbone.null(captions.batch(own[:1])[0].to(accelerator.device))[0].cpu()

    def nats(images: np.ndarray, shown: np.ndarray, null: Tensor | None = None) -> np.ndarray:
        pairs = Pairs(codes, captions, images, shown, null)
        return image_nats(accelerator, model, pairs, pairs).double().sum(1).cpu().numpy()

    other, of_class = others(texts), others(texts, codes.labels)
    shown = {"own caption": own, "another's caption": other, "a caption of its class": of_class, "null caption": own}
    found = {
        name: np.where(rows < 0, np.nan, nats(own, rows, null if name == "null caption" else None))
        for name, rows in shown.items()
    }
    by_image = {name: values / codes.num_positions for name, values in found.items()}
    rows = [_likelihood(name, values, about) for name, values in by_image.items()]
    rows += [_gain(name, by_image[name] - by_image["own caption"], about) for name in list(shown)[1:]]
    by_picture, by_caption, over_null = [], [], []
    for gallery in tqdm(galleries, desc="retrieval", unit="gallery"):
        size = len(gallery)
        pairs = nats(np.repeat(gallery, size), np.tile(gallery, size)).reshape(size, size)
        by_picture.append(-pairs)
        by_caption.append(-pairs.T)
        over_null.append((found["null caption"][gallery][:, None] - pairs).T)
    for k in KS:
        rows.append(recall_row(k, "captions by image", by_picture, about))
        rows.append(recall_row(k, "images by caption", by_caption, about))
        rows.append(recall_row(k, "images by caption, over the null caption", over_null, about))
    return rows


def _likelihood(name: str, values: np.ndarray, about: dict[str, Any]) -> dict[str, Any]:
    """The row of nats per token by image (M,); those that are NaN are left out."""
    known = values[np.isfinite(values)]
    protocol = about | {"num_images": len(known), "standard_error_over_images": float(stats.sem(known))}
    return row(f"held-out nats per token, {name}", float(known.mean()), protocol)


def _gain(name: str, differences: np.ndarray, about: dict[str, Any]) -> dict[str, Any]:
    """The row of a mean difference to the own caption in nats per token, paired by image (M,), with Student's interval
    over images; those that are NaN are left out."""
    known = differences[np.isfinite(differences)]
    interval = stats.ttest_1samp(known, 0).confidence_interval(0.95)
    between = {"low": float(interval.low), "high": float(interval.high), "level": 0.95, "method": "Student's t"}
    return row(f"gain over {name}", float(known.mean()), about | {"num_images": len(known)}, between)
