"""Reading past zarr gives what zarr gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from terrazzo.corpus.shards import ChunkCache, FlatArray, gather, open_flat
from terrazzo.errors import CorpusError


def written(
    path: Path, values: np.ndarray, chunk: int, shard: int, **options: object
) -> zarr.Array:
    """Write an array as a corpus does."""
    cut = {"chunks": (chunk,), "shards": (chunk * shard,), "config": {"write_empty_chunks": True}}
    array = zarr.create_array(
        path, shape=values.shape, dtype=values.dtype, fill_value=0, **{**cut, **options}
    )
    array[:] = values
    return array


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write an array as a corpus does; equal ones are written once."""
    paths: dict[tuple[bytes, str, int, int], Path] = {}

    def path_of(values: np.ndarray, chunk: int, shard: int) -> Path:
        key = (values.tobytes(), values.dtype.str, chunk, shard)
        if key not in paths:
            paths[key] = tmp_path_factory.mktemp("array") / "a"
            written(paths[key], values, chunk, shard)
        return paths[key]

    return path_of


@given(
    st.integers(1, 200),
    st.integers(1, 20),
    st.integers(1, 5),
    st.integers(0, 220),
    st.integers(0, 220),
    st.sampled_from(["<f4", "<f8", "<i4", "<i8", "<u2"]),
    st.sampled_from(["none", "zstd", "blosc"]),
)
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
    values[: n // 2] = 0
    path = tmp_path_factory.mktemp("array") / "a"
    codec = {
        "none": None,
        "zstd": zarr.codecs.ZstdCodec(),
        "blosc": zarr.codecs.BloscCodec(cname="lz4"),
    }[packed]
    array = written(path, values, chunk, shard, compressors=codec)
    flat = open_flat(path)
    assert isinstance(flat, FlatArray)
    assert flat.shape == array.shape
    got = flat[start:stop]
    assert got.dtype == values.dtype
    np.testing.assert_array_equal(got, values[start:stop])
    np.testing.assert_array_equal(flat[:], values)


@given(
    st.integers(1, 9),
    st.integers(1, 4),
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)), max_size=12),
)
@settings(max_examples=60, deadline=None)
def test_stretches_are_gathered_as_any_type(
    tmp_path_factory: pytest.TempPathFactory,
    stored: Callable[..., Path],
    chunk: int,
    shard: int,
    stretches: list[tuple[int, int]],
) -> None:
    values = np.arange(80, dtype=np.int32)
    other = tmp_path_factory.getbasetemp() / "not-sharded"
    if not other.exists():
        zarr.create_array(other, data=values, chunks=(7,))
    starts = np.array([start for start, _ in stretches], dtype=np.int64)
    stops = starts + np.array([length for _, length in stretches], dtype=np.int64)
    wanted = [
        value for start, stop in zip(starts, stops, strict=True) for value in values[start:stop]
    ]
    for path in (stored(values, chunk, shard), other):
        array = open_flat(path)
        for dtype in (np.int32, np.float32):
            got = gather(array, starts, stops, dtype)
            assert got.dtype == dtype
            assert got.tolist() == wanted


def test_other_arrays_are_left_to_zarr(tmp_path: Path) -> None:
    values = np.arange(40.0)
    zarr.create_array(tmp_path / "unsharded", data=values, chunks=(8,))
    zarr.create_array(tmp_path / "two", data=values.reshape(20, 2), chunks=(4, 2), shards=(8, 2))
    written(tmp_path / "gzip", values, 4, 2, compressors=zarr.codecs.GzipCodec())
    for name in ("unsharded", "two", "gzip"):
        array = open_flat(tmp_path / name)
        assert not isinstance(array, FlatArray)
        np.testing.assert_array_equal(np.ravel(array[:]), values)
    with pytest.raises(CorpusError):
        open_flat(tmp_path / "nothing")


@pytest.mark.parametrize("damage", ["cut", "zeroed", "missing", "empty"])
def test_a_damaged_shard_is_named(tmp_path: Path, damage: str) -> None:
    written(tmp_path / "a", np.arange(100.0), 10, 5)
    path = tmp_path / "a" / "c" / "1"
    content = path.read_bytes()
    if damage == "missing":  # not zeros, as zarr has it
        path.unlink()
    else:
        path.write_bytes(
            {"cut": content[:20], "zeroed": b"\1" * len(content), "empty": b""}[damage]
        )
    flat = open_flat(tmp_path / "a")
    np.testing.assert_array_equal(flat[:50], np.arange(50.0))
    with pytest.raises(CorpusError, match=r"c/1 is damaged"):
        flat[40:60]


def test_a_chunk_that_was_never_written_is_damage(tmp_path: Path) -> None:
    values = np.arange(100.0) * (np.arange(100) // 10 != 6)
    written(tmp_path / "a", values, 10, 5, config={"write_empty_chunks": False})
    flat = open_flat(tmp_path / "a")
    np.testing.assert_array_equal(flat[70:], values[70:])
    with pytest.raises(CorpusError, match=r"c/1 is damaged .*a chunk is missing"):
        flat[60:62]


@given(
    st.integers(1, 9),
    st.integers(1, 4),
    st.integers(0, 60),
    st.lists(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)), max_size=6), max_size=4),
    st.sampled_from(["<f4", "<i4", "<i8"]),
)
@settings(max_examples=60, deadline=None)
def test_cached_chunks_change_nothing(
    stored: Callable[..., Path],
    chunk: int,
    shard: int,
    most: int,
    reads: list[list[tuple[int, int]]],
    dtype: str,
) -> None:
    values = (np.arange(80) * np.where(np.arange(80) % 13 == 4, -70_000, 9)).astype(dtype)
    flat, cache = open_flat(stored(values, chunk, shard)), ChunkCache(most)
    for stretches in reads:  # in any order
        starts = np.array([start for start, _ in stretches], dtype=np.int64)
        stops = starts + np.array([length for _, length in stretches], dtype=np.int64)
        wanted = [
            value for start, stop in zip(starts, stops, strict=True) for value in values[start:stop]
        ]
        assert gather(flat, starts, stops, np.float64, cache).tolist() == wanted
        assert cache.bytes <= most


def test_few_bytes_hold_small_numbers_and_the_oldest_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path / "a", np.arange(100, dtype=np.int32), 10, 5)
    flat, cache = open_flat(tmp_path / "a"), ChunkCache(30)
    assert isinstance(flat, FlatArray)
    decoded: list[int] = []
    decode = flat._decode
    monkeypatch.setattr(
        flat, "_decode", lambda content, out: decoded.append(len(content)) or decode(content, out)
    )

    def read(*chunks: int) -> int:
        """Read chunks; return how many of them were decoded."""
        before = len(decoded)
        for number in chunks:
            got = gather(
                flat, np.array([10 * number]), np.array([10 * number + 10]), np.float32, cache
            )
            np.testing.assert_array_equal(got, np.arange(10 * number, 10 * number + 10))
        return len(decoded) - before

    assert read(0, 1, 2) == 3
    assert cache.bytes == 30  # one each
    assert read(0, 2, 1, 0) == 0
    assert read(3) == 1
    assert cache.bytes == 30
    assert read(0, 1) == 0
    assert read(2) == 1  # was not asked for longest
    assert repr(cache) == "ChunkCache(3 chunks, 30 of 30 bytes)"
    assert repr(flat) == f"FlatArray({str(tmp_path / 'a')!r}, 100 values, int32)"
    gather(flat, np.array([0]), np.array([100]), np.float32)
    assert cache.bytes == 30  # a pass without it leaves it alone
