"""Captions in files: of text, with the caption of image i on line i, and captions.json of packed codes."""

from dataclasses import dataclass
from pathlib import Path

from masc.runtime.errors import InputError
from masc.runtime.reading import Damaged, damaged_is_missing, read_json, read_text

CAPTIONS_AT_MOST = 4 * 2**30  # bytes of captions.json
TABLES = (".csv", ".tsv")  # suffixes of LlamaGen's coco_captions, whose first line is no caption


def read_lines(path: Path) -> list[str]:
    """The captions in a .txt, one a line, without the spaces around them.

    Only a line feed ends a line: a caption may hold other separators of Unicode. Raises InputError for another suffix
    or kind of file, for one without captions, and for a blank line before the last caption, which would move the later
    ones."""
    if path.suffix.lower() != ".txt":
        raise Damaged(f"expected lines of captions in a .txt, found {path}; rename it if it holds such lines")
    text = read_text(path).removeprefix("\ufeff")
    if "\0" in text:
        raise Damaged(f"expected text in UTF-8 in {path}, found null bytes, as in UTF-16; save it as UTF-8")
    lines = [line.strip() for line in text.split("\n" if "\n" in text else "\r")]  # \r: of old Macs
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise InputError(f"there are no captions in {path}")
    blank = [number for number, line in enumerate(lines, 1) if not line]
    if blank:
        raise InputError(
            f"line {blank[0]} of {path} is blank, as are {len(blank) - 1} others: image i shows the caption of line i. "
            "Write a caption there, or delete these lines"
        )
    return lines


@dataclass(frozen=True)
class ImageTexts:
    """An entry of captions.json for an image with several captions."""

    captions: list[str]


Entries = list[str | ImageTexts]  # of captions.json: one for each image


def load_captions(path: Path) -> list[list[str]]:
    """The captions of each image in a directory of codes; an image may have none or several."""
    with damaged_is_missing("codes", path):
        entries = read_json(Path(path) / "captions.json", Entries, at_most=CAPTIONS_AT_MOST)
    return [texts_of(entry) for entry in entries]


def texts_of(entry: str | ImageTexts) -> list[str]:
    """The captions in one entry of captions.json; an empty text is none."""
    return [entry] * bool(entry) if isinstance(entry, str) else entry.captions
