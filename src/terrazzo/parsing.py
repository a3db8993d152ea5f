"""The one reader of JSON and the one of YAML: bounded, and whatever is wrong is one line that names the file.

Files of settings come from anywhere. Size, depth and the growth by aliases are bounded before anything is built; keys
that repeat, numbers that are not finite, and numbers of hundreds of digits are refused.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

import yaml

from terrazzo.errors import ConfigError, TerrazzoError, shortened

__all__ = [
    "MAX_BYTES",
    "MAX_YAML",
    "parse_json",
    "parse_yaml",
    "read_json",
    "read_object",
    "read_text",
    "read_yaml",
]

MAX_BYTES = 2**24
"""Largest JSON file that is read by default."""

MAX_YAML = 2**20
"""Largest YAML file: its parser takes seconds for a megabyte."""

_MAX_DEPTH = 64  # containers within each other
_MAX_VALUES = 2**17  # of a YAML file, with all that its aliases stand for
_MAX_DIGITS = 40  # of a whole number
_MERGE = "tag:yaml.org,2002:merge"
_TIMESTAMP = "tag:yaml.org,2002:timestamp"

ErrorType = type[TerrazzoError]


def read_text(
    path: str | os.PathLike[str], error: ErrorType = ConfigError, max_bytes: int = MAX_BYTES
) -> str:
    """Read a small text file (UTF-8), or one that gzip has compressed (``.gz``).

    Raises
    ------
    error
        It cannot be read, is too large, or is not text.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream:  # a pipe or a device has no size to look at
            if path.suffix.lower() == ".gz":
                with gzip.open(stream, "rb") as inflated:
                    content = inflated.read(max_bytes + 1)
            else:
                content = stream.read(max_bytes + 1)
    except (OSError, ValueError, EOFError, zlib.error) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise error(f"{_named(path)} cannot be read ({reason}).") from problem
    if len(content) > max_bytes:
        raise error(
            f"{_named(path)} has more than {max_bytes:,} bytes; that is not a file of settings."
        )
    return _decoded(content, _named(path), error)


def read_json(
    path: str | os.PathLike[str],
    error: ErrorType = ConfigError,
    *,
    finite: bool = True,
    max_bytes: int = MAX_BYTES,
) -> Any:
    """Read a JSON file; arguments and errors as :func:`read_text` and :func:`parse_json`."""
    text = read_text(path, error, max_bytes)
    return parse_json(text, _named(path), error, finite=finite)


def read_object(
    path: str | os.PathLike[str],
    error: ErrorType = ConfigError,
    *,
    finite: bool = True,
    max_bytes: int = MAX_BYTES,
) -> dict[str, Any]:
    """Read a JSON file that must hold an object; arguments and errors as :func:`read_json`."""
    content = read_json(path, error, finite=finite, max_bytes=max_bytes)
    if not isinstance(content, dict):
        raise error(f"{_named(path)} must be a JSON object, not {type(content).__name__}.")
    return content


def read_yaml(path: str | os.PathLike[str], error: ErrorType = ConfigError) -> Any:
    """Read a YAML file; arguments and errors as :func:`read_text` and :func:`parse_yaml`."""
    text = read_text(path, error, MAX_YAML)
    return parse_yaml(text, _named(path), error)


def parse_json(
    text: str | bytes, where: str, error: ErrorType = ConfigError, *, finite: bool = True
) -> Any:
    """Parse JSON.

    Parameters
    ----------
    text
        The whole of it.
    where
        Name of the place, for messages.
    error
        Class of the exception.
    finite
        Refuse NaN and infinite numbers.

    Raises
    ------
    error
        Not JSON; nested too deeply; keys that repeat; numbers that are not finite, or have too many digits.
    """
    if isinstance(text, bytes):
        text = _decoded(text, where, error)
    constants = _refuse_constant if finite else None
    try:
        content = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_int=_whole,
            parse_float=_fraction if finite else None,
            parse_constant=constants,
        )
        _check_depth(content)
    except RecursionError as problem:
        raise error(f"{where} is not usable JSON (nested too deeply).") from problem
    except (ValueError, MemoryError) as problem:
        raise error(f"{where} is not readable JSON ({_reason(problem)}).") from problem
    return content


