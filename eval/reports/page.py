"""Pages as single HTML files, made from a template of this package and the common style sheet; text for Markdown."""

import re
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from masc.runtime.errors import printable


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


MARKDOWN = re.compile(r"[\\|*~$]|\](?=[(\[:])|!(?=\[)")  # characters that Markdown acts on


def markdown_text(text: Any) -> str:
    """The text in one line of Markdown, without effect: no HTML, no link, no image, no further cell of a table.

    Backticks stay, because commands stand in them."""
    line = printable(" ".join(str(text).split()))
    line = re.sub(r"&(?=#?\w+;)", "&amp;", line).replace("<", "&lt;")
    return MARKDOWN.sub(r"\\\g<0>", line)
