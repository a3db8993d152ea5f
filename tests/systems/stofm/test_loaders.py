"""What SToFM's loaders promise: every sample once, none of another split, none on two ranks, resumable to the next."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_corpus import HELD_OUT, SIZES, VOCABULARY, MemoryCorpus

from terrazzo.corpus.genes import member_match
from terrazzo.corpus.loader import Shard
from terrazzo.errors import ConfigError, CorpusError
from terrazzo.systems.stofm import subslices
from terrazzo.systems.stofm.cache import CacheKey, EmbeddingCache
from terrazzo.systems.stofm.loaders import CellLoader, SubSliceItem, SubSliceLoader
from terrazzo.systems.stofm.subslices import SubSliceConfig
from terrazzo.systems.stofm.tokens import rank_tokens

CONFIG = SubSliceConfig(subslice_size=10, n_neighbors=4, halo=1.0)
CORPUS: Any = MemoryCorpus(SIZES)
MATCH = member_match(CORPUS, VOCABULARY)
TRAINING = sorted((name, row) for name, n in SIZES.items() if name != HELD_OUT for row in range(n))


def cells(**options: Any) -> CellLoader:
    """Make a small loader of cells."""
    chosen = {"batch_cells": 23, "block": 16, "buffer_blocks": 3, "max_length": 9, **options}
    return CellLoader(CORPUS, MATCH, **chosen)


def names(loader: Any, batch: Any) -> list[tuple[str, int]]:
    """Return slice and row of each cell, or slice and first cell of each sub-slice."""
    if isinstance(batch, list):
        return [(item.id, int(item.sub.cells[0])) for item in batch]
    return [(loader.ids[m], int(r)) for m, r in zip(batch.member, batch.rows, strict=True)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingCache:
    """Store made-up vectors of every slice: the first number of a vector is its row."""
    made = EmbeddingCache(tmp_path_factory.mktemp("cache"), CacheKey("model", CONFIG))
    for member in SIZES:
        features = np.random.default_rng(1).normal(size=(SIZES[member], 6)).astype(np.float32)
        features[:, 0] = np.arange(len(features))
        positions = subslices.model_positions(CORPUS.coords(member), CONFIG, CONFIG.length_scale)
        macro = subslices.macro_scale(features, positions, CONFIG)
        made.write(
            member,
            features,
            macro,
            subslices.split_cells(positions, CONFIG),
            source=f"sha-{member}",
        )
    return made


@pytest.fixture(params=["cells", "sub-slices"])
def make(request: pytest.FixtureRequest, cache: EmbeddingCache) -> Any:
    """Make either loader."""

    def sub(**options: Any) -> SubSliceLoader:
        return SubSliceLoader(CORPUS, cache, CONFIG, **{"batch_slices": 3, **options})

    return cells if request.param == "cells" else sub


def every(make: Any, cache: EmbeddingCache) -> list[tuple[str, int]]:
    """Return all there is to emit."""
    if make is cells:
        return TRAINING
    stored = {m: cache.read(m) for m in SIZES if m != HELD_OUT}
    return sorted((m, int(got.part(i)[0])) for m, got in stored.items() for i in range(got.n_parts))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_sample_once_an_epoch_over_all_ranks(
    make: Any, cache: EmbeddingCache, world: int
) -> None:
    loaders = [make(shard=Shard(rank, world)) for rank in range(world)]
    seen, lengths = [], []
    for loader in loaders:
        batches = [names(loader, batch) for batch in loader]
        assert all(batches), "an empty batch"
        seen += [name for batch in batches for name in batch]
        lengths.append(len(batches))
        assert len(loader) == len(batches)
    assert sorted(seen) == every(make, cache)
    assert len(set(lengths)) == 1


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=4),
    st.integers(2, 20),
    st.integers(1, 30),
    st.integers(1, 5),
    st.integers(1, 3),
    st.booleans(),
)
@settings(max_examples=20, deadline=None)
def test_random_cells_of_any_corpus(
    sizes: list[int], batch: int, block: int, buffer: int, world: int, drop_last: bool
) -> None:
    corpus: Any = MemoryCorpus({f"s{i}": n for i, n in enumerate(sizes)})
    if sum(sizes) < world * (batch if drop_last else 1):
        return
    seen = []
    options = {
        "batch_cells": batch,
        "block": block,
        "buffer_blocks": buffer,
        "drop_last": drop_last,
        "prefetch": False,
    }
    match = member_match(corpus, VOCABULARY)
    for rank in range(world):
        loader = CellLoader(corpus, match, shard=Shard(rank, world), **options)
        for data in loader:
            assert not drop_last or len(data) == batch
            assert len(data.tokens) == len(data)
            seen += names(loader, data)
    assert len(set(seen)) == len(seen) == (len(loader) * batch * world if drop_last else sum(sizes))


def test_tokens_are_those_of_the_cell() -> None:
    loader = cells()
    for batch in loader:
        for i, (member, row) in enumerate(names(loader, batch)):
            expected = rank_tokens(CORPUS.counts[member][row], *MATCH(member), 9)[0]
            np.testing.assert_array_equal(batch.tokens[i], expected)


@pytest.mark.parametrize("prefetch", [False, True])
def test_interrupted_anywhere_it_continues_with_the_next_sample(make: Any, prefetch: bool) -> None:
    whole = make(seed=5)
    stream = [names(whole, batch) for _ in range(2) for batch in whole]
    per_epoch = len(whole)
    assert len(stream) == 2 * per_epoch
    halves = [
        sorted(name for batch in half for name in batch)
        for half in (stream[:per_epoch], stream[per_epoch:])
    ]
    assert halves[0] == halves[1]
    assert stream[:per_epoch] != stream[per_epoch:]
    for stop in range(per_epoch + 2):
        first = make(seed=5, prefetch=prefetch)
        batches = endless(first)
        seen = [names(first, next(batches)) for _ in range(stop)]
        state = first.state_dict()
        batches.close()
        second = make(seed=5, prefetch=prefetch)
        second.load_state_dict(state)
        second.set_epoch(second.epoch)  # what a trainer does at the start of each epoch
        seen += [names(second, batch) for batch in second]
        second.set_epoch(1)
        rest = per_epoch * 2 - len(seen)
        seen += [
            names(second, batch) for batch, _ in zip(endless(second), range(rest), strict=False)
        ]
        assert seen == stream


def endless(loader: Any) -> Iterator[Any]:
    """Go from epoch to epoch."""
    while True:
        yield from loader


def test_state_is_the_same_on_every_rank(make: Any) -> None:
    states = []
    for rank in range(2):
        loader = make(shard=Shard(rank, 2))
        batches = iter(loader)
        next(batches), next(batches)
        states.append(loader.state_dict())
    assert states[0] == states[1]
    assert (states[0]["epoch"], states[0]["step"]) == (0, 2)


def test_epochs_can_be_chosen(make: Any) -> None:
    loader = make()
    first = [names(loader, batch) for batch in loader]
    second = [names(loader, batch) for batch in loader]
    loader.set_epoch(0)
    assert [names(loader, batch) for batch in loader] == first
    assert first != second
    assert [names(loader, batch) for batch in make(seed=1)] != first


def test_another_setting_cannot_resume(make: Any) -> None:
    state = make(seed=1).state_dict()
    with pytest.raises(ConfigError, match=r"seed: 1 then, 2 now"):
        make(seed=2).load_state_dict(state)
    with pytest.raises(ConfigError, match=r"share: 1\.0 then, 0\.5 now"):
        make(seed=1, share=0.5).load_state_dict(state)


def test_another_split_is_never_read(make: Any) -> None:
    loader = make()
    assert HELD_OUT not in loader.ids
    assert all(member != HELD_OUT for batch in loader for member, _ in names(loader, batch))
    with pytest.raises(
        CorpusError, match=r"no slice in the split 'validation'; its splits: test, train"
    ):
        make(split="validation")


def test_a_corpus_that_answers_with_another_split_is_refused(
    monkeypatch: pytest.MonkeyPatch, make: Any
) -> None:
    monkeypatch.setattr(CORPUS, "ids", lambda split=None: list(SIZES))
    with pytest.raises(CorpusError, match="'held' is not of the split 'train'"):
        make()


def test_a_share_is_a_fixed_nested_choice(make: Any) -> None:
    chosen = [
        set(make(share=share, seed=seed).ids)
        for share, seed in ((0.25, 0), (0.5, 1), (0.5, 2), (1.0, 0))
    ]
    assert [len(c) for c in chosen] == [1, 2, 2, 4]
    assert chosen[0] < chosen[1] == chosen[2] < chosen[3]
    loader = make(share=0.5)
    assert {name for batch in loader for name, _ in names(loader, batch)} == chosen[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 0.0}, "share is 0.0"),
        ({"shard": Shard(0, 1000)}, "cannot fill a batch"),
        ({"shard": Shard(0, 500), "drop_last": True}, "drop_last=False"),
    ],
)
def test_impossible_settings(make: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**options)


def test_an_error_while_reading_ahead_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise CorpusError("member a is damaged")

    monkeypatch.setattr(CORPUS, "rows", broken)
    with pytest.raises(CorpusError, match="member a is damaged"):
        list(cells())


def test_a_block_is_read_once_an_epoch() -> None:
    loader = cells(block=8)
    before = CORPUS.reads
    list(loader)
    assert CORPUS.reads - before == sum(-(-n // 8) for name, n in SIZES.items() if name != HELD_OUT)


# Sub-slices


def sub_slices(cache: EmbeddingCache, **options: Any) -> list[SubSliceItem]:
    """Return all sub-slices."""
    return [item for batch in SubSliceLoader(CORPUS, cache, CONFIG, **options) for item in batch]


def test_a_sub_slice_is_that_of_the_whole_slice(cache: EmbeddingCache) -> None:
    for member in ("a", "c"):
        stored = cache.read(member)
        positions = subslices.model_positions(CORPUS.coords(member), CONFIG, CONFIG.length_scale)
        parts = [stored.part(i) for i in range(stored.n_parts)]
        whole = {
            int(s.cells[0]): s
            for s in subslices.iterate(positions, stored.macro.positions, parts, CONFIG)
        }
        found = {int(item.sub.cells[0]): item for item in sub_slices(cache) if item.id == member}
        assert set(found) == set(whole)
        for first, item in found.items():
            for name in ("cells", "positions", "row", "col", "distance"):
                np.testing.assert_array_equal(getattr(item.sub, name), getattr(whole[first], name))
            assert (item.sub.n_core, item.sub.n_virtual) == (
                whole[first].n_core,
                whole[first].n_virtual,
            )
            np.testing.assert_array_equal(item.features, stored.features[item.sub.cells])
            np.testing.assert_array_equal(item.virtual, stored.macro.features)
            assert item.spacing == pytest.approx(10.0 / CONFIG.length_scale)


def test_counts_and_tokens_come_on_request(cache: EmbeddingCache) -> None:
    for item in sub_slices(cache, with_counts=True, match=MATCH, max_length=9):
        expected = CORPUS.counts[item.id][item.sub.cells]
        assert item.counts is not None
        assert (item.counts != expected).nnz == 0
        assert item.tokens is not None
        np.testing.assert_array_equal(
            item.tokens.flat, rank_tokens(expected, *MATCH(item.id), 9).flat
        )
    only = sub_slices(cache, match=MATCH)[0]
    assert only.counts is None
    assert only.tokens is not None
    assert sub_slices(cache)[0].tokens is None


@pytest.mark.parametrize("with_counts", [False, True])
def test_cells_are_tokenized_from_an_epoch_on(
    cache: EmbeddingCache, monkeypatch: pytest.MonkeyPatch, with_counts: bool
) -> None:
    reads: list[str] = []
    take = CORPUS.take
    monkeypatch.setattr(CORPUS, "take", lambda id, rows: (reads.append(id), take(id, rows))[1])
    loader = SubSliceLoader(
        CORPUS, cache, CONFIG, match=MATCH, tokens_from=1, with_counts=with_counts
    )
    always = SubSliceLoader(CORPUS, cache, CONFIG, match=MATCH)
    for epoch in range(3):
        reads.clear()
        items = [item for batch in loader for item in batch]
        assert len(reads) == (len(items) if epoch or with_counts else 0)
        assert {item.counts is None for item in items} == {not with_counts}
        for item, other in zip(items, [item for batch in always for item in batch], strict=True):
            assert (item.id, item.sub.cells.tolist()) == (other.id, other.sub.cells.tolist())
            assert (item.tokens is None) == (epoch == 0)
    resumed = SubSliceLoader(CORPUS, cache, CONFIG, match=MATCH, tokens_from=1)
    resumed.load_state_dict({**loader.state_dict(), "epoch": 1, "step": 1})
    assert all(item.tokens is not None for batch in resumed for item in batch)


def test_ranks_together_take_what_one_process_takes(cache: EmbeddingCache) -> None:
    one = SubSliceLoader(CORPUS, cache, CONFIG, batch_slices=4, drop_last=True)
    two = [
        SubSliceLoader(CORPUS, cache, CONFIG, batch_slices=2, shard=Shard(r, 2), drop_last=True)
        for r in range(2)
    ]
    for batch, left, right in zip(one, *two, strict=True):
        assert names(one, batch) == names(two[0], left) + names(two[1], right)


def test_members_are_opened_again_where_few_may_stay_open(
    cache: EmbeddingCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [item.sub.positions for item in sub_slices(cache)]
    monkeypatch.setattr("terrazzo.systems.stofm.loaders.MOST_OPEN_CELLS", 1)
    loader = SubSliceLoader(CORPUS, cache, CONFIG)
    found = [item.sub.positions for batch in loader for item in batch]
    assert len(loader._open_members) == 1
    for left, right in zip(expected, found, strict=True):
        np.testing.assert_array_equal(left, right)


def test_without_micrometers_the_spacing_is_the_unit(tmp_path: Path) -> None:
    corpus: Any = MemoryCorpus({"a": 30}, unit="pixel")
    config = SubSliceConfig(subslice_size=10, n_neighbors=4, virtual=False)
    made = EmbeddingCache(tmp_path, CacheKey("model", config))
    positions = subslices.model_positions(corpus.coords("a"), config, 10.0)
    features = np.ones((30, 2), dtype=np.float32)
    made.write(
        "a",
        features,
        subslices.macro_scale(features, positions, config, labels=np.zeros(30, dtype=np.int64)),
        subslices.split_cells(positions, config),
        source="sha-a",
    )
    (batch,) = SubSliceLoader(corpus, made, config)
    for item in batch:
        assert item.spacing == pytest.approx(1.0)
        np.testing.assert_allclose(item.sub.positions[1:], positions[item.sub.cells])


def test_a_cache_of_other_settings_or_content_is_refused(
    cache: EmbeddingCache, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="other sub-slice settings"):
        SubSliceLoader(CORPUS, cache, SubSliceConfig(subslice_size=11, n_neighbors=4, halo=1.0))
    SubSliceLoader(
        CORPUS, cache, SubSliceConfig(subslice_size=10, n_neighbors=9)
    )  # decided when a sub-slice is cut
    with pytest.raises(CorpusError, match="4 of 4 slices have no stored embeddings"):
        SubSliceLoader(CORPUS, EmbeddingCache(tmp_path, CacheKey("other", CONFIG)), CONFIG)
    changed: Any = MemoryCorpus(SIZES)
    changed.manifest.loc[0, "sha256"] = "changed"
    with pytest.raises(
        CorpusError, match=r"1 of 4 slices have no stored embeddings of this model, e\.g\. 'a'"
    ):
        SubSliceLoader(changed, cache, CONFIG)


# Reading


def test_cells_come_with_counts_by_token_on_request() -> None:
    for batch in cells(n_tokens=VOCABULARY.n_tokens):
        assert batch.counts is not None
        assert batch.counts.shape == (len(batch), VOCABULARY.n_tokens)
        for i, (member, row) in enumerate(names(cells(), batch)):
            np.testing.assert_array_equal(
                batch.counts[i].toarray()[0, 3:], CORPUS.counts[member][row].toarray()[0]
            )


# The real thing


def test_a_corpus_on_disk(tmp_path: Path) -> None:
    from terrazzo import simulate
    from terrazzo.corpus.build import build
    from terrazzo.corpus.splits import Splits

    paths = [tmp_path / f"s{i}.h5ad" for i in range(3)]
    for path, adata in zip(paths, simulate.corpus(3, 150, n_genes=40, n_donors=3), strict=True):
        adata.write_h5ad(path)
    corpus = build(
        paths, tmp_path / "corpus", min_genes=1, scheduler="synchronous", splits=Splits(test=0.3)
    )
    match = member_match(corpus, corpus.vocabulary())
    config = SubSliceConfig(subslice_size=40, n_neighbors=4)
    made = EmbeddingCache(tmp_path / "cache", CacheKey("model", config))
    whole = {member: corpus.slice(member) for member in corpus.ids("train")}
    for member, tissue in whole.items():
        features = np.random.default_rng(0).normal(size=(tissue.n_cells, 5)).astype(np.float32)
        positions = subslices.model_positions(tissue.coords, config, config.length_scale)
        macro = subslices.macro_scale(
            features, positions, config, labels=np.zeros(tissue.n_cells, dtype=np.int64)
        )
        source = str(corpus.row(member)["sha256"])
        made.write(member, features, macro, subslices.split_cells(positions, config), source=source)
    loader = CellLoader(corpus, match, batch_cells=16, block=32, buffer_blocks=2)
    seen = []
    for batch in loader:
        for i, (member, row) in enumerate(names(loader, batch)):
            seen.append((member, row))
            expected = rank_tokens(whole[member].counts[row], *match(member))[0]
            np.testing.assert_array_equal(batch.tokens[i], expected)
    assert sorted(seen) == sorted(
        (m, row) for m, tissue in whole.items() for row in range(tissue.n_cells)
    )
    found = []
    for batch in SubSliceLoader(corpus, made, config, with_counts=True, batch_slices=3):
        for item in batch:
            found += [(item.id, row) for row in item.sub.cells.tolist()]
            assert (item.counts != whole[item.id].counts[item.sub.cells]).nnz == 0
            np.testing.assert_allclose(item.spacing * config.length_scale, whole[item.id].spacing)
    assert sorted(found) == sorted(seen)
