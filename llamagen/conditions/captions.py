"""Readers of captions, and the cleaning that captions get before LlamaGen's text encoder.

The cleaning gives the same text as `T5Embedder.text_preprocessing` of LlamaGen (language/t5.py at ce98ec4, from PixArt
and DeepFloyd IF), applied twice as in LlamaGen; here it is three lists of substitutions. The readers
take the files of LlamaGen's language/extract_t5_feature.py, COCO's annotations and plain text."""

import html
import logging
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote_plus

from masc.runtime.captions import CAPTIONS_AT_MOST, TABLES, Entries, read_lines, texts_of
from masc.runtime.errors import InputError, MissingArtifact
from masc.runtime.reading import advising, parse_json, read_text

logger = logging.getLogger(__name__)
FORMS = (
    'expected lines of text in UTF-8, COCO\'s {"annotations": [{"image_id", "id", "caption"}]}, or lines of '
    '{"image_path", "text": [...]}'
)
EXTENSIONS = "png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4"
DOMAIN = r"[a-zA-Z0-9.\-]+\.(?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)"
# Every kind of hyphen and dash in Unicode, but not the minus sign.
DASHES = (
    "-\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40"
    "\u301c\u3030\u30a0\ufe31\ufe32\ufe58\ufe63\uff0d"
)
# From CJK strokes to the unified ideographs; kana and hangul are not among them.
IDEOGRAPHS = "\u31c0-\u9fff"
SPECIAL = re.escape("#®•©™&@·º½¾¿¡§~()[]{}|\\/*")
TIMES = "x\u0445\u00d7"  # latin x, cyrillic kha, the multiplication sign


def _rules(*rules: tuple[str, str]) -> list[tuple[re.Pattern, str]]:
    return [(re.compile(pattern), replacement) for pattern, replacement in rules]


# Before markup is taken out. Each scheme is one pass: a link that a removal brings together goes in the second.
LINKS = _rules(
    ("<person>", "person"),
    *((rf"\b(?:{scheme}:(?:/{{1,3}}|[a-zA-Z0-9%])|{DOMAIN})", "") for scheme in ("https?", "www")),
)
# Between markup and the repair of the encoding.
SYMBOLS = _rules(
    (r"@\w+\b", ""),  # nicknames
    (f"[{IDEOGRAPHS}]+", ""),
    (f"[{DASHES}]+", "-"),
    ("[`´«»“”¨]", '"'),
    ("[‘’]", "'"),
    ("&quot;?", ""),
    ("&amp", ""),
    (r"\d{1,3}(?:\.\d{1,3}){3}", " "),  # IP addresses
    (r"\d:\d\d\s+$", ""),  # article numbers
    (r"\\n", " "),  # a line break spelt out
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),  # but not four digits
    (r"\b\d{6,}\b", ""),
    (rf"\S+\.(?:{EXTENSIONS})", ""),  # file names
    ("[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    (f"[{SPECIAL}]+", " "),
    (r"\s+\.\s+", " "),
)
# After the repair.
WORDS = _rules(
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),  # article codes: jc6640
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),  # jc6640vc
    (r"\b\d+[a-zA-Z]+\d+\b", ""),  # 6640vc231
    (r"(?:worldwide\s+)?(?:free\s+)?shipping", ""),
    (r"(?:free\s)?download(?:\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b(?:{EXTENSIONS})(?:\simages?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),  # j2d1a2a
    (rf"\b\d+\.?\d*[{TIMES}]\d+\.?\d*\b", ""),  # 1920x1080
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
    (r"^[\"'](.+)[\"']$", r"\1"),  # in quotation marks as a whole
    ("^['_,:;-]", ""),
    ("['_,:+-]$", ""),
    (r"^\.\S+$", ""),
)


def clean_caption(caption: str) -> str:
    """The caption as the text encoder got it in training: lower case, no links, codes, markup or symbols."""
    return _clean(_clean(caption))


def _clean(text: str) -> str:
    import ftfy
    from bs4 import BeautifulSoup, MarkupResemblesLocatorWarning

    text = _substitute(unquote_plus(text).strip().lower(), LINKS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MarkupResemblesLocatorWarning)  # a caption may well be a file name
        text = _substitute(BeautifulSoup(text, "html.parser").text, SYMBOLS)
    if len(re.findall("[-_]", text)) > 3:  # this-is-my-cute-cat
        text = re.sub("[-_]", " ", text)
    text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    return _substitute(text, WORDS).strip()


