"""Pages as single HTML files, made from a template of this package and the common style sheet; text for Markdown."""

import base64
import io
import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from masc.runtime.errors import printable
from masc.runtime.reading import read_bytes
from vq.readers.stored import decoding, parse_image

GRID_PIXELS = 1024  # maximum of the longer side of a sample grid on a page


@cache
def _environment() -> Environment:
    """The templates of this package; each is compiled once."""
    return Environment(
        loader=PackageLoader("reports", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render_page(template: str, **content: Any) -> str:
    """The page of a template in this package; a name that `content` lacks is an error."""
    return _environment().get_template(template).render(**content)


def embed(path: Path, most: int = GRID_PIXELS) -> str:
    """An image as a data URI. An image with a side over `most` pixels is scaled down and stored as JPEG."""
    data = read_bytes(path)
    with decoding(str(path)), parse_image(data) as image:
        if max(image.size) <= most:
            return f"data:{image.get_format_mimetype()};base64,{base64.b64encode(data).decode()}"
        small = image.convert("RGB")
        small.thumbnail((most, most), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        small.save(buffer, format="jpeg", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


MARKDOWN = re.compile(r"[\\|*~$]|\](?=[(\[:])|!(?=\[)")  # characters that Markdown acts on


def markdown_text(text: Any) -> str:
    """The text in one line of Markdown, without effect: no HTML, no link, no image, no further cell of a table.

    Backticks stay, because commands stand in them."""
    line = printable(" ".join(str(text).split()))
    line = re.sub(r"&(?=#?\w+;)", "&amp;", line).replace("<", "&lt;")
    return MARKDOWN.sub(r"\\\g<0>", line)
