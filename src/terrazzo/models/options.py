"""Options of ``embed``: what all systems share, and how a system declares its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

import yaml

from terrazzo.config import from_dict
from terrazzo.errors import ConfigError, did_you_mean
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

# arguments of Slice.from_anndata, and choices of readers, that embed hands on: how the slice is read
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
)


def option(default: Any, help: str, *, decides: bool = True) -> Any:
    """Return a field of an :class:`EmbedOptions`.

    Parameters
    ----------
    default
        Value where nothing is given.
    help
        One line for ``terrazzo embed --help SYSTEM``.
    decides
        False: another value gives the same vectors (where features are kept, say), so that a finished slice is not
        done again because of it.
    """
    return dataclasses.field(default=default, metadata={"help": help, "decides": decides})


@dataclass(frozen=True)
class OptionHelp:
    """One option for people: ``--subslice-size``, ``"number"``, what it does."""

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
    """

    orthologs: Any = option(None, "Two-column table from the slice's genes to the model's.")

    @classmethod
    def names(cls) -> list[str]:
        """Return the names of all options."""
        return [field.name for field in dataclasses.fields(cls)]

    @classmethod
    def checked(cls, values: Mapping[str, Any], model: str) -> Self:
        """Return options from keyword arguments; None stands for the default.

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
                plain[name] = str(value) if isinstance(value, Path) else value
        checked = from_dict(cls, plain, f"embed ({model})")
        return dataclasses.replace(checked, orthologs=values.get("orthologs"))

    @classmethod
    def parsed(cls, texts: Mapping[str, str], model: str) -> dict[str, Any]:
        """Return keyword arguments from what was typed on the command line.

        Raises
        ------
        ConfigError
            As :meth:`checked`, with flags in place of names.
        """
        hints = get_type_hints(cls)
        out: dict[str, Any] = {}
        for name, text in texts.items():
            if name not in hints:
                flags = [flag_of(known) for known in cls.names()]
                raise ConfigError(_foreign(name, flag_of(name), flags, model))
            out[name] = text if _takes_text(hints[name]) else _value_of(text)
        return out

    @classmethod
    def help(cls) -> list[OptionHelp]:
        """Return the options that are the system's own, for people."""
        hints = get_type_hints(cls)
        shared = EmbedOptions.names() if cls is not EmbedOptions else []
        return [
            OptionHelp(flag_of(field.name), _kind(hints[field.name]), field.metadata["help"])
            for field in dataclasses.fields(cls)
            if field.name not in shared
        ]

    def deciding(self) -> dict[str, Any]:
        """Return the options that change the vectors, and differ from their defaults."""
        out: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.metadata["decides"] and value is not None and value != field.default:
                out[field.name] = value
        return out


def flag_of(name: str) -> str:
    """Return an option as it is typed: ``--split-size``."""
    return f"--{name.replace('_', '-')}"


def split_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Part the options of a model from those of reading a slice; returns both, in this order."""
    of_model = {k: v for k, v in options.items() if k not in SLICE_OPTIONS}
    of_slice = {k: v for k, v in options.items() if k in SLICE_OPTIONS and v is not None}
    return of_model, of_slice


def owners(name: str) -> list[str]:
    """Return the titles of the systems that have an option of this name."""
    out = []
    for system in registry.systems().values():
        classes = [registry.resolve(reference) for reference in system.options.values()]
        if any(name in one.names() for one in classes):
            out.append(system.title)
    return out


def _foreign(name: str, shown: str, known: list[str], model: str) -> str:
    systems = owners(name)
    if systems:
        return f"{shown} belongs to {' and '.join(systems)}; this checkpoint is {model}."
    reading = [*known, *(flag_of(one) if shown.startswith("--") else one for one in SLICE_OPTIONS)]
    hint = did_you_mean(shown, reading, f"It has {', '.join(known)}.")
    return f"{model} has no option {shown}.{hint}"


def _takes_text(hint: Any) -> bool:
    if hint is Any or hint is str:
        return True
    if get_origin(hint) is Literal:
        return True
    return any(_takes_text(one) for one in get_args(hint))


def _value_of(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _kind(hint: Any) -> str:
    """Return what an option takes, in a word."""
    if get_origin(hint) is Literal:
        return "|".join(map(str, get_args(hint)))
    words = {int: "whole number", float: "number", bool: "true|false", str: "text"}
    for one in (hint, *get_args(hint)):
        if get_origin(one) is Literal:
            return _kind(one)
        if one in words:
            return words[one]
    return "value"
