"""Errors that the user can correct, and what they say about the artefact that is missing."""

import contextlib
import shlex
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any


class InputError(ValueError):
    """An error that the user can correct: a missing file, a value out of range, a mismatch.

    The message says what was expected, what was found, where, and what to do. Scripts print it without a traceback."""


class Stopped(Exception):
    """The end of a training that a signal has asked to stop, after it has saved. The message is the line to print."""


class MissingArtifact(InputError):
    """An artefact that is missing, or that must be made again: truncated, altered, or made from other inputs.

    The message says what is wrong and where. `scripts/stage.py` adds the command that makes the artefact: it finds the
    command by `kind` and fills it with `facts` (tokenizer, data, tree, k, ...) and `overrides` (config values). A fact
    that is None is left out of the command. A caller that knows more facts adds them by `naming`."""

    def __init__(
        self,
        kind: str,
        path: Path,
        problem: str = "",
        *,
        remove: bool = False,
        overrides: dict[str, Any] | None = None,
        first: Sequence["MissingArtifact"] = (),
        **facts: Any,
    ):
        """`problem` is the message, by default that there is no `kind` at `path`. `remove` says that the file or folder
        at `path` must be deleted before the command; the commands of `first` come before this one."""
        super().__init__(problem or f"no {kind} at {path}")
        self.kind, self.path, self.remove = kind, Path(path), remove
        self.facts, self.overrides, self.first = facts, overrides or {}, first

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle: processes send errors to one another."""
        options = {"remove": self.remove, "overrides": self.overrides, "first": self.first}
        return partial(MissingArtifact, self.kind, self.path, str(self), **options, **self.facts), ()

    @classmethod
    def all_of(cls, problem: str, missing: Sequence["MissingArtifact"]) -> "MissingArtifact":
        """One error for several artefacts, in the order in which they must be made."""
        *first, last = missing
        options = {"remove": last.remove, "overrides": last.overrides, "first": first}
        return cls(last.kind, last.path, problem, **options, **last.facts)


def removal(path: Path) -> str:
    """The command that deletes a file or a folder, to be typed in a shell."""
    return f"rm -r {shlex.quote(str(path))}"


@contextlib.contextmanager
def naming(overrides: dict[str, Any] | None = None, **facts: Any) -> Iterator[None]:
    """Add facts and overrides to a MissingArtifact that is raised inside; those that it has already stay."""
    try:
        yield
    except MissingArtifact as error:
        error.facts = facts | error.facts
        error.overrides = (overrides or {}) | error.overrides
        raise


def printable(text: str) -> str:
    """The text with each character that a terminal would act on, or that cannot be shown, as an escape like \\x1b.

    Line breaks and tabs stay. Text from a file of data goes through it before it is shown."""
    return "".join(each if each.isprintable() or each in "\n\t" else ascii(each)[1:-1] for each in text)
