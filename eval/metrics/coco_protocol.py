"""The COCO-30k protocol: captions of the samples, reference images, and the crop of both.

There is no agreed "COCO FID". The numbers of one model change with the split, the captions, the references (all images
of val2014, or the images of the captions), the crop and the resize. All of them go into every result. LlamaGen's crop
follows its evaluations/t2i/evaluation.py (ce98ec4); its captions are a table without image ids."""

import csv
import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from masc.layout import captions_file
from masc.runtime.captions import CAPTIONS_AT_MOST, TABLES, read_lines
from masc.runtime.errors import InputError, MissingArtifact
from masc.runtime.files import hash_file, write_json, write_text
from masc.runtime.reading import Damaged, check_json, read_json, read_text, reason
from masc.runtime.streams import Purpose, random_stream
from metrics.evaluators import TF1_BILINEAR
from metrics.protocol import ProtocolConfig
from metrics.streams import FirstImages, Images
from vq.crops import center_crop
from vq.readers.coco import find_annotations, load_coco, read_annotations
from vq.readers.stored import CroppedPixels, StoredImages

FORMAT, VERSION = "masc-coco-captions", 1
PAIRINGS = ("all", "paired")


def lanczos_crop(image: Image.Image, size: int) -> np.ndarray:
    """LlamaGen's crop: the largest centre square, resized by Lanczos to (S, S, 3) uint8."""
    side = min(image.size)
    left, top = (round((length - side) / 2) for length in image.size)  # to even, as torchvision rounds
    square = image.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((size, size), Image.Resampling.LANCZOS))


# Neither changes an image that already has the size.
CROPS: dict[str, Callable[[Image.Image, int], np.ndarray]] = {"adm": center_crop, "lanczos": lanczos_crop}


@dataclass(kw_only=True)
class CocoProtocolConfig(ProtocolConfig):
    """A protocol with references made from COCO's images."""

    reference: str = "COCO's images, which make eval-coco reads"
    num_images: int = 30_000
    size: int = 256  # pixels a side, of references and samples
    crop: str = "adm"  # one of CROPS
    pairing: str = "all"  # references: `all` images of the split, or `paired`: only the images of the captions
    clip_score: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.crop not in CROPS:
            raise ValueError(f"protocol.crop must be one of {', '.join(CROPS)}, not {self.crop!r}")
        if self.pairing not in PAIRINGS:
            raise ValueError(f"protocol.pairing must be one of {', '.join(PAIRINGS)}, not {self.pairing!r}")
        if self.size < 8:
            raise ValueError(f"protocol.size must be at least 8 pixels, found {self.size}")

    @property
    def preparation(self) -> tuple[Any, ...]:
        return self.crop, self.size

    def prepare(self, images: Images) -> Images:
        return CroppedImages(images, len(images), self.size, self.crop)

    @property
    def about_reference(self) -> dict[str, Any]:
        return {"reference_images": self.pairing}

    def reference_name(self, split: str, ids_sha256: str | None) -> str:
        """The name of the reference: size, split, pairing, and crop and resize where they are not the default."""
        paired = f"-paired-{ids_sha256[:8]}" if self.pairing == "paired" else ""
        crop = "" if self.crop == "adm" else f"-{self.crop}"
        resize = "" if self.resize == TF1_BILINEAR else f"-{self.resize}"
        return f"coco{self.size}-{split}{paired}{crop}{resize}"


@dataclass(frozen=True)
class CaptionList:
    """M captions; sample i shows caption i. The ids (M,) are None if the file has none."""

    texts: list[str]
    image_ids: list[int] | None = None
    caption_ids: list[int] | None = None
    about: dict[str, Any] | None = None  # split, seed and source of the selection

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def sha256(self) -> str:
        """SHA-256 of the texts and image ids; equal to `captions_sha256` of text features made from them."""
        images = None if self.image_ids is None else list(map(str, self.image_ids))
        return hashlib.sha256(json.dumps({"texts": self.texts, "images": images}).encode()).hexdigest()

    @property
    def ids(self) -> str:
        """One line `image_id caption_id` for each caption."""
        return "".join(f"{image} {own}\n" for image, own in zip(self.image_ids, self.caption_ids, strict=True))

    @property
    def ids_sha256(self) -> str | None:
        """SHA-256 of the lines of `ids`, or None without ids."""
        return None if self.image_ids is None else hashlib.sha256(self.ids.encode()).hexdigest()

    def first(self, count: int) -> "CaptionList":
        """The captions of the first `count` samples."""
        images, own = (None if ids is None else ids[:count] for ids in (self.image_ids, self.caption_ids))
        return CaptionList(self.texts[:count], images, own, self.about)

    @property
    def protocol(self) -> dict[str, Any]:
        """Metadata of the selection."""
        chosen = "in order, without image ids: paired with samples by place alone"
        if self.about is not None:
            chosen = f"{self.about['split']}, one caption an image, seed {self.about['seed']}"
        known = {"captions": chosen, "captions_sha256": self.sha256, "ids_sha256": self.ids_sha256}
        return {key: value for key, value in known.items() if value is not None}


