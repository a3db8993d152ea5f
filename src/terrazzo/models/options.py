"""Options of ``embed``: those of all systems, and how a system declares its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

import numpy as np

from terrazzo.config import from_dict
from terrazzo.errors import ConfigError, did_you_mean
from terrazzo.parsing import parse_yaml
from terrazzo.systems import registry

__all__ = [
    "SLICE_OPTIONS",
    "EmbedOptions",
    "OptionHelp",
    "flag_of",
    "option",
    "owners",
    "split_options",
]

# arguments of Slice.from_anndata, and choices of readers, that embed passes on: how the slice is read
SLICE_OPTIONS = (
    "layer",
    "spatial_key",
    "organism",
    "technology",
    "unit",
    "microns_per_unit",
    "allow_normalized",
    "image",
    "name",
    "bins",
    "table",
    "region",
    "coordinate_system",
    "slice_key",
)


def option(default: Any, help: str, *, decides: bool = True) -> Any:
    """Return a field of an :class:`EmbedOptions`.

    Parameters
    ----------
    default
        Value where the option is not passed.
    help
        One line for ``terrazzo embed --help SYSTEM``.
    decides
        False: another value gives the same vectors (a cache folder, say), so that a finished slice is not embedded
        again because of it.
    """
    return dataclasses.field(default=default, metadata={"help": help, "decides": decides})


@dataclass(frozen=True)
class OptionHelp:
    """One option in the help: ``--subslice-size``, ``"number"``, and a line of text."""

    flag: str
    kind: str
    text: str


@dataclass(frozen=True)
class EmbedOptions:
    """Options that every system has; a system's own class adds its fields.

    Attributes
    ----------
    orthologs
        Two-column table (dict, DataFrame or file) from the slice's genes to the vocabulary's, for another organism.
        None: human and mouse go by the table that comes with the library.
    """

    orthologs: Any = option(
        None, "Two-column table from the slice's genes to the model's; default: terrazzo's own."
    )

    @classmethod
    def names(cls) -> list[str]:
        """Return the names of all options."""
        return [field.name for field in dataclasses.fields(cls)]

    @classmethod
    def checked(cls, values: Mapping[str, Any], model: str) -> Self:
        """Return options from keyword arguments; None means the default.

        Raises
        ------
        ConfigError
            An option that the model does not have: the system that has it is named, else the nearest option; a value
            of the wrong kind.
        """
        known = cls.names()
        for name in values:
            if name not in known:
                raise ConfigError(_foreign(name, name, known, model))
        plain: dict[str, Any] = {}
        for name, value in values.items():
            if value is not None and name != "orthologs":
                plain[name] = _plain(value)
        checked = from_dict(cls, plain, f"embed ({model})")
        return dataclasses.replace(checked, orthologs=values.get("orthologs"))

    @classmethod
    def parsed(cls, texts: Mapping[str, str], model: str) -> dict[str, Any]:
        """Return keyword arguments from words of the command line.

        Raises
        ------
        ConfigError
            As :meth:`checked`, with flags in place of names.
        """
        hints = get_type_hints(cls)
        options: dict[str, Any] = {}
        for name, text in texts.items():
            if name not in hints:
                flags = [flag_of(known) for known in cls.names()]
                raise ConfigError(_foreign(name, flag_of(name), flags, model))
            options[name] = text if _takes_text(hints[name]) else _value_of(text)
        return options

    @classmethod
    def help(cls) -> list[OptionHelp]:
        """Return the help on the options that are the system's own."""
        hints = get_type_hints(cls)
        shared = EmbedOptions.names() if cls is not EmbedOptions else []
        lines = []
        for field in dataclasses.fields(cls):
            if field.name not in shared:
                kind = _kind(hints[field.name])
                lines.append(OptionHelp(flag_of(field.name), kind, field.metadata["help"]))
        return lines

    def deciding(self) -> dict[str, Any]:
        """Return the options that change the vectors, and differ from their defaults."""
        deciding: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.metadata["decides"] and value is not None and value != field.default:
                deciding[field.name] = value
        return deciding


def flag_of(name: str) -> str:
    """Return an option as it is typed: ``--subslice-size``."""
    return f"--{name.replace('_', '-')}"


def split_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Separate the options of a model from those of reading a slice; return both, in this order."""
    model_options = {}
    slice_options = {}
    for name, value in options.items():
        if name not in SLICE_OPTIONS:
            model_options[name] = value
        elif value is not None:
            slice_options[name] = value
    return model_options, slice_options


def owners(name: str) -> list[str]:
    """Return the titles of the systems that have an option of this name."""
    titles = []
    for system in registry.systems().values():
        classes = [registry.resolve(reference) for reference in system.options.values()]
        if any(name in one.names() for one in classes):
            titles.append(system.title)
    return titles


def _plain(value: Any) -> Any:
    """Return a path as text and a number of numpy as one of Python."""
    if isinstance(value, Path):
        return str(value)
    return value.item() if isinstance(value, np.generic) else value


def _foreign(name: str, shown: str, known: list[str], model: str) -> str:
    """Return the message on an option that a model does not have; ``shown``, ``known``: as the user writes them."""
    systems = owners(name)
    if systems:
        return f"{shown} belongs to {' and '.join(systems)}; this checkpoint is {model}."
    of_slices = list(SLICE_OPTIONS)
    if shown.startswith("--"):
        of_slices = [flag_of(one) for one in SLICE_OPTIONS]
    hint = did_you_mean(shown, [*known, *of_slices], f"It has {', '.join(known)}.")
    return f"{model} has no option {shown}.{hint}"


def _takes_text(hint: Any) -> bool:
    """Return True if an option takes a text as it is typed."""
    if hint is Any or hint is str:
        return True
    if get_origin(hint) is Literal:
        return True
    return any(_takes_text(one) for one in get_args(hint))


def _value_of(text: str) -> Any:
    try:
        return parse_yaml(text, "an option")
    except ConfigError:
        return text


def _kind(hint: Any) -> str:
    """Return the kind of an option's value, in a word."""
    if get_origin(hint) is Literal:
        return "|".join(map(str, get_args(hint)))
    words = {int: "whole number", float: "number", bool: "true|false", str: "text"}
    for one in (hint, *get_args(hint)):
        if get_origin(one) is Literal:
            return _kind(one)
        if one in words:
            return words[one]
    return "value"
