"""Random spots: every one once an epoch over all ranks, the same order for all, resumed with the very next batch."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from terrazzo import corpus, simulate
from terrazzo.corpus.loader import Shard
from terrazzo.corpus.splits import Splits
from terrazzo.errors import ConfigError, CorpusError
from terrazzo.systems.stalign.loader import SpotBatch, SpotLoader

SPOTS = 41


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> corpus.Corpus:
    folder = tmp_path_factory.mktemp("spots")
    for number, adata in enumerate(simulate.corpus(4, SPOTS, n_genes=20, seed=2, n_donors=4)):
        adata[: SPOTS - number].copy().write_h5ad(folder / f"s{number}.h5ad")
    splits: dict[str, Any] = {
        "splits": Splits("slice", validation=0.25),
        "scheduler": "synchronous",
    }
    return corpus.build(
        sorted(folder.glob("*.h5ad")), folder / "corpus", min_genes=0, progress=False, **splits
    )


def loader(held: corpus.Corpus, **options: Any) -> SpotLoader[Any]:
    return SpotLoader(
        held, lambda batch, epoch, step: (batch, epoch, step), **{"batch_spots": 8, **options}
    )


def seen(batches: Any, ids: list[str]) -> list[tuple[str, int]]:
    return [
        (ids[m], int(r))
        for batch, _, _ in batches
        for m, r in zip(batch.member, batch.rows, strict=True)
    ]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_spot_once_an_epoch_over_all_ranks(opened: corpus.Corpus, world: int) -> None:
    parts = [loader(opened, shard=Shard(rank, world)) for rank in range(world)]
    assert len({len(part) for part in parts}) == 1
    found = Counter(spot for part in parts for spot in seen(part, part.ids))
    sizes = dict(zip(opened.manifest["id"], opened.manifest["n_cells"], strict=True))
    assert found == Counter((id, row) for id in opened.ids("train") for row in range(sizes[id]))


def test_batches_mix_slices_and_epochs_differ(opened: corpus.Corpus) -> None:
    one = loader(opened)
    first, second = list(one), list(one)
    assert [e for _, e, _ in first] == [0] * len(first)
    assert [s for _, _, s in second] == list(range(len(one)))
    assert all(len(np.unique(batch.member)) > 1 for batch, _, _ in first[:-1])
    assert [b.rows.tolist() for b, _, _ in first] != [b.rows.tolist() for b, _, _ in second]
    again, other = list(loader(opened, prefetch=False)), list(loader(opened, seed=1))
    assert [b.rows.tolist() for b, _, _ in first] == [b.rows.tolist() for b, _, _ in again]
    assert [b.rows.tolist() for b, _, _ in first] != [b.rows.tolist() for b, _, _ in other]


def test_ranks_together_take_what_one_process_takes(opened: corpus.Corpus) -> None:
    alone = list(loader(opened, batch_spots=8))
    both = zip(
        *(loader(opened, batch_spots=4, shard=Shard(rank, 2)) for rank in range(2)), strict=True
    )
    ids = opened.ids("train")
    for whole, parts in zip(alone, both, strict=True):
        assert sorted(seen([whole], ids)) == sorted(seen(parts, ids))


@pytest.mark.parametrize("stop", [0, 3])
def test_another_loader_continues_with_the_very_next_batch(
    opened: corpus.Corpus, stop: int
) -> None:
    ids, wanted, one = opened.ids("train"), list(loader(opened)), loader(opened)
    stream = iter(one)
    for _ in range(stop):
        next(stream)
    two = loader(opened)
    two.load_state_dict(one.state_dict())
    rest = list(two)
    assert seen(rest, ids) == seen(wanted[stop:], ids)
    assert [step for _, _, step in rest] == list(range(stop, len(wanted)))
    with pytest.raises(ConfigError, match="batch: 8 then, 9 now"):
        loader(opened, batch_spots=9).load_state_dict(one.state_dict())


def test_slices_that_are_not_kept_are_not_read(opened: corpus.Corpus) -> None:
    first, *rest = opened.ids("train")
    part = loader(opened, keep=lambda id: id != first)
    assert part.ids == rest
    assert {id for id, _ in seen(part, part.ids)} == set(rest)
    with pytest.raises(
        ConfigError, match="cannot resume"
    ):  # the same spots by number would be others
        part.load_state_dict(loader(opened).state_dict())
    with pytest.raises(CorpusError, match="none can be used"):
        loader(opened, keep=lambda id: False)
    held_out = loader(opened, split="validation")
    assert {id for id, _ in seen(held_out, held_out.ids)} == set(opened.ids("validation"))


def test_whole_batches_only(opened: corpus.Corpus) -> None:
    part = loader(opened, drop_last=True)
    assert {len(batch) for batch, _, _ in part} == {8}
    assert len(part) == opened.n_cells("train") // 8


def test_a_batch_by_slice() -> None:
    batch = SpotBatch(np.array([0, 0, 2]), np.array([4, 7, 1]))
    found = [(member, rows.tolist()) for member, rows in batch.by_slice()]
    assert found == [(0, [4, 7]), (2, [1])]


def test_an_open_corpus_elsewhere(opened: corpus.Corpus, tmp_path: Path) -> None:
    opened.folder.rename(tmp_path / "moved")
    try:
        moved = corpus.Corpus.open(tmp_path / "moved")
        state = loader(moved).state_dict()
        loader(opened).load_state_dict(state)  # a corpus goes by its content
    finally:
        (tmp_path / "moved").rename(opened.folder)
