"""COCO-30k: which captions are shown, which pictures the samples are compared with, and how both are cropped.

There is no agreed "COCO FID": numbers of the same model differ with the split, the choice of captions, the references
(all pictures of val2014, or those whose captions were shown), the crop and the resize. Each of them is named here, and
goes into every result. LlamaGen's crop is that of its evaluations/t2i/evaluation.py (ce98ec4); its captions are a table
without image ids."""

import csv
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from masc.layout import captions_file
from masc.runtime.artifacts import InputError, MissingArtifact, hash_file, write_json, write_text
from masc.runtime.streams import Purpose, random_stream
from metrics.evaluators import TF1_BILINEAR
from metrics.protocol import ProtocolConfig
from metrics.streams import FirstPictures, Pictures
from vq.crops import center_crop
from vq.readers.coco import find_annotations, load_coco, read_annotations
from vq.readers.stored import CroppedPixels, StoredImages

FORMAT, VERSION = "masc-coco-captions", 1
PAIRINGS = ("all", "paired")


def lanczos_crop(picture: Image.Image, size: int) -> np.ndarray:
    """LlamaGen's: the centre square of the shorter side's length, then Lanczos to (S, S, 3) uint8."""
    side = min(picture.size)
    left, top = (round((length - side) / 2) for length in picture.size)  # to even, as torchvision rounds
    square = picture.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((size, size), Image.Resampling.LANCZOS))


# A picture that has the size already stays as it is under either.
CROPS: dict[str, Callable[[Image.Image, int], np.ndarray]] = {"adm": center_crop, "lanczos": lanczos_crop}


@dataclass(kw_only=True)
class CocoProtocolConfig(ProtocolConfig):
    """A protocol whose references are made of COCO's pictures."""

    reference: str = "COCO's pictures, which make eval-coco reads"
    num_images: int = 30_000
    size: int = 256  # pixels a side, of references and samples
    crop: str = "adm"  # how they get there, one of CROPS
    pairing: str = "all"  # references: `all` pictures of the split, or the `paired` ones, whose captions were shown
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

    def prepare(self, pictures: Pictures) -> Pictures:
        return CroppedPictures(pictures, len(pictures), self.size, self.crop)

    @property
    def about_reference(self) -> dict[str, Any]:
        return {"reference_images": self.pairing}

    def reference_name(self, split: str, ids_sha256: str | None) -> str:
        """The name of its reference: what decides the pictures, and what differs from ADM's and TensorFlow's way."""
        paired = f"-paired-{ids_sha256[:8]}" if self.pairing == "paired" else ""
        crop = "" if self.crop == "adm" else f"-{self.crop}"
        resize = "" if self.resize == TF1_BILINEAR else f"-{self.resize}"
        return f"coco{self.size}-{split}{paired}{crop}{resize}"


@dataclass(frozen=True)
class CaptionList:
    """M captions; sample i shows caption i. Image and caption ids (M,) where the file has them."""

    texts: list[str]
    image_ids: list[int] | None = None
    caption_ids: list[int] | None = None
    about: dict[str, Any] | None = None  # split, seed and source of a choice

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def sha256(self) -> str:
        """Of the texts and image ids: `captions_sha256` of the text features that are made of them."""
        images = None if self.image_ids is None else list(map(str, self.image_ids))
        return hashlib.sha256(json.dumps({"texts": self.texts, "images": images}).encode()).hexdigest()

    @property
    def ids(self) -> str:
        """A line `image_id caption_id` for each."""
        return "".join(f"{image} {own}\n" for image, own in zip(self.image_ids, self.caption_ids, strict=True))

    @property
    def ids_sha256(self) -> str | None:
        """Of those lines; None without ids."""
        return None if self.image_ids is None else hashlib.sha256(self.ids.encode()).hexdigest()

    def first(self, count: int) -> "CaptionList":
        """Those of the first samples."""
        images, own = (None if ids is None else ids[:count] for ids in (self.image_ids, self.caption_ids))
        return CaptionList(self.texts[:count], images, own, self.about)

    @property
    def protocol(self) -> dict[str, Any]:
        """What is known of the choice."""
        chosen = "in order, without image ids: paired with samples by place alone"
        if self.about is not None:
            chosen = f"{self.about['split']}, one caption an image, seed {self.about['seed']}"
        known = {"captions": chosen, "captions_sha256": self.sha256, "ids_sha256": self.ids_sha256}
        return {key: value for key, value in known.items() if value is not None}


def choose_captions(root: Path, split: str, num_images: int, seed: int) -> CaptionList:
    """One caption each of `num_images` images of a split (val2014), drawn by `seed`, in the order of their image ids.

    The order of the annotations changes nothing. Raises InputError if they are missing, or of fewer images."""
    if not Path(root).is_dir():
        raise InputError(f'no folder {root} with COCO in it; name it with ARGS="coco=FOLDER"')
    file = find_annotations(Path(root), split)
    _, captions = read_annotations(file)
    if not 1 <= num_images <= len(captions):
        raise InputError(
            f"{num_images:,} images were asked for, but {file} has captions of {len(captions):,}; set num_images"
        )
    rng = random_stream(seed, Purpose.COCO_CAPTIONS)
    ids = sorted(captions)
    order, draws = rng.permutation(len(ids)), rng.random(len(ids))
    rows = np.sort(order[:num_images])  # fewer images are a part of more, with the same captions
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
    """The file of a choice of captions."""
    return captions_file(artifacts, f"captions_{split}-{num_images}-seed{seed}.json")


