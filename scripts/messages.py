"""What a user reads when a stage ends with an error, and what to type then."""

import copy
import logging
import shlex
import sys

from words import make_word, override
from worker import CONTINUES

from masc.runtime.errors import InputError, MissingArtifact, Stopped, printable, removal
from masc.runtime.writing import in_words

# Kind of a MissingArtifact -> the target of the Makefile that makes it, and the variables that say which one: a
# variable is filled with the fact of the same name in small letters.
COMMANDS = {
    "tokenizer": ("tokenizer", "TOKENIZER"),
    "codebook": ("codebook", "TOKENIZER"),
    "codes": ("codes", "DATA", "TOKENIZER"),
    "imported codes": ("import-codes", "DATA", "TOKENIZER"),
    "tree": ("tree", "TREE", "TOKENIZER", "K"),
    "run": ("train", "MODEL", "HEAD", "LOSS", "TREE", "SEED"),
    "samples": ("sample", "RUN", "RELEASE", "SAMPLES"),
    "captions": ("coco-captions",),
    "text features": ("text-features", "CAPTIONS"),
    "reference": ("reference", "DATA"),
    "results": ("eval-fid", "RUN"),
    "weights": ("weights", "NAME"),
    "tokenizer results": ("eval-tokenizer", "TOKENIZER"),
}


def command_for(error: MissingArtifact) -> str:
    """What to type to make an artefact and those that it is made from; `...` stands for a fact that nobody gave."""
    commands = [command_for(other) for other in error.first]
    target, *variables = COMMANDS[error.kind]
    given = {name: error.facts.get(name.lower(), "...") for name in variables}
    given["ARGS"] = " ".join(shlex.quote(override(key, value)) for key, value in error.overrides.items()) or None
    words = [make_word(name, value) for name, value in given.items() if value]
    if error.remove:
        commands.append(removal(error.path))
    return " && ".join(dict.fromkeys([*commands, " ".join(["make", target, *words])]))


def explain(error: InputError) -> str:
    """The message of an error, with the command that makes what is missing."""
    return printable(f"{error}; type `{command_for(error)}`" if isinstance(error, MissingArtifact) else str(error))


class PlainFormatter(logging.Formatter):
    """Log lines as text that cannot command the terminal: they name what files hold.

    An InputError among the arguments of a line is written with the command that makes what is missing."""

    def format(self, record: logging.LogRecord) -> str:
        if isinstance(record.args, tuple):
            record = copy.copy(record)
            record.args = tuple(explain(each) if isinstance(each, InputError) else each for each in record.args)
        return printable(super().format(record))


def log_plainly(level: int) -> None:
    """Send the log lines of this process from `level` on to the standard error, as `PlainFormatter` writes them."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PlainFormatter("%(message)s"))
    logging.basicConfig(level=level, handlers=[handler])


def in_plain_words(error: BaseException) -> str | None:
    """The line that ends a stage with this error, empty if nobody reads it; None for a bug, which needs a traceback."""
    if isinstance(error, InputError):
        return f"error: {explain(error)}"
    if isinstance(error, Stopped):
        return printable(str(error))
    if isinstance(error, KeyboardInterrupt):
        return f"\ninterrupted; {CONTINUES}"
    if isinstance(error, BrokenPipeError):
        return ""  # the reader of a pipe, such as head, has ended
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, of a GPU
        reason = " ".join(str(error).split())[:200]
        return f"error: the memory is full ({reason or 'of this machine'}); use smaller batches, or a machine with more"
    if isinstance(error, OSError) and (words := in_words(error)):
        return f"error: {words}"
    return None
