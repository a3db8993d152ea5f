"""Reading past zarr gives what zarr gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from terrazzo.corpus.shards import FlatArray, open_flat
from terrazzo.errors import CorpusError


def written(path: Path, values: np.ndarray, chunk: int, shard: int, **options: object) -> zarr.Array:
    """Write an array as a corpus does."""
    array = zarr.create_array(
        path, shape=values.shape, dtype=values.dtype, chunks=(chunk,), shards=(chunk * shard,), fill_value=0, **options
    )
    array[:] = values
    return array


@given(
    st.integers(1, 200), st.integers(1, 20), st.integers(1, 5), st.integers(0, 220), st.integers(0, 220),
    st.sampled_from(["<f4", "<f8", "<i4", "<i8", "<u2"]), st.sampled_from(["none", "zstd", "blosc"]),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_slices_are_those_of_zarr(
    tmp_path_factory: pytest.TempPathFactory,
    n: int,
    chunk: int,
    shard: int,
    start: int,
    stop: int,
    dtype: str,
    packed: str,
) -> None:
    values = np.random.default_rng(n).integers(0, 3, n).astype(dtype)
    values[: n // 2] = 0  # whole chunks and shards of nothing are not stored
    path = tmp_path_factory.mktemp("array") / "a"
    codec = {"none": None, "zstd": zarr.codecs.ZstdCodec(), "blosc": zarr.codecs.BloscCodec(cname="lz4")}[packed]
    array = written(path, values, chunk, shard, compressors=codec)
    flat = open_flat(path)
    assert isinstance(flat, FlatArray)
    assert (flat.shape, len(flat)) == (array.shape, n)
    got = flat[start:stop]
    assert got.dtype == values.dtype
    np.testing.assert_array_equal(got, values[start:stop])
    np.testing.assert_array_equal(flat[:], values)


def test_other_arrays_are_left_to_zarr(tmp_path: Path) -> None:
    values = np.arange(40.0)
    zarr.create_array(tmp_path / "unsharded", data=values, chunks=(8,))
    zarr.create_array(tmp_path / "two", data=values.reshape(20, 2), chunks=(4, 2), shards=(8, 2))
    written(tmp_path / "gzip", values, 4, 2, compressors=zarr.codecs.GzipCodec())
    for name in ("unsharded", "two", "gzip"):
        array = open_flat(tmp_path / name)
        assert not isinstance(array, FlatArray)
        np.testing.assert_array_equal(np.ravel(array[:]), values)
    with pytest.raises(FileNotFoundError):
        open_flat(tmp_path / "nothing")


@pytest.mark.parametrize("damage", ["cut", "zeroed"])
def test_a_damaged_shard_is_named(tmp_path: Path, damage: str) -> None:
    written(tmp_path / "a", np.arange(100.0), 10, 5)
    path = tmp_path / "a" / "c" / "1"
    content = path.read_bytes()
    path.write_bytes(content[:20] if damage == "cut" else b"\1" * len(content))
    flat = open_flat(tmp_path / "a")
    np.testing.assert_array_equal(flat[:50], np.arange(50.0))
    with pytest.raises(CorpusError, match=r"c/1 is damaged"):
        flat[40:60]
