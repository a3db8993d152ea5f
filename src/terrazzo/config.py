"""Strict settings: nested dataclasses from and to plain dicts; the error on a misspelled key names the nearest."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from terrazzo.errors import ConfigError, did_you_mean, shortened

__all__ = ["HEADS", "INF", "LAYERS", "SHARE", "SIZE", "TOKENS", "from_dict", "to_dict", "within"]

T = TypeVar("T")

INF = math.inf

# What a network can have. Its tensors are compared with those of its file, but first it must be possible at all.
SIZE = (1, 2**20)  # widths
LAYERS = (1, 1000)
HEADS = (1, 1024)
TOKENS = (1, 2**24)  # of a vocabulary
SHARE = (0, 0.9999)  # dropout


def within(settings: object, **limits: tuple[float, float]) -> None:
    """Check numbers against their lowest and highest value; ``from_dict`` adds the place to the error.

    Raises
    ------
    ConfigError
        One of them is outside.
    """
    for name, (low, high) in limits.items():
        value = getattr(settings, name)
        if not low <= value <= high:
            bounds = f"at least {low:g}"
            if high < INF:
                bounds = f"{bounds} and at most {high:g}"
            raise ConfigError(f"{name} is {shortened(value)}; it must be {bounds}.")


def to_dict(config: Any) -> dict[str, Any]:
    """Return a config dataclass as a plain nested dict."""
    return dataclasses.asdict(config)


def from_dict(cls: type[T], data: Any, where: str = "config") -> T:
    """Build a config dataclass from a dict.

    Parameters
    ----------
    cls
        A dataclass; its fields are dataclasses, numbers, strings, booleans, ``Literal``, optional ones or lists of
        these, tuples, or plain dicts.
    data
        Plain nested dict, as from JSON or YAML.
    where
        Name of the place, for error messages.

    Raises
    ------
    ConfigError
        Unknown keys (the nearest valid key is named), missing keys, values of the wrong kind.
    """
    if not isinstance(data, Mapping):
        kind = type(data).__name__
        raise ConfigError(f"{where} must be a mapping of settings, not {kind}.")
    _check_keys(cls, data, where)
    hints = get_type_hints(cls)
    values = {}
    for key, value in data.items():
        place = f"{where}.{key}"
        values[key] = _converted(hints[key], value, place)
    try:
        return cls(**values)
    except (
        ValueError,
        TypeError,
        ArithmeticError,
    ) as error:  # a dataclass's own check of its values
        raise ConfigError(f"{where}: {error}") from error


def _check_keys(cls: type[Any], data: Mapping[Any, Any], where: str) -> None:
    """Refuse unknown keys, and missing ones."""
    names = []
    missing = []
    for field in dataclasses.fields(cls):
        names.append(field.name)
        if field.name not in data and _is_required(field):
            missing.append(field.name)
    for key in data:
        if key not in names:
            valid = ", ".join(names)
            hint = did_you_mean(key, names, f"Valid keys: {valid}.", cutoff=0.5)
            raise ConfigError(f"{where} has an unknown key {shortened(key)}.{hint}")
    if missing:
        lacking = ", ".join(missing)
        raise ConfigError(f"{where} lacks {lacking}.")


def _is_required(field: dataclasses.Field[Any]) -> bool:
    if field.default is not dataclasses.MISSING:
        return False
    return field.default_factory is dataclasses.MISSING


def _converted(kind: Any, value: Any, where: str) -> Any:
    """Return a value as the type of its field has it."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return from_dict(kind, value, where)
    origin = get_origin(kind)
    if origin is Literal:
        return _one_of(get_args(kind), value, where)
    if origin in (Union, types.UnionType):
        return _optional(get_args(kind), value, where)
    if origin is list or kind is list:
        return _list(get_args(kind), value, where)
    if origin is tuple:
        return _tuple(get_args(kind), value, where)
    if origin is dict or kind is dict:
        if not isinstance(value, Mapping):
            raise _mismatch(where, "a mapping", value)
        return dict(value)
    return _plain(kind, value, where)


def _mismatch(where: str, expected: str, value: Any) -> ConfigError:
    return ConfigError(f"{where} must be {expected}, not {shortened(value)}.")


def _one_of(choices: tuple[Any, ...], value: Any, where: str) -> Any:
    if value not in choices:
        names = ", ".join(repr(choice) for choice in choices)
        raise ConfigError(f"{where} is {shortened(value)}; it must be one of {names}.")
    return value


def _optional(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    none = type(None)
    if value is None and none in kinds:
        return None
    others = [kind for kind in kinds if kind is not none]
    return _converted(others[0], value, where)


def _list(kinds: tuple[Any, ...], value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise _mismatch(where, "a list", value)
    if not kinds:
        return list(value)
    return _items(list(kinds) * len(value), value, where)


def _tuple(kinds: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if len(kinds) == 2 and kinds[1] is Ellipsis and isinstance(value, list | tuple):
        kinds = (kinds[0],) * len(value)
    n = len(kinds)
    if not isinstance(value, list | tuple) or len(value) != n:
        raise _mismatch(where, f"a list of {n}", value)
    return tuple(_items(kinds, value, where))


def _items(kinds: Sequence[Any], values: Sequence[Any], where: str) -> list[Any]:
    items: list[Any] = []
    for kind, value in zip(kinds, values, strict=True):
        place = f"{where}[{len(items)}]"
        items.append(_converted(kind, value, place))
    return items


def _plain(kind: type, value: Any, where: str) -> Any:
    """Check a number, text or truth value; whole numbers become floats where those are wanted."""
    is_bool = isinstance(value, bool)
    if kind is float and isinstance(value, int) and not is_bool:
        try:
            return float(value)
        except OverflowError as error:
            raise ConfigError(f"{where} is {shortened(value)}; that is too large.") from error
    if not isinstance(value, kind) or (kind is int and is_bool):
        name = kind.__name__
        raise ConfigError(f"{where} is {shortened(value)}; it must be of type {name}.")
    return value
