"""The airlock: read a pickle that holds plain containers and numbers, and nothing that could run code."""

from __future__ import annotations

import collections
import os
import pickle
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from terrazzo.errors import CheckpointError

MAX_BYTES = 512 * 2**20
"""Largest pickle file that is read by default."""

_NUMERIC_DTYPE = re.compile(r"[<>|=]?[biufc]\d{1,2}")
_BROKEN = (
    pickle.UnpicklingError,
    EOFError,
    AttributeError,
    ImportError,
    IndexError,
    KeyError,
    TypeError,
    ValueError,
    OverflowError,
    RecursionError,
    MemoryError,
    struct.error,
)


class _Call:
    """A function that a pickle may call but not alter."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setstate__(self, state: Any) -> NoReturn:
        raise pickle.UnpicklingError("state for a function")


class _Dtype:
    """A numeric dtype in the making: numpy pickles the byte order as state."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype

    def __setstate__(self, state: Any) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        if order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError("unexpected dtype state")
        self.dtype = self.dtype.newbyteorder(order)


def _dtype(name: Any, *_: Any) -> _Dtype:
    if not isinstance(name, str) or _NUMERIC_DTYPE.fullmatch(name) is None:
        raise pickle.UnpicklingError(f"dtype {name!r} is not numeric")
    return _Dtype(np.dtype(name))


def _scalar(dtype: Any, raw: Any) -> Any:
    if (
        not isinstance(dtype, _Dtype)
        or not isinstance(raw, bytes)
        or len(raw) != dtype.dtype.itemsize
    ):
        raise pickle.UnpicklingError("malformed numpy scalar")
    return np.frombuffer(raw, dtype=dtype.dtype)[0].item()


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError("only latin1 bytes are read")
    return text.encode("latin-1")


def _plain(kind: type) -> Callable[..., Any]:
    """Call str, bytes or a number type on what is already one; never on a size (``bytes(10**12)``) or a container."""

    def build(*args: Any) -> Any:
        if kind is bytes and args and not isinstance(args[0], bytes):
            raise pickle.UnpicklingError("bytes of something else than bytes")
        if any(not isinstance(arg, str | bytes | int | float | complex) for arg in args):
            raise pickle.UnpicklingError(f"{kind.__name__} of a container")
        return kind(*args)

    return build


_CONTAINERS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): collections.defaultdict,
    **{("builtins", kind.__name__): kind for kind in (dict, list, set, frozenset, tuple)},
}
_FUNCTIONS: dict[tuple[str, str], Callable[..., Any]] = {
    **{
        ("builtins", kind.__name__): _plain(kind)
        for kind in (int, float, bool, complex, str, bytes)
    },
    ("numpy", "dtype"): _dtype,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("_codecs", "encode"): _encode,
}


class _SafeUnpickler(pickle.Unpickler):
    """Knows builtin containers and numbers, and numpy numbers (which become builtin ones)."""

    def find_class(self, module: str, name: str) -> Any:
        key = ("builtins" if module == "__builtin__" else module, name)
        if key in _CONTAINERS:
            return _CONTAINERS[key]
        if key in _FUNCTIONS:
            return _Call(_FUNCTIONS[key])
        raise CheckpointError(
            f"refused global {module}.{name}: only builtin containers and numbers are read"
        )

    def persistent_load(self, pid: Any) -> NoReturn:
        raise CheckpointError(
            "refused a persistent reference: only builtin containers and numbers are read"
        )


def safe_unpickle(path: str | os.PathLike[str], max_bytes: int = MAX_BYTES) -> Any:
    """Read a pickle of builtin containers, strings and numbers; numpy numbers come back as Python numbers.

    Parameters
    ----------
    path
        The file.
    max_bytes
        Largest file read.

    Raises
    ------
    CheckpointError
        Missing, too large, truncated or damaged file; or one that names anything else (a class, a function): the
        message says what was refused, and nothing of it has run.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist or is not a file")
    size = path.stat().st_size
    if size > max_bytes:
        raise CheckpointError(
            f"{path} has {size} bytes, over the limit of {max_bytes}; it is no gene dictionary"
        )
    try:
        with path.open("rb") as file:
            return _SafeUnpickler(file).load()
    except CheckpointError as error:
        raise CheckpointError(
            f"{path}: {error}; convert it to .csv or .parquet if you trust it"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    except _BROKEN as error:
        raise CheckpointError(f"{path} is damaged, truncated or not a pickle ({error})") from error
