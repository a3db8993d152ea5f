"""Strict configuration: frozen nested dataclasses from and to plain dicts; a misspelled key is an error that helps."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from terrazzo.errors import ConfigError, did_you_mean

__all__ = ["INF", "from_dict", "to_dict", "within"]

T = TypeVar("T")
INF = math.inf


def within(settings: object, **limits: tuple[float, float]) -> None:
    """Check numbers against their lowest and highest value; ``from_dict`` says where a refused one stands.

    Raises
    ------
    ValueError
        One of them lies outside.
    """
    for name, (low, high) in limits.items():
        value = getattr(settings, name)
        if not low <= value <= high:
            most = f" and at most {high:g}" if high < INF else ""
            raise ValueError(f"{name} is {value}; it must be at least {low:g}{most}.")


def to_dict(config: Any) -> dict[str, Any]:
    """Return a config dataclass as a plain nested dict."""
    return dataclasses.asdict(config)


def from_dict(cls: type[T], data: Any, where: str = "config") -> T:
    """Build a config dataclass from a dict.

    Parameters
    ----------
    cls
        A dataclass; its fields are dataclasses, numbers, strings, booleans, ``Literal``, optional ones or lists of
        these, tuples of a fixed length, or plain dicts.
    data
        Plain nested dict, as JSON or YAML gives it.
    where
        Name of the place, for error messages.

    Raises
    ------
    ConfigError
        Unknown keys (the nearest valid key is named), missing keys, values of the wrong kind.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where} must be a mapping of settings, not {type(data).__name__}.")
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in data:
        if key not in fields:
            hint = did_you_mean(key, fields, f"Valid keys: {', '.join(fields)}.", cutoff=0.5)
            raise ConfigError(f"{where} has an unknown key {key!r}.{hint}")
    hints = get_type_hints(cls)
    required = (
        name
        for name, field in fields.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    )
    missing = [name for name in required if name not in data]
    if missing:
        raise ConfigError(f"{where} lacks {', '.join(missing)}.")
    values = {key: _convert(hints[key], value, f"{where}.{key}") for key, value in data.items()}
    try:
        return cls(**values)
    except ValueError as error:  # a dataclass's own check of its values
        raise ConfigError(f"{where}: {error}") from error


def _convert(kind: Any, value: Any, where: str) -> Any:
    origin = get_origin(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return from_dict(kind, value, where)
    if origin is Literal:
        if value not in get_args(kind):
            raise ConfigError(
                f"{where} is {value!r}; it must be one of {', '.join(map(repr, get_args(kind)))}."
            )
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in get_args(kind):
            return None
        return _convert(next(a for a in get_args(kind) if a is not type(None)), value, where)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if origin is list or kind is list:
        if not isinstance(value, list):
            raise ConfigError(f"{where} must be a list, not {value!r}.")
        inner = get_args(kind)
        return (
            [_convert(inner[0], v, f"{where}[{i}]") for i, v in enumerate(value)]
            if inner
            else list(value)
        )
    if origin is tuple:
        inner = get_args(kind)
        if not isinstance(value, (list, tuple)) or len(value) != len(inner):
            raise ConfigError(f"{where} must be a list of {len(inner)}, not {value!r}.")
        return tuple(
            _convert(k, v, f"{where}[{i}]")
            for i, (k, v) in enumerate(zip(inner, value, strict=True))
        )
    if origin is dict or kind is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} must be a mapping, not {value!r}.")
        return dict(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"{where} is {value!r}; it must be of type {kind.__name__}.")
    return value