def save_captions(path: Path, captions: CaptionList) -> None:
    """Write a choice in COCO's own form, which `make text-features` takes, and its ids as lines beside it.

    `id` is the place, for readers go by it; the annotation's own id is `caption_id`."""
    write_text(path.with_suffix(".ids.txt"), captions.ids)
    header = {"format": FORMAT, "version": VERSION, **captions.protocol, **captions.about}
    rows = zip(captions.image_ids, captions.caption_ids, captions.texts, strict=True)
    annotations = [
        {"id": place, "image_id": image, "caption_id": own, "caption": text}
        for place, (image, own, text) in enumerate(rows)
    ]
    write_json(path, {"info": header, "annotations": annotations})


def load_captions(path: Path) -> CaptionList:
    """Captions in the order of the samples: a choice (.json), a line each (.txt), or LlamaGen's table (.csv).

    Raises InputError if there are none, a choice was altered, or it is COCO's whole annotations."""
    path = Path(path)
    if not path.is_file():
        raise _missing_choice(path, f"no captions at {path}")
    try:
        if path.suffix == ".json":
            return _load_choice(path)
        texts = read_table(path) if path.suffix == ".csv" else path.read_text("utf-8").split("\n")
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error, KeyError, TypeError) as error:
        problem = f"cannot read the captions of {path} ({type(error).__name__}: {error})"
        raise _missing_choice(path, problem) from error
    texts = [text.strip() for text in texts]
    while texts and not texts[-1]:
        texts.pop()
    if not texts or not all(texts):
        where = f"line {texts.index('') + 1} is empty" if texts else "there is nothing in it"
        raise InputError(f"{path} must hold a caption a line, but {where}; image i shows caption i, so none may lack")
    return CaptionList(texts)


def _missing_choice(path: Path, problem: str, remove: bool = False) -> MissingArtifact:
    return MissingArtifact("captions", path, problem, remove=remove, overrides={"coco": "FOLDER"})


def read_table(path: Path) -> list[str]:
    """The captions of LlamaGen's coco_captions.csv: a line `Prompt`, then one a row.

    Read as LlamaGen reads it: tabs between columns, and quotation marks by csv's rule, which takes them off one row
    ('"Head shot" of a zebra ...')."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file, delimiter="\t"))
    if not rows or rows[0] != ["Prompt"] or any(len(row) != 1 for row in rows):
        raise InputError(f"expected a line `Prompt` and then a caption a line in {path}, found {rows[:1]}")
    broken = [number for number, (text,) in enumerate(rows[1:], 1) if len(text.splitlines()) > 1]
    if broken:
        raise InputError(
            f"caption {broken[0]} of {path} goes over several lines: a quotation mark opens it that none closes. "
            "Image i shows caption i, so every caption needs one line"
        )
    return [row[0] for row in rows[1:]]


def _load_choice(path: Path) -> CaptionList:
    content = json.loads(path.read_text("utf-8"))
    info = content["info"] if isinstance(content, dict) and isinstance(content.get("info"), dict) else {}
    if (info.get("format"), info.get("version")) != (FORMAT, VERSION):
        raise _missing_choice(
            path,
            f"{path} is no choice of captions, one an image in the order of the samples; if it is COCO's own file, "
            "choose from it",
        )
    rows = content["annotations"]
    texts, images, own = ([row[key] for row in rows] for key in ("caption", "image_id", "caption_id"))
    found = CaptionList(texts, images, own, {key: info[key] for key in ("split", "seed", "annotations_sha256")})
    if (found.sha256, found.ids_sha256) != (info["captions_sha256"], info["ids_sha256"]):
        raise _missing_choice(path, f"{path} does not match its own SHA-256", remove=True)
    return found


def coco_source(root: Path, split: str, size: int, crop: str, image_ids: list[int] | None = None) -> StoredImages:
    """COCO's pictures of a split, or those of some ids in their order, as references: (M, S, S, 3) when indexed.

    Raises InputError if a picture that is asked for is missing."""
    source = load_coco(Path(root), split, size)
    rows = np.arange(len(source))
    if image_ids is not None:
        row_of = {caption["image_id"]: row for row, caption in enumerate(source.captions)}
        lost = [image_id for image_id in image_ids if image_id not in row_of]
        if lost:
            raise InputError(
                f"the captions are of {len(lost)} images that are not among the pictures of {split} in {root}, image "
                f"{lost[0]} first; they were chosen from another split or year, or the pictures are incomplete"
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


class CroppedPictures(FirstPictures):
    """The first pictures of a set, cropped as the references are; those of the right size stay as they are."""

    def __init__(self, pictures: Pictures, count: int, size: int, crop: str):
        super().__init__(pictures, count)
        self.size, self.crop = size, crop

    def read(self, start: int, stop: int) -> np.ndarray:
        batch = super().read(start, stop)
        if batch.shape[1:3] == (self.size, self.size):
            return batch
        return np.stack([CROPS[self.crop](Image.fromarray(picture), self.size) for picture in batch])


def describe(protocol: dict[str, Any]) -> str:
    """What a number of COCO must never be said without: split, numbers, references, crop, resize."""
    crop = f"{protocol['crop']} crop to {protocol['image_size']}"
    if "reference" not in protocol:
        extra = f"text {protocol['text']!r}" if "text" in protocol else f"{protocol['resize']}"
        return f"{protocol['num_images']:,} samples for captions of {protocol['captions']}; {crop}, {extra}"
    references = "the paired" if protocol["reference_images"] == "paired" else "all"
    return (
        f"{protocol['num_images']:,} samples against {references} {protocol['reference_size']:,} pictures of "
        f"{protocol['reference_split']}; {crop}, {protocol['resize']} to 299"
    )