def choose_captions(root: Path, split: str, num_images: int, seed: int) -> CaptionList:
    """One caption for each of `num_images` images of a split, drawn by `seed`, in the order of the image ids.

    The order of the annotations does not matter. Raises InputError if they are missing or cover fewer images."""
    if not Path(root).is_dir():
        raise InputError(f"no folder {root}; name the folder of COCO with DATA_PATH=FOLDER")
    file = find_annotations(Path(root), split)
    _, captions = read_annotations(file)
    if not 1 <= num_images <= len(captions):
        raise InputError(
            f"{num_images:,} images were requested, but {file} has captions of {len(captions):,}; set num_images"
        )
    rng = random_stream(seed, Purpose.COCO_CAPTIONS)
    ids = sorted(captions)
    order, draws = rng.permutation(len(ids)), rng.random(len(ids))
    rows = np.sort(order[:num_images])  # a smaller selection is a part of a larger one
    chosen = [ids[row] for row in rows]
    kept = [captions[ids[row]][int(draws[row] * len(captions[ids[row]]))] for row in rows]
    return CaptionList(
        [_one_line(text) for _, text in kept],
        chosen,
        [own for own, _ in kept],
        {"split": split, "seed": seed, "annotations_sha256": hash_file(file)},
    )


def _one_line(text: str) -> str:
    return " ".join(text.splitlines()).strip()


def choice_file(artifacts: Path, split: str, num_images: int, seed: int) -> Path:
    """Path of a selection of captions."""
    return captions_file(artifacts, f"captions_{split}-{num_images}-seed{seed}.json")


def save_captions(path: Path, captions: CaptionList) -> None:
    """Write a selection in COCO's own format, which `make text-features` reads, and its ids as lines beside it.

    `id` is the position, because readers sort by it; the annotation's own id is `caption_id`."""
    write_text(path.with_suffix(".ids.txt"), captions.ids)
    header = {"format": FORMAT, "version": VERSION, **captions.protocol, **captions.about}
    rows = zip(captions.image_ids, captions.caption_ids, captions.texts, strict=True)
    annotations = [
        {"id": place, "image_id": image, "caption_id": own, "caption": text}
        for place, (image, own, text) in enumerate(rows)
    ]
    write_json(path, {"info": header, "annotations": annotations})


def load_captions(path: Path) -> CaptionList:
    """Captions in the order of the samples: a selection (.json), one a line (.txt), or LlamaGen's table (.csv, .tsv).

    Raises InputError if there are none, if a line is blank, if a selection was altered, or if the file holds all of
    COCO's annotations."""
    path = Path(path)
    if not path.is_file():
        raise _missing_choice(path, f"no captions at {path}")
    try:
        suffix = path.suffix.lower()
        if suffix == ".json":
            return _load_choice(path)
        return CaptionList([text.strip() for text in read_table(path)] if suffix in TABLES else read_lines(path))
    except (Damaged, csv.Error) as error:
        raise _missing_choice(path, f"cannot read the captions of {path} ({reason(error)})") from error


def _missing_choice(path: Path, problem: str, remove: bool = False) -> MissingArtifact:
    return MissingArtifact("captions", path, problem, remove=remove, overrides={"coco": "FOLDER"})


