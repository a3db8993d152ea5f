"""The safe unpickler: plain content comes back, everything else is refused before it runs."""

from __future__ import annotations

import collections
import os
import pickle
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from terrazzo.errors import CheckpointError
from terrazzo.safe_pickle import safe_unpickle


class Payload:
    """Creates a file when it is unpickled the usual way."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


class Persistent(pickle.Pickler):
    """Writes a persistent reference."""

    def persistent_id(self, obj: Any) -> Any:
        return "elsewhere" if obj == "x" else None


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_malicious_pickle_is_refused_and_nothing_runs(tmp_path: Path, protocol: int) -> None:
    made, path = tmp_path / "made", tmp_path / "bad.pkl"
    path.write_bytes(pickle.dumps({"a": [1, Payload(made)]}, protocol=protocol))
    with pytest.raises(CheckpointError, match=r"refused global (posix|nt|os)\.mkdir"):
        safe_unpickle(path)
    assert not made.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"cbuiltins\neval\n(V1+1\ntR.", r"refused global builtins\.eval"),
        (b"cbuiltins\ngetattr\n(cbuiltins\ndict\nVfromkeys\ntR.", r"builtins\.getattr"),
        (b"ccollections\n_sys\n.", r"collections\._sys"),
        (b"\x80\x04\x8c\x08builtins\x8c\x08dict.get\x93.", r"builtins\.dict\.get"),
        (b"cbuiltins\nbytes\n(I1000000000000\ntR.", "not a pickle"),
        (b"cnumpy\ndtype\n(VO\ntR.", "not a pickle"),
        (b"cnumpy.core.multiarray\nscalar\n(I1\nI2\ntR.", "not a pickle"),
        (b"cnumpy.core.multiarray\nscalar\n}(V__call__\nI1\nub.", "not a pickle"),
        (b"no pickle at all", "not a pickle"),
        (b"", "truncated"),
    ],
)
def test_hostile_bytes(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.pkl"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        safe_unpickle(path)


def test_other_refusals(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    with pytest.raises(CheckpointError, match="does not exist"):
        safe_unpickle(path)
    for value, name in (
        (Fraction(1, 2), "fractions.Fraction"),
        (np.arange(3), "_reconstruct"),
        (range(3), "range"),
    ):
        path.write_bytes(pickle.dumps(value))
        with pytest.raises(CheckpointError, match=name):
            safe_unpickle(path)
    path.write_bytes(pickle.dumps(collections.defaultdict(os.getcwd)))
    with pytest.raises(CheckpointError, match="getcwd"):
        safe_unpickle(path)
    with path.open("wb") as file:
        Persistent(file).dump({"a": "x"})
    with pytest.raises(CheckpointError, match="persistent"):
        safe_unpickle(path)
    path.write_bytes(pickle.dumps({str(i): i for i in range(100)})[:-30])
    with pytest.raises(CheckpointError, match="damaged, truncated"):
        safe_unpickle(path)
    with pytest.raises(CheckpointError, match="over the limit of 10"):
        safe_unpickle(path, max_bytes=10)


ATOMS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
)
PLAIN = st.recursive(
    ATOMS | st.complex_numbers(allow_nan=False),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text(), inner)
        | st.tuples(inner)
        | st.sets(st.integers())
    ),
    max_leaves=8,
)


@settings(max_examples=40, deadline=None)
@given(PLAIN, st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_plain_content_comes_back(
    tmp_path_factory: pytest.TempPathFactory, content: Any, protocol: int
) -> None:
    path = tmp_path_factory.mktemp("plain") / "a.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    assert safe_unpickle(path) == content


@pytest.mark.parametrize("protocol", [2, 4])
def test_numpy_numbers_become_python_numbers(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "a.pkl"
    numbers = [
        np.int16(-3),
        np.float64(2.5),
        np.float32(0.5),
        np.bool_(True),
        np.uint64(2**63),
        np.dtype(">i4").type(7),
    ]
    ordered = collections.OrderedDict(a=collections.defaultdict(list, {"k": [1]}))
    path.write_bytes(pickle.dumps([numbers, ordered], protocol=protocol))
    back, containers = safe_unpickle(path)
    assert back == numbers
    assert {type(value) for value in back} == {int, float, bool}
    assert containers == ordered
    assert containers["a"]["new"] == []
