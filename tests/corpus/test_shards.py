"""Reading past zarr gives what zarr gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from terrazzo.corpus.shards import FlatArray, KeptChunks, gather, open_flat
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
    chunk: int,
    shard: int,
    stretches: list[tuple[int, int]],
) -> None:
    values = np.arange(80, dtype=np.int32)
    path = tmp_path_factory.mktemp("array")
    written(path / "ours", values, chunk, shard)
    zarr.create_array(path / "zarr's", data=values, chunks=(chunk,))
    starts = np.array([start for start, _ in stretches], dtype=np.int64)
    stops = starts + np.array([length for _, length in stretches], dtype=np.int64)
    wanted = [
        value for start, stop in zip(starts, stops, strict=True) for value in values[start:stop]
    ]
    for name in ("ours", "zarr's"):
        for dtype in (np.int32, np.float32):
            got = gather(open_flat(path / name), starts, stops, dtype)
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
    with pytest.raises(FileNotFoundError):
        open_flat(tmp_path / "nothing")


@pytest.mark.parametrize("damage", ["cut", "zeroed", "gone", "empty"])
def test_a_damaged_shard_is_named(tmp_path: Path, damage: str) -> None:
    written(tmp_path / "a", np.arange(100.0), 10, 5)
    path = tmp_path / "a" / "c" / "1"
    content = path.read_bytes()
    if damage == "gone":  # not zeros, as zarr has it
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
def test_kept_chunks_change_nothing(
    tmp_path_factory: pytest.TempPathFactory,
    chunk: int,
    shard: int,
    most: int,
    reads: list[list[tuple[int, int]]],
    dtype: str,
) -> None:
    values = (np.arange(80) * np.where(np.arange(80) % 13 == 4, -70_000, 9)).astype(dtype)
    path = tmp_path_factory.mktemp("array") / "a"
    written(path, values, chunk, shard)
    flat, kept = open_flat(path), KeptChunks(most)
    for stretches in reads:  # in any order
        starts = np.array([start for start, _ in stretches], dtype=np.int64)
        stops = starts + np.array([length for _, length in stretches], dtype=np.int64)
        wanted = [
            value for start, stop in zip(starts, stops, strict=True) for value in values[start:stop]
        ]
        assert gather(flat, starts, stops, np.float64, kept).tolist() == wanted
        assert kept.bytes <= most


def test_few_bytes_hold_small_numbers_and_the_oldest_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path / "a", np.arange(100, dtype=np.int32), 10, 5)
    flat, kept = open_flat(tmp_path / "a"), KeptChunks(30)
    assert isinstance(flat, FlatArray)
    decoded: list[int] = []
    unpack = flat._unpack
    monkeypatch.setattr(
        flat, "_unpack", lambda content, out: decoded.append(len(content)) or unpack(content, out)
    )

    def read(*chunks: int) -> int:
        """Read chunks; return how many of them were decoded."""
        before = len(decoded)
        for number in chunks:
            got = gather(
                flat, np.array([10 * number]), np.array([10 * number + 10]), np.float32, kept
            )
            np.testing.assert_array_equal(got, np.arange(10 * number, 10 * number + 10))
        return len(decoded) - before

    assert read(0, 1, 2) == 3
    assert kept.bytes == 30  # one each
    assert read(0, 2, 1, 0) == 0
    assert read(3) == 1
    assert kept.bytes == 30
    assert read(0, 1) == 0
    assert read(2) == 1  # was not asked for longest
    gather(flat, np.array([0]), np.array([100]), np.float32)
    assert kept.bytes == 30  # a pass without it leaves it alone