def _substitute(text: str, rules: list[tuple[re.Pattern, str]]) -> str:
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text


@dataclass(frozen=True)
class Captions:
    """Captions in order, not cleaned, each with the name of its image if the file has names."""

    texts: list[str]
    images: list[str] | None = None

    def __len__(self) -> int:
        return len(self.texts)


def read_captions(path: Path, first_only: bool = False, column: int = 0, first_sentence: bool = False) -> Captions:
    """Captions of a text file (one a line), of COCO's captions_*.json, of the captions.json of codes, or of LlamaGen's
    .jsonl: one file, or all files of a directory in the order of their names.

    `first_only` keeps one caption an image (COCO: the one with the lowest annotation id). `column` chooses among the
    captions of a .jsonl line (LlamaGen: 0 BLIP, 1 LLaVA, 2 LLaVA's first sentence). `first_sentence` cuts each caption
    at its first full stop (LlamaGen's short captions). Raises InputError if the file is missing or has another form."""
    path = Path(path)
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() == ".jsonl")
    if not files or not all(file.is_file() for file in files):
        raise InputError(
            f"no captions at {path}; expected a .txt, COCO's captions_*.json, a .jsonl or a folder of them"
        )
    suffix = files[0].suffix.lower()
    if suffix in TABLES:
        problem = f"{path} is a table, whose first line is no caption; make lines of it"
        raise MissingArtifact("captions", path, problem, overrides={"captions": path})
    with advising(FORMS):
        if suffix == ".json":
            captions = _read_json(path, first_only)
        elif suffix == ".jsonl":
            captions = _read_jsonl(files, column)
        else:
            captions = Captions(read_lines(path))
    if not captions.texts:
        raise InputError(f"there are no captions in {path}")
    if first_sentence:
        return Captions([text.split(".")[0] for text in captions.texts], captions.images)
    return captions


def warn_of_empty(captions: Captions) -> None:
    """Log a warning if the cleaning leaves nothing of some captions, with their number and the first of them.

    LlamaGen's cleaning drops ideographs, nicknames, links, file names and codes."""
    empty = [row for row, text in enumerate(captions.texts) if not clean_caption(text)]
    if empty:
        logger.warning(
            "%d of %d captions are empty after LlamaGen's cleaning, the first is caption %d (%r): their images show no "
            "text. The cleaning drops Chinese characters, @names, links and file names",
            *(len(empty), len(captions), empty[0] + 1, captions.texts[empty[0]]),
        )


@dataclass(frozen=True)
class Annotation:
    """A caption in COCO's captions_*.json."""

    id: int
    image_id: int | str
    caption: str


@dataclass(frozen=True)
class Annotations:
    """COCO's captions_*.json."""

    annotations: list[Annotation]


@dataclass(frozen=True)
class Line:
    """A line of LlamaGen's .jsonl: an image and its captions."""

    image_path: str
    text: list[str]


def _read_json(path: Path, first_only: bool) -> Captions:
    text = read_text(path, CAPTIONS_AT_MOST).removeprefix("\ufeff").lstrip()
    if text.startswith("["):
        kept = [texts_of(entry)[: 1 if first_only else None] for entry in parse_json(text, Entries, path)]
        names = [str(row) for row, texts in enumerate(kept) for _ in texts]
        return Captions([text for texts in kept for text in texts], names)
    rows = sorted(parse_json(text, Annotations, path).annotations, key=lambda row: row.id)
    if first_only:
        first: dict[int | str, Annotation] = {}
        for row in rows:
            first.setdefault(row.image_id, row)
        rows = list(first.values())
    return Captions([row.caption for row in rows], [str(row.image_id) for row in rows])


def _read_jsonl(files: list[Path], column: int) -> Captions:
    if column < 0:
        raise InputError(f"column counts the captions of a line from 0 up, found {column}")
    texts, images = [], []
    for file in files:
        for number, text in enumerate(read_text(file).removeprefix("\ufeff").split("\n"), 1):
            if not text.strip():
                continue
            line = parse_json(text, Line, Path(f"{file}, line {number}"))
            if column >= len(line.text):
                raise InputError(
                    f"{file}, line {number} holds {len(line.text)} caption(s), so there is none at column={column}, "
                    "which counts from 0"
                )
            texts.append(line.text[column])
            images.append(line.image_path)
    return Captions(texts, images)
