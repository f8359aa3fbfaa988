"""Captions in a text file: the caption of image i on line i."""

from pathlib import Path

from masc.runtime.errors import InputError
from masc.runtime.reading import Damaged, read_text


def read_lines(path: Path) -> list[str]:
    """The captions in a text file, one a line, without the spaces around them.

    Only a line feed ends a line: a caption may hold other separators of Unicode. Raises InputError for another kind of
    file, for one without captions, and for a blank line before the last caption, which would move the later ones."""
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
