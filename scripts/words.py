"""Values as words of a command line, quoted in this one place: for Hydra's grammar, for the shell and for make."""

import re
import shlex
import sys
from typing import Any

import start  # noqa: F401  # isort: skip
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from masc.runtime.errors import InputError


def override(key: str, value: Any) -> str:
    """KEY=VALUE in Hydra's grammar, quoted if it must be: the config holds this very value, whatever its characters.

    `value` is text, a number, a boolean, None, or a list of those."""
    return f"{key}={_in_grammar(value)}"


def _in_grammar(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_in_grammar, value))}]"
    if not isinstance(value, str):
        return "null" if value is None else str(value)
    # OmegaConf would replace ${name} by the value of another key.
    text = re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + r"\${", value)
    try:
        if OverridesParser.create().parse_override(f"key=[{text}]").value() == [text]:  # alone and in a list
            return text
    except HydraException:
        pass
    # In Hydra's quotes a backslash is special only in front of a quote.
    return '"' + re.sub(r'(\\*)("|\Z)', lambda found: found[1] * 2 + found[2].replace('"', r"\""), text) + '"'


def read_words(words: list[str]) -> list[str]:
    """The overrides of a command line, in Hydra's grammar.

    Before a word `--` the text in KEY=TEXT is taken as it stands, and KEY[]=A,B is a list of such texts; behind it,
    and without it, words are overrides in Hydra's grammar already. InputError for bytes that are no text: files of JSON
    cannot hold them."""
    for word in words:
        if not word.isascii() and re.search("[\ud800-\udfff]", word):
            encoding = sys.getfilesystemencoding()
            raise InputError(f"expected text in {encoding}, found {word!a}; rename that file or folder")
    if "--" not in words:
        return words
    end = words.index("--")
    return [_literal(word) for word in words[:end]] + words[end + 1 :]


def _literal(word: str) -> str:
    key, _, text = word.partition("=")
    return override(key[:-2], text.split(",")) if key.endswith("[]") else override(key, text)


def parse_words(overrides: list[str]) -> list[Override]:
    """The overrides, parsed. Raises InputError for the first that Hydra cannot read, with the form that it can."""
    parser = OverridesParser.create()
    parsed: list[Override] = []
    for index, word in enumerate(overrides):
        try:
            parsed.append(parser.parse_override(word))
            if not parsed[-1].is_sweep_override():
                continue
        except HydraException:
            pass
        key, given, text = word.partition("=")
        if given:
            problem = f"cannot read {word}: a value with =, commas, quotes, brackets or non-ASCII letters needs quotes"
        elif index and "=" in overrides[index - 1]:
            key, _, start = overrides[index - 1].partition("=")
            text = f"{start} {word}"
            before = overrides[index - 1]
            problem = f"expected KEY=VALUE, found {word!r} after {before}; a value with spaces needs quotes"
        else:
            raise InputError(f"expected KEY=VALUE, found {word!r}; for the keys and their values type --help in ARGS")
        raise InputError(f"{problem}. Type {make_word('ARGS', shlex.quote(override(key, text)))}")
    return parsed


def make_word(name: str, value: Any) -> str:
    """NAME=VALUE as a shell must be given it to hand it to make."""
    text = str(value)
    if re.search(r"[\"$`\\!]", text):
        return f"{name}={shlex.quote(text)}"
    return f"{name}={text}" if shlex.quote(text) == text or text == "..." else f'{name}="{text}"'
