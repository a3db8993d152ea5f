"""Stored embeddings: what was written is read, and nothing stale, foreign, half-written or damaged ever is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from terrazzo.errors import CorpusError, OutputError
from terrazzo.systems.stofm import subslices
from terrazzo.systems.stofm.cache import CachedMember, CacheKey, EmbeddingCache
from terrazzo.systems.stofm.subslices import SubSliceConfig
from terrazzo.systems.stofm.virtual_cells import VirtualCells

CONFIG = SubSliceConfig(subslice_size=8)
KEY = CacheKey("model", CONFIG)
FILES = ["features", "labels", "virtual_features", "virtual_positions", "parts", "offsets"]


def made_up(
    n: int = 30, seed: int = 0, d: int = 4
) -> tuple[np.ndarray, VirtualCells, list[np.ndarray]]:
    """Make what is stored of a slice."""
    rng = np.random.default_rng(seed)
    features, positions = rng.normal(size=(n, d)).astype(np.float32), rng.normal(size=(n, 2))
    macro = subslices.macro_scale(features, positions, CONFIG, labels=np.minimum(np.arange(n), 2))
    return features, macro, subslices.split_cells(positions, CONFIG)


def check(got: CachedMember, content: tuple[np.ndarray, VirtualCells, list[np.ndarray]]) -> None:
    features, macro, parts = content
    np.testing.assert_array_equal(got.features, features)
    assert isinstance(got.features, np.memmap)
    assert got.n_parts == len(parts)
    for i, part in enumerate(parts):
        np.testing.assert_array_equal(got.part(i), part)
    for name in ("labels", "features", "positions"):
        np.testing.assert_array_equal(getattr(got.macro, name), getattr(macro, name))


@given(st.integers(1, 60), st.sampled_from(["a", "x/y", "..", ".hidden", "ä 1%", "CON"]))
@settings(max_examples=20, deadline=None)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, n: int, member: str
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    cache, content = EmbeddingCache(folder, KEY), made_up(n)
    assert not cache.has(member)
    cache.write(member, *content, source="sha")
    again = EmbeddingCache(folder, CacheKey("model", SubSliceConfig(subslice_size=8)))
    assert again.has(member)
    assert again.has(member, "sha")
    assert not again.has(member, "other")
    assert again.n_parts(member) == len(content[2])
    check(again.read(member, "sha"), content)
    again.verify(member)
    assert [p.parent.parent for p in folder.rglob("about.json")] == [cache.folder]


def test_vectors_are_read_only(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path, KEY)
    cache.write("a", *made_up())
    with pytest.raises(ValueError, match="read-only"):
        cache.read("a").features[0, 0] = 1


@pytest.mark.parametrize(
    "other",
    [
        CacheKey("retrained", CONFIG),
        CacheKey("model", CONFIG, seed=1),
        CacheKey("model", replace(CONFIG, leiden_resolution=0.5)),
        CacheKey("model", replace(CONFIG, subslice_size=9)),
        CacheKey("model", replace(CONFIG, virtual=False)),
    ],
)
def test_another_model_setting_or_seed_reads_nothing(tmp_path: Path, other: CacheKey) -> None:
    EmbeddingCache(tmp_path, KEY).write("a", *made_up())
    cache = EmbeddingCache(tmp_path, other)
    assert not cache.has("a")
    with pytest.raises(CorpusError, match="a has no stored embeddings"):
        cache.read("a")


def test_what_is_decided_at_cutting_does_not_count() -> None:
    assert (
        CacheKey("model", replace(CONFIG, n_neighbors=3, halo=2.0, pair="full")).digest()
        == KEY.digest()
    )


def test_another_content_of_the_slice_is_refused(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path, KEY)
    cache.write("a", *made_up(), source="old")
    with pytest.raises(CorpusError, match="another content of a"):
        cache.read("a", "new")


def test_writing_again_replaces(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path, KEY)
    cache.write("a", *made_up(30, seed=0))
    content = made_up(20, seed=1)
    cache.write("a", *content)
    check(cache.read("a"), content)
    assert [p.name for p in cache.folder.iterdir()] == ["a"]


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_byte_is_found_and_named(tmp_path: Path, name: str) -> None:
    cache = EmbeddingCache(tmp_path, KEY)
    cache.write("a", *made_up())
    path = cache.path("a") / f"{name}.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorpusError, match=rf"{name}\.npy is damaged"):
        cache.verify("a")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["cut", "gone", "foreign", "pickle"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, damage: str) -> None:
    cache = EmbeddingCache(tmp_path, KEY)
    cache.write("a", *made_up())
    path = cache.path("a") / f"{name}.npy"
    size = path.stat().st_size
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-8])
    elif damage == "gone":
        path.unlink()
    elif damage == "foreign":
        path.write_bytes(b"x" * size)
    else:
        np.save(path, np.array([{"a": 1}], dtype=object))
        path.write_bytes(path.read_bytes()[:size].ljust(size))
    with pytest.raises(CorpusError, match=rf"{name}\.npy"):
        cache.read("a")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("{", "about.json is damaged"),
        ("[]", "about.json is damaged"),
        ({"files": {}}, "does not list the arrays"),
        ({"files": 3}, "about.json is damaged"),
        ({"key": "0" * 24}, "belongs to another model"),
        ({"member": "b"}, "belongs to another model"),
    ],
)
def test_a_damaged_or_foreign_record_is_named(tmp_path: Path, change: Any, message: str) -> None:
    cache = EmbeddingCache(tmp_path, KEY)
    cache.write("a", *made_up())
    path = cache.path("a") / "about.json"
    text = (
        change
        if isinstance(change, str)
        else json.dumps({**json.loads(path.read_text()), **change})
    )
    path.write_text(text)
    with pytest.raises(CorpusError, match=message):
        cache.read("a")


@pytest.mark.parametrize("place", ["systems.stofm.cache._save", "files._swap"])
def test_a_failed_write_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    cache, content = EmbeddingCache(tmp_path, KEY), made_up()
    cache.write("a", *content)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"terrazzo.{place}", full)
    for member in ("a", "b"):
        with pytest.raises(OutputError, match="No space left on device"):
            cache.write(member, *made_up(20, seed=1))
    assert not cache.has("b")
    check(cache.read("a"), content)
    assert [p.name for p in cache.folder.iterdir()] == ["a"]


def test_a_writer_that_died_leaves_nothing_that_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = EmbeddingCache(tmp_path, KEY)
    with monkeypatch.context() as dying:
        dying.setattr(
            "terrazzo.files.shutil.rmtree", lambda *_, **__: None
        )  # as with kill -9: nobody tidies
        dying.setattr(
            "terrazzo.files._swap",
            lambda *_: (_ for _ in ()).throw(KeyboardInterrupt),
        )
        with pytest.raises(KeyboardInterrupt):
            cache.write("a", *made_up())
    assert not cache.has("a")
    content = made_up()
    cache.write("a", *content)
    check(cache.read("a"), content)


def test_parts_that_do_not_cover_the_slice_are_refused(tmp_path: Path) -> None:
    features, macro, parts = made_up()
    for wrong in (parts[1:], [*parts[1:], parts[1]], [*parts, parts[0]]):
        with pytest.raises(CorpusError, match="do not cover its 30 cells exactly once"):
            EmbeddingCache(tmp_path, KEY).write("a", features, macro, wrong)
    with pytest.raises(CorpusError, match="do not cover"):
        EmbeddingCache(tmp_path, KEY).write("a", features[1:], macro, parts)
    assert not list(tmp_path.iterdir())
