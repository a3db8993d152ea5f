"""Restricted unpickler: reads plain containers, strings and numbers, and nothing that could run code."""

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

__all__ = ["MAX_BYTES", "safe_unpickle"]

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
    """A function that a pickle may call but not change."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setstate__(self, state: Any) -> NoReturn:
        raise pickle.UnpicklingError("state for a function")


class _Dtype:
    """A numeric dtype that gets its byte order later: numpy pickles it as state."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype

    def __setstate__(self, state: Any) -> None:
        order = None
        if isinstance(state, tuple) and len(state) > 1:
            order = state[1]
        if order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError("unexpected dtype state")
        self.dtype = self.dtype.newbyteorder(order)


def _dtype(name: Any, *_: Any) -> _Dtype:
    """Build a numeric dtype."""
    if not isinstance(name, str) or _NUMERIC_DTYPE.fullmatch(name) is None:
        raise pickle.UnpicklingError(f"dtype {name!r} is not numeric")
    return _Dtype(np.dtype(name))


def _scalar(dtype: Any, raw: Any) -> Any:
    """Build a Python number from the bytes of a numpy one."""
    is_fine = isinstance(dtype, _Dtype) and isinstance(raw, bytes)
    if not is_fine or len(raw) != dtype.dtype.itemsize:
        raise pickle.UnpicklingError("malformed numpy scalar")
    values = np.frombuffer(raw, dtype=dtype.dtype)
    return values[0].item()


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """Build bytes from a text, as pickles of protocol 2 store them."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError("only latin1 bytes are read")
    return text.encode("latin-1")


def _plain(kind: type) -> Callable[..., Any]:
    """Build str, bytes or a number from what is already one; never from a size (``bytes(10**12)``) or a container."""

    def build(*args: Any) -> Any:
        if kind is bytes and args and not isinstance(args[0], bytes):
            raise pickle.UnpicklingError("bytes of something else than bytes")
        for arg in args:
            if not isinstance(arg, str | bytes | int | float | complex):
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
    """Unpickler of builtin containers and numbers, and of numpy numbers (which become builtin ones)."""

    def find_class(self, module: str, name: str) -> Any:
        is_builtin = module in ("builtins", "__builtin__")  # as Python 2 calls it
        key = ("builtins" if is_builtin else module, name)
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
        Missing, too large, truncated or damaged file; or one with anything else (a class, a function): the message
        says what was refused, and nothing of it has run.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist or is not a file")
    size = path.stat().st_size
    if size > max_bytes:
        raise CheckpointError(
            f"{path} has {size} bytes, over the limit of {max_bytes}; it is not a gene dictionary"
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