def read_table(path: Path) -> list[str]:
    """The captions of LlamaGen's coco_captions.csv: a line `Prompt`, then one caption a row.

    Read as LlamaGen reads it: with tabs between columns and csv's rule for quotation marks, which removes them from
    one row ('"Head shot" of a zebra ...')."""
    rows = list(csv.reader(io.StringIO(read_text(path).removeprefix("\ufeff"), newline=""), delimiter="\t"))
    if len(rows) < 2 or rows[0] != ["Prompt"]:
        raise InputError(f"expected a line `Prompt` and then one caption a line in {path}, found {str(rows[:1])[:100]}")
    odd = [number for number, row in enumerate(rows[1:], 1) if len(row) != 1 or not row[0].strip()]
    if odd:
        raise InputError(
            f"row {odd[0]} of {path} holds no caption, or several, as do {len(odd) - 1} others; image i shows caption "
            "i, so write one on every line"
        )
    broken = [number for number, (text,) in enumerate(rows[1:], 1) if "\n" in text or "\r" in text]
    if broken:
        raise InputError(
            f"caption {broken[0]} of {path} spans several lines: its opening quotation mark is never closed. "
            "Image i shows caption i, so write every caption on one line"
        )
    return [row[0] for row in rows[1:]]


@dataclass(frozen=True)
class _Chosen:
    image_id: int
    caption_id: int
    caption: str


@dataclass(frozen=True)
class _Info:
    format: str
    version: int
    split: str
    seed: int
    annotations_sha256: str
    captions_sha256: str
    ids_sha256: str


@dataclass(frozen=True)
class _Choice:
    info: _Info
    annotations: list[_Chosen]


def _load_choice(path: Path) -> CaptionList:
    content = read_json(path, at_most=CAPTIONS_AT_MOST)
    about = content.get("info")
    if not isinstance(about, dict) or (about.get("format"), about.get("version")) != (FORMAT, VERSION):
        raise _missing_choice(
            path,
            f"{path} is no selection of captions (one an image, in the order of the samples); if it is COCO's own "
            "file, choose from it",
        )
    choice = check_json(content, _Choice, path)
    info, rows = choice.info, choice.annotations
    found = CaptionList(
        [row.caption for row in rows],
        [row.image_id for row in rows],
        [row.caption_id for row in rows],
        {"split": info.split, "seed": info.seed, "annotations_sha256": info.annotations_sha256},
    )
    if (found.sha256, found.ids_sha256) != (info.captions_sha256, info.ids_sha256):
        raise _missing_choice(path, f"{path} does not match its own SHA-256", remove=True)
    return found


def coco_source(root: Path, split: str, size: int, crop: str, image_ids: list[int] | None = None) -> StoredImages:
    """COCO's images of a split, or the images of `image_ids` in that order, as references: (M, S, S, 3) when indexed.

    Raises InputError if one of `image_ids` is missing."""
    source = load_coco(Path(root), split, size)
    rows = np.arange(len(source))
    if image_ids is not None:
        row_of = {caption["image_id"]: row for row, caption in enumerate(source.captions)}
        lost = [image_id for image_id in image_ids if image_id not in row_of]
        if lost:
            raise InputError(
                f"{len(lost)} images of the captions, image {lost[0]} first, are not among the images of {split} in "
                f"{root}: the captions were chosen from another split or year, or the images are incomplete"
            )
        rows = np.array([row_of[image_id] for image_id in image_ids])
    members = source.members.take(rows)
    return replace(
        source,
        pixels=CroppedPixels(members, size, CROPS[crop]),
        labels=source.labels[rows],
        groups=np.arange(len(rows)),
        keys=members.names,
        captions=tuple(source.captions[row] for row in rows),
        members=members,
    )


class CroppedImages(FirstImages):
    """The first images of a set, cropped like the references. Images of the right size stay unchanged."""

    def __init__(self, images: Images, count: int, size: int, crop: str):
        super().__init__(images, count)
        self.size, self.crop = size, crop

    def read(self, start: int, stop: int) -> np.ndarray:
        batch = super().read(start, stop)
        if batch.shape[1:3] == (self.size, self.size):
            return batch
        return np.stack([CROPS[self.crop](Image.fromarray(image), self.size) for image in batch])


def describe(protocol: dict[str, Any]) -> str:
    """The protocol of a COCO result in words: split, counts, references, crop, resize."""
    crop = f"{protocol['crop']} crop to {protocol['image_size']}"
    if "reference" not in protocol:
        extra = f"text {protocol['text']!r}" if "text" in protocol else f"{protocol['resize']}"
        return f"{protocol['num_images']:,} samples for captions of {protocol['captions']}; {crop}, {extra}"
    references = "the paired" if protocol["reference_images"] == "paired" else "all"
    return (
        f"{protocol['num_images']:,} samples against {references} {protocol['reference_size']:,} images of "
        f"{protocol['reference_split']}; {crop}, {protocol['resize']} to 299"
    )
