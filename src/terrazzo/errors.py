"""The library's own exceptions: each message says what is wrong, where, and how to fix it."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable

__all__ = [
    "CheckpointError",
    "ConfigError",
    "CorpusError",
    "DataMissing",
    "DownloadError",
    "GeneError",
    "InputError",
    "OutputError",
    "TerrazzoError",
    "TerrazzoWarning",
    "TrainingError",
    "did_you_mean",
    "printable",
    "shortened",
]

_LONGEST_WORD = 100  # letters that are compared with known names


class TerrazzoError(Exception):
    """Base of every error that is the user's to fix (exit code 2 on the command line)."""


class InputError(TerrazzoError, ValueError):
    """A slice that cannot be used as it is: missing, malformed or contradictory data."""


class GeneError(InputError):
    """The genes of a slice do not meet the vocabulary."""


class DataMissing(InputError):
    """A slice of a dataset that is not on this machine."""


class DownloadError(TerrazzoError):
    """A public file that could not be downloaded, or whose content is not what was expected."""


class ConfigError(TerrazzoError, ValueError):
    """An unknown, misspelled or impossible setting."""


class CheckpointError(TerrazzoError):
    """A checkpoint folder that is incomplete, damaged, foreign or unsafe."""


class CorpusError(TerrazzoError):
    """A corpus folder, or the slices for one, that is incomplete, damaged, foreign or contradictory."""


class OutputError(TerrazzoError, OSError):
    """A result cannot be written where it was asked for; nothing half-written is left behind."""


class TrainingError(TerrazzoError, ArithmeticError):
    """Training cannot go on: a loss or gradient that is not a number; the last good checkpoint is kept."""


class TerrazzoWarning(UserWarning):
    """Something was mended or assumed; the message says what."""


def did_you_mean(
    word: object, known: Iterable[object], otherwise: str = "", cutoff: float = 0.6
) -> str:
    """Return a sentence for the end of a message, with a blank before it: the known name nearest to a misspelled one.

    Parameters
    ----------
    word, known
        What was given, and what there is.
    otherwise
        Sentence where no name is near; "": none.
    cutoff
        Of :func:`difflib.get_close_matches`: how alike names must be.
    """
    text = str(word)[:_LONGEST_WORD]
    near = difflib.get_close_matches(text, [str(name) for name in known], n=1, cutoff=cutoff)
    hint = f"Did you mean {near[0]!r}?" if near else otherwise
    return f" {hint}" if hint else ""


def shortened(value: object, limit: int = 80, *, quoted: bool = True) -> str:
    """Return a value as one line of a message, at most ``limit`` letters, however large the value is.

    Parameters
    ----------
    value
        Anything.
    limit
        Most letters.
    quoted
        As Python writes it; False: a text as it is. Control characters and what is not Unicode are escaped either way.
    """
    if isinstance(value, str | bytes):
        value = value[: limit + 1]
        text = repr(value) if quoted or isinstance(value, bytes) else value
    elif isinstance(value, BaseException):
        text = str(value)[: 10 * limit]
    else:
        text = _outline(limit).repr(value)
    return printable(" ".join(text.split()), limit)


def printable(text: str, limit: int = 4000) -> str:
    """Return a text that any terminal can show, at most ``limit`` letters: what is no letter is escaped.

    Names of files and genes may hold control characters, which a terminal obeys, and bytes that are not Unicode.
    """
    text = text[: limit + 1]
    lines = []
    for line in text.split("\n"):
        if not line.isprintable():
            line = "".join(_escaped(letter) for letter in line)
        lines.append(line)
    text = "\n".join(lines)
    if len(text) <= limit:
        return text
    return f"{text[: limit - 3]}..."


def _escaped(letter: str) -> str:
    is_fine = letter.isprintable() or letter == "\t"
    return letter if is_fine else repr(letter)[1:-1]


def _outline(limit: int) -> reprlib.Repr:
    """Return a writer of values that looks at a few of their parts only."""
    outline = reprlib.Repr()
    outline.maxstring = outline.maxother = outline.maxlong = limit
    outline.maxdict = outline.maxlist = outline.maxtuple = outline.maxset = 6
    outline.maxlevel = 4
    return outline
