"""What all loaders share: members of a split, shares of processes, streams of random numbers, order and state."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_corpus import HELD_OUT, IDS, N_GENES, SIZES, VOCABULARY, MemoryCorpus
from scipy import sparse

from terrazzo.corpus.genes import columns_by_token, member_match
from terrazzo.corpus.loader import BlockLoader, ItemLoader, Members, Shard, Shares, Stream, spread
from terrazzo.errors import ConfigError, CorpusError, GeneError
from terrazzo.genes import Vocabulary

CORPUS: Any = MemoryCorpus(SIZES)
N_ROWS = sum(n for name, n in SIZES.items() if name != HELD_OUT)


def test_streams_keep_their_numbers() -> None:
    """Results depend on them: none may ever change, and a new one takes a new number."""
    assert {stream.name: stream.value for stream in Stream} == {
        "BLOCK_ORDER": 1,
        "CELL_ORDER": 2,
        "SUBSLICE_ORDER": 3,
        "WINDOW_ORDER": 4,
        "WINDOW_PLACE": 5,
        "HIDING": 6,
        "SPOT_ORDER": 7,
        "TURNING": 8,
    }


@pytest.mark.parametrize(("rank", "world"), [(2, 2), (-1, 2), (0, 0)])
def test_impossible_shards(rank: int, world: int) -> None:
    with pytest.raises(ConfigError, match=rf"rank is {rank}; .* below world \({world}\)"):
        Shard(rank, world)


@given(st.integers(1, 500), st.integers(1, 40), st.integers(1, 7), st.booleans())
@settings(max_examples=300, deadline=None)
def test_shares_cover_all_once_in_equally_many_batches(
    n: int, batch: int, world: int, drop_last: bool
) -> None:
    try:
        shares = Shares(n, batch, world, drop_last)
    except ConfigError:
        assert n < world or (drop_last and n < batch * world) or (batch == 1 and n % world)
        return
    both: list[list[int]] = [[], []]
    for rank in range(world):
        start, stop = shares.segment(rank)
        assert stop - start == shares.bound(rank, shares.steps)
        both[0] += range(start, stop)
        for step in range(shares.steps):
            size = shares.bound(rank, step + 1) - shares.bound(rank, step)
            low, high = shares.span(rank, step)
            assert size == high - low
            assert size == batch if drop_last or step < shares.steps - 2 else 0 < size <= batch
            both[1] += range(low, high)
    used = shares.steps * batch * world if drop_last else n
    assert sorted(both[0]) == sorted(both[1]) == list(range(used))
    assert n - used < batch * world


# Members of a split


def test_a_share_is_a_fixed_nested_choice() -> None:
    chosen = [set(Members(CORPUS, "train", share).ids) for share in (0.25, 0.5, 0.5, 1.0)]
    assert [len(c) for c in chosen] == [1, 2, 2, 4]
    assert chosen[0] < chosen[1] == chosen[2] < chosen[3]
    for share in (0.0, 1.5):
        with pytest.raises(ConfigError, match=f"share is {share}"):
            Members(CORPUS, "train", share)


def test_members_of_a_split_and_no_other() -> None:
    members = Members(CORPUS, "train")
    assert members.ids == [name for name in SIZES if name != HELD_OUT]
    assert members.n_cells.tolist() == [SIZES[name] for name in members.ids]
    assert Members(CORPUS, "train", keep=lambda name: name in "bd").ids == ["b", "d"]
    with pytest.raises(CorpusError, match="of the 4 slices of the split 'train' none can be used"):
        Members(CORPUS, "train", keep=lambda name: False)
    with pytest.raises(
        CorpusError, match=r"no slice in the split 'validation'; its splits: test, train"
    ):
        Members(CORPUS, "validation")


def test_a_corpus_that_answers_with_another_split_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(CORPUS, "ids", lambda split=None: list(SIZES))
    with pytest.raises(CorpusError, match="'held' is not of the split 'train'"):
        Members(CORPUS, "train")


def test_slices_from_all_over_a_list() -> None:
    few = [f"s{i}" for i in range(9)]
    assert spread(few) == few
    many = [f"s{i}" for i in range(1000)]
    some = [int(name[1:]) for name in spread(many)]
    assert len(some) == 64
    assert (some[0], some[-1]) == (0, 999)
    assert max(np.diff(some)) <= 16


# Order and state, on the least that a loader can be


def items(**options: Any) -> ItemLoader[Any]:
    """Return a loader of the numbers 0 to 100."""
    return ItemLoader(
        101,
        8,
        Stream.SPOT_ORDER,
        lambda numbers, epoch, step: numbers.tolist(),
        **{
            "members": Members(CORPUS, "train"),
            "shard": Shard(),
            "seed": 0,
            "settings": {},
            **options,
        },
    )


class Rows(BlockLoader[Any]):
    """Loader of (member, row) of all training cells."""

    def __init__(self, **options: Any) -> None:
        defaults = {
            "members": Members(CORPUS, "train"),
            "shard": Shard(),
            "seed": 0,
            "settings": {},
        }
        super().__init__(16, 3, 8, **{**defaults, **options})

    def read_block(self, member: int, start: int, stop: int) -> list[tuple[int, int]]:
        return [(member, row) for row in range(start, stop)]

    def mix(self, blocks: list[list[tuple[int, int]]]) -> list[tuple[int, int]]:
        return [row for block in blocks for row in block]

    def take(self, mixed: list[tuple[int, int]], rows: np.ndarray) -> list[tuple[int, int]]:
        return [mixed[i] for i in rows]

    def join(self, parts: list[list[tuple[int, int]]]) -> list[tuple[int, int]]:
        return [row for part in parts for row in part]


both_kinds = pytest.mark.parametrize(
    ("make", "n"), [(items, 101), (Rows, N_ROWS)], ids=["items", "blocks"]
)


@both_kinds
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("world", [1, 3])
def test_every_sample_at_most_once_an_epoch_in_equally_many_batches(
    make: Any, n: int, world: int, drop_last: bool
) -> None:
    loaders = [make(shard=Shard(rank, world), drop_last=drop_last) for rank in range(world)]
    epochs = []
    for epoch in range(2):
        assert {loader.epoch for loader in loaders} == {epoch}
        batches = [list(loader) for loader in loaders]
        assert {len(one) for one in batches} == {len(loaders[0])}
        seen = Counter(sample for one in batches for batch in one for sample in batch)
        assert set(seen.values()) == {1}
        assert len(seen) == (n // (8 * world) * 8 * world if drop_last else n)
        epochs.append(batches)
    assert epochs[0] != epochs[1]


@both_kinds
def test_another_loader_continues_with_the_very_next_batch(make: Any, n: int) -> None:
    whole = make()
    every = [batch for _ in range(2) for batch in whole]
    first = make()
    batches = iter(first)
    seen = [next(batches) for _ in range(5)]
    other = make(prefetch=False)
    other.load_state_dict(first.state_dict())
    seen += [batch for _ in range(2) for batch in other]
    assert seen == every
    with pytest.raises(ConfigError, match="its settings differ: seed: 0 then, 1 now"):
        make(seed=1).load_state_dict(first.state_dict())


@both_kinds
def test_batches_are_collated_where_they_are_asked_for(make: Any, n: int) -> None:
    def collate(batch: Any, epoch: int, step: int) -> Any:
        return batch, epoch, step, threading.current_thread()

    plain = [list(loader) for loader in [make()] for _ in range(2)]
    loader = make(collate=collate)
    for epoch in range(2):
        found = list(loader)
        assert [one[0] for one in found] == plain[epoch]
        assert [one[1:] for one in found] == [
            (epoch, step, threading.current_thread()) for step in range(len(found))
        ]


@pytest.mark.parametrize("sizes", [(0, 3), (16, 0)])
def test_blocks_hold_rows(sizes: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="block and buffer_blocks must be at least 1"):
        BlockLoader(*sizes, 8, members=Members(CORPUS, "train"), shard=Shard(), seed=0, settings={})


# Genes of a member


def test_counts_by_token() -> None:
    counts = sparse.csr_matrix(
        np.array([[1, 2, 0, 4], [0, 0, 3, 0], [5, 0, 0, 1]], dtype=np.float32)
    )
    got = columns_by_token(counts, np.array([4, -1, 3, 4], dtype=np.int32), 6)
    np.testing.assert_array_equal(
        got.toarray(), [[0, 0, 0, 0, 5, 0], [0, 0, 0, 3, 0, 0], [0, 0, 0, 0, 6, 0]]
    )
    assert got.has_canonical_format


def test_a_member_is_matched_once_and_shares_its_columns() -> None:
    match = member_match(CORPUS, VOCABULARY)
    before = CORPUS.reads
    token, median = match("a")
    assert match("a")[0] is token
    assert match("b")[0] is token
    assert CORPUS.reads - before == 2
    np.testing.assert_array_equal(token, np.arange(3, 3 + N_GENES))
    np.testing.assert_array_equal(median, np.ones(N_GENES))


def test_a_member_that_does_not_meet_the_vocabulary_is_named() -> None:
    foreign = Vocabulary(np.array(["ENSG99900000001"]), np.array(["X1"]), np.array([3]), np.ones(1))
    assert foreign.ensembl_id[0] not in IDS
    with pytest.raises(GeneError, match="slice 'a' "):
        member_match(CORPUS, foreign)("a")
