"""What a page would do in a browser: its scripts, its handlers, and what it asks other places for."""

import json
from html.parser import HTMLParser
from typing import Any

ASKING = ("src", "href", "action", "data", "srcset", "poster", "formaction")


class Page(HTMLParser):
    """Parses a page; `scripts` are the types and texts of its script elements, `active` all else that acts or asks."""

    def __init__(self, text: str):
        super().__init__()
        self.scripts: list[tuple[str, str]] = []
        self.active: list[tuple[str, str, str | None]] = []
        self.tags: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "script":
            self.scripts.append((dict(attrs).get("type", ""), ""))
        for name, value in attrs:
            if name.startswith("on") or (name in ASKING and not (value or "").startswith(("data:image/", "#"))):
                self.active.append((tag, name, value))
        if tag in ("iframe", "object", "embed", "link", "form", "base"):
            self.active.append((tag, "", None))

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            kind, text = self.scripts[-1]
            self.scripts[-1] = kind, text + data

    @property
    def charts(self) -> dict[str, Any]:
        """The data of the charts on the page."""
        (text,) = (text for kind, text in self.scripts if kind == "application/json")
        return json.loads(text, parse_constant=lambda name: 1 / 0)  # NaN is no JSON