def parse_yaml(text: str | bytes, where: str, error: ErrorType = ConfigError) -> Any:
    """Parse YAML, of which a date is a text; arguments and errors as :func:`parse_json`.

    Aliases count as what they stand for.
    """
    if len(text) > MAX_YAML:
        raise error(f"{where} has more than {MAX_YAML:,} letters; that is not a file of settings.")
    if isinstance(text, bytes):
        text = _decoded(text, where, error)
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _check_size(node)
            content = loader.construct_document(node)
        finally:
            loader.dispose()
        _check_finite(content)
        return content
    except RecursionError as problem:
        raise error(f"{where} is not usable YAML (nested too deeply).") from problem
    except yaml.YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        reason = getattr(problem, "problem", None) or problem
        raise error(f"{where}{line}: not a readable YAML file ({_reason(reason)}).") from problem
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as problem:
        # constructors of numbers and tags
        raise error(f"{where}: not a readable YAML file ({_reason(problem)}).") from problem


def _named(path: str | os.PathLike[str]) -> str:
    return shortened(os.fspath(path), 300, quoted=False)


def _reason(problem: object) -> str:
    """Return what a parser complains about, on one short line."""
    return shortened(problem, 160, quoted=False) or type(problem).__name__


def _decoded(content: bytes, where: str, error: ErrorType) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise error(
            f"{where} cannot be read: not text in UTF-8 (byte {problem.start}: {problem.reason})."
        ) from problem


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object, of which no key repeats."""
    content = dict(pairs)
    if len(content) == len(pairs):
        return content
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise ValueError(f"the key {shortened(key)} repeats")
        seen.add(key)
    return content


def _whole(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"a whole number of {len(digits):,} digits")
    return int(digits)


def _fraction(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{shortened(digits, quoted=False)} is no finite number")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no finite number")


def _check_depth(content: Any) -> None:
    """Refuse containers that are nested so deeply that whatever walks over them could fail."""
    level = [content]
    for _ in range(_MAX_DEPTH):
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                inner.extend(one for one in value.values() if isinstance(one, dict | list))
            elif isinstance(value, list):
                inner.extend(one for one in value if isinstance(one, dict | list))
        if not inner:
            return
        level = inner
    raise RecursionError


class _Loader(yaml.SafeLoader):
    """YAML of plain values: a date stays a text, a key that repeats is refused."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Make a mapping, of which no key repeats; its own keys go before those that it merges."""
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == _MERGE:
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, dict | list | set):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key that is a list or a mapping", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {shortened(key)} repeats", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _without(resolvers: dict[Any, Iterable[Any]], tag: str) -> dict[Any, list[Any]]:
    """Return implicit resolvers of YAML without those of a tag."""
    kept = {}
    for first, pairs in resolvers.items():
        kept[first] = [(name, pattern) for name, pattern in pairs if name != tag]
    return kept


_Loader.yaml_implicit_resolvers = _without(yaml.SafeLoader.yaml_implicit_resolvers, _TIMESTAMP)


def _check_size(root: yaml.Node) -> None:
    """Refuse a document that is too deep, or too large with all that its aliases stand for."""
    sizes: dict[int, tuple[int, int]] = {}  # of a node: values in it, and levels below it
    open_nodes: set[int] = set()
    pending: list[tuple[yaml.Node, bool]] = [(root, False)]
    while pending:
        node, is_done = pending.pop()
        key = id(node)
        children = _children(node)
        if is_done:
            open_nodes.discard(key)
            inner = [sizes[id(child)] for child in children]
            n_values = 1 + sum(n for n, _ in inner)
            depth = 1 + max((levels for _, levels in inner), default=0)
            if n_values > _MAX_VALUES:
                raise ValueError(f"more than {_MAX_VALUES:,} values, with those of its aliases")
            if depth > _MAX_DEPTH:
                raise RecursionError
            sizes[key] = (n_values, depth)
        elif key in open_nodes:
            raise ValueError("an alias that contains itself")
        elif key not in sizes:
            open_nodes.add(key)
            pending.append((node, True))
            pending.extend((child, False) for child in children)


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    if isinstance(node, yaml.SequenceNode):
        return list(node.value)
    return []


def _check_finite(content: Any) -> None:
    """Refuse numbers that are not finite, and whole ones of too many digits."""
    pending = [content]
    seen: set[int] = set()  # aliases are one object
    while pending:
        value = pending.pop()
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{value} is no finite number")
        if isinstance(value, int) and abs(value) >= 10**_MAX_DIGITS:
            raise ValueError(f"a whole number of more than {_MAX_DIGITS} digits")
        if id(value) in seen:
            continue
        if isinstance(value, dict):
            seen.add(id(value))
            pending.extend(value.values())
        elif isinstance(value, list):
            seen.add(id(value))
            pending.extend(value)
