"""Windows of a corpus: what a site holds, how a slice is scaled, in which order and by whom windows are read."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from terrazzo import corpus, simulate
from terrazzo.corpus.loader import Shard
from terrazzo.corpus.splits import Splits
from terrazzo.errors import ConfigError, TerrazzoWarning
from terrazzo.expression import SliceScale, log_values, spatial_autocorrelation
from terrazzo.genes import Vocabulary
from terrazzo.slices.grids import grid_of, lay_out
from terrazzo.systems.stimage import sites as sites_module
from terrazzo.systems.stimage.loader import WindowItem, WindowLoader
from terrazzo.systems.stimage.sites import (
    SiteStore,
    member_grid,
    sample_sites,
    site_counts,
    site_scale,
)
from terrazzo.systems.stimage.windows import WindowConfig

ARRAY, BINS = (
    WindowConfig(window=4, channels=8),
    WindowConfig(window=4, channels=8, layout="bin", bin_um=30.0),
)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> corpus.Corpus:
    folder = tmp_path_factory.mktemp("windows")
    for number, adata in enumerate(
        simulate.corpus(4, 90, layout="visium", n_genes=30, seed=2, n_donors=4)
    ):
        adata.write_h5ad(folder / f"v{number}.h5ad")
    splits, quiet = (
        Splits("slice", validation=0.25),
        {"scheduler": "synchronous", "progress": False},
    )
    return corpus.build(
        sorted(folder.glob("*.h5ad")), folder / "corpus", min_genes=0, splits=splits, **quiet
    )


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> corpus.Corpus:
    """Cells without an array, an ST array, and pixels."""
    folder = tmp_path_factory.mktemp("mixed")
    simulate.tissue(300, n_genes=30, name="cells", seed=1).write_h5ad(folder / "cells.h5ad")
    simulate.tissue(60, n_genes=30, name="st", layout="st", seed=2).write_h5ad(folder / "st.h5ad")
    pixels = simulate.tissue(70, n_genes=30, name="pixels", seed=3)
    pixels.uns["technology"] = "unknown"
    pixels.write_h5ad(folder / "pixels.h5ad")
    return corpus.build(
        [folder], folder / "corpus", min_genes=0, scheduler="synchronous", progress=False
    )


def some_genes(held: corpus.Corpus) -> Vocabulary:
    """Return a vocabulary without every third gene, so that totals hold more than what has a token."""
    whole = held.vocabulary()
    kept = np.arange(len(whole)) % 3 > 0
    parts = (whole.ensembl_id, whole.symbol, whole.token, whole.median)
    return Vocabulary(*(p[kept] for p in parts), special=whole.special)


def store_of(held: corpus.Corpus, config: WindowConfig = ARRAY, **options: Any) -> SiteStore:
    return SiteStore(held, some_genes(held), config, options.pop("normalize", "median"), **options)


def loader_of(
    held: corpus.Corpus, make: Any = lambda items, epoch: items, **options: Any
) -> WindowLoader[Any]:
    store = options.pop("store", None) or store_of(held)
    return WindowLoader(
        held, store, make, **{"batch_windows": 4, "windows_per_slice": 5, **options}
    )


def marks(batch: list[WindowItem]) -> list[tuple[str, int, tuple[int, ...]]]:
    return [(item.id, item.number, tuple(item.sites.tolist())) for item in batch]


def test_the_lattice_is_that_of_the_slice(opened: corpus.Corpus, mixed: corpus.Corpus) -> None:
    kinds = set()
    for held, id in [(opened, opened.ids()[0]), *((mixed, i) for i in mixed.ids())]:
        tissue, (lattice, kind) = held.slice(id), held.lattice(id)
        assert kind == tissue.lattice_kind
        assert (lattice is None) == (tissue.lattice is None)
        assert lattice is None or np.array_equal(lattice, tissue.lattice)
        kinds.add(kind)
    assert kinds == {"visium", "st", None}


def test_the_grid_is_that_of_the_slice(opened: corpus.Corpus, mixed: corpus.Corpus) -> None:
    for held, id, config in [(opened, "v0", ARRAY), (mixed, "st", ARRAY), (mixed, "cells", BINS)]:
        ours, theirs = (
            member_grid(held, id, config),
            grid_of(held.slice(id), layout=config.layout, bin_um=config.bin_um),
        )
        assert (ours.shape, ours.layout) == (theirs.shape, theirs.layout)
        assert np.array_equal(ours.site, theirs.site)


def test_bins_without_micrometers_warn(mixed: corpus.Corpus) -> None:
    with pytest.warns(TerrazzoWarning, match="micrometers are not known"):
        member_grid(mixed, "pixels", BINS)


def dense(held: corpus.Corpus, store: SiteStore, id: str) -> tuple[np.ndarray, np.ndarray]:
    """Return counts by token and totals of every occupied site, in the plain way."""
    tissue, token = held.slice(id), store.match(id)[0]
    grid = member_grid(held, id, store.config)
    counts, totals = np.zeros((len(grid.occupied), store.n_tokens)), np.zeros(len(grid.occupied))
    for cell, row in enumerate(tissue.counts.toarray()):
        at = np.searchsorted(grid.occupied, grid.site[cell])
        totals[at] += row.sum()
        np.add.at(counts[at], token[token >= 0], row[token >= 0])
    return counts, totals


@pytest.mark.parametrize("block", [7, 10_000])
@pytest.mark.parametrize("kind", ["array", "bins"])
def test_sites_hold_the_sums_of_their_cells(
    opened: corpus.Corpus,
    mixed: corpus.Corpus,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    block: int,
) -> None:
    held, id, config = (opened, "v1", ARRAY) if kind == "array" else (mixed, "cells", BINS)
    store = store_of(held, config)
    wanted, totals = dense(held, store, id)
    monkeypatch.setattr(sites_module, "BLOCK", block)
    read: list[int] = []
    for name in ("rows", "take"):
        plain = getattr(corpus.Corpus, name)

        def watched(self: Any, *args: Any, plain: Any = plain) -> Any:
            out = plain(self, *args)
            read.append(out.shape[0])
            return out

        monkeypatch.setattr(corpus.Corpus, name, watched)
    grid = member_grid(held, id, config)
    asked = np.append(grid.occupied[::-1], -1)  # in any order, and one beyond the edge
    counts, sums = site_counts(held, id, grid, asked, store.match(id)[0], store.n_tokens)
    np.testing.assert_array_equal(counts.toarray()[:-1][::-1], wanted)
    np.testing.assert_array_equal(sums[:-1][::-1], totals)
    assert sums[-1] == counts[-1].sum() == 0
    for normalize in ("median", "paper"):
        scale = site_scale(held, id, grid, store.match(id)[0], store.n_tokens, normalize)
        plain_scale = SliceScale.fit([sparse.csr_matrix(wanted)], totals, normalize)
        assert scale.total == plain_scale.total
        np.testing.assert_allclose(scale.mean, plain_scale.mean, rtol=1e-6)
        np.testing.assert_allclose(scale.sd, plain_scale.sd, rtol=1e-5, atol=1e-7)
    assert max(read) <= block  # never the whole matrix
    assert (kind == "bins") == (len(grid.occupied) < len(grid.site))


def test_genes_that_share_a_token_are_summed(opened: corpus.Corpus) -> None:
    store, grid = store_of(opened), member_grid(opened, "v0", ARRAY)
    token = store.match("v0")[0].copy()
    first, second = np.flatnonzero(token >= 0)[:2]
    token[second] = token[first]
    counts, _ = site_counts(opened, "v0", grid, grid.occupied, token, store.n_tokens)
    whole = opened.slice("v0").counts.toarray()[np.argsort(grid.site)]
    np.testing.assert_array_equal(
        counts[:, [token[first]]].toarray()[:, 0], whole[:, first] + whole[:, second]
    )


def test_what_is_measured_is_stored_and_made_again_where_damaged(
    opened: corpus.Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = store_of(opened, WindowConfig(window=5))
    scale, near, grid = first.scale("v0"), first.autocorrelation("v0"), first.grid("v0")
    assert near.shape == (first.n_tokens,)
    assert first.n_sites("v0") == len(grid.occupied)
    counts, totals = dense(opened, first, "v0")
    values = log_values(sparse.csr_matrix(counts), scale.total, totals)[:, first.measured("v0")]
    wanted = spatial_autocorrelation(values, grid.places(grid.occupied))
    np.testing.assert_allclose(near[first.measured("v0")], wanted, atol=1e-6)
    assert set(np.flatnonzero(near)) <= set(first.measured("v0").tolist())
    made: list[str] = []
    plain = sites_module.site_scale
    monkeypatch.setattr(
        sites_module, "site_scale", lambda *args: made.append(args[1]) or plain(*args)
    )
    again = store_of(opened, WindowConfig(window=9))  # a window's size changes nothing that is kept
    np.testing.assert_array_equal(again.scale("v0").mean, scale.mean)
    assert (again.grid("v0").shape, again.grid("v0").layout, made) == (grid.shape, "hex", [])
    assert store_of(opened, normalize="paper").scale("v0").total == 1e4
    assert made == ["v0"]
    path = again.path("v0")
    path.write_bytes(path.read_bytes()[:100])
    np.testing.assert_array_equal(store_of(opened).scale("v0").sd, scale.sd)
    assert made == ["v0", "v0"]
    assert not list(path.parent.glob(".*"))


def test_a_window_is_what_its_sites_hold(opened: corpus.Corpus) -> None:
    store = store_of(opened)
    for item in itertools.chain(*loader_of(opened, store=store)):
        wanted, totals = dense(opened, store, item.id)
        grid, window = store.grid(item.id), item.window
        assert item.sites.shape == (16,)
        assert window.present.any()
        assert np.array_equal(window.present, np.isin(item.sites, grid.occupied))
        at = np.searchsorted(grid.occupied, item.sites[window.present])
        counts = window.counts.by_token()
        np.testing.assert_array_equal(counts.toarray()[window.present], wanted[at])
        np.testing.assert_array_equal(window.totals[window.present], totals[at])
        assert counts[~window.present].nnz == window.totals[~window.present].sum() == 0
        inside = item.sites >= 0
        apart = window.places[inside] - grid.places(item.sites[inside])
        np.testing.assert_allclose(
            apart, np.broadcast_to(apart[0], apart.shape), atol=1e-4
        )  # places up to a shift
        assert window.places.min() == 0


def test_only_the_columns_asked_for_are_read(opened: corpus.Corpus) -> None:
    store = store_of(opened)
    few = {
        id: np.where(np.arange(30) < 9, store.match(id)[0], -1).astype(np.int32)
        for id in opened.ids()
    }
    for all_of, some in zip(loader_of(opened), loader_of(opened, token_of=few.get), strict=True):
        for whole, part in zip(all_of, some, strict=True):
            kept = few[whole.id][few[whole.id] >= 0]
            np.testing.assert_array_equal(part.window.totals, whole.window.totals)
            some_of, all_of_them = part.window.counts.by_token(), whole.window.counts.by_token()
            np.testing.assert_array_equal(
                some_of[:, kept].toarray(), all_of_them[:, kept].toarray()
            )
            assert some_of.sum() == all_of_them[:, kept].sum() < all_of_them.sum()


@pytest.mark.parametrize("prefetch", [True, False])
def test_order_depends_on_seed_and_epoch_alone(opened: corpus.Corpus, prefetch: bool) -> None:
    loader = loader_of(opened, prefetch=prefetch)
    first, second = [marks(b) for b in loader], [marks(b) for b in loader]
    assert len(first) == len(loader) == 4
    assert [len(b) for b in first] == [4, 4, 4, 3]
    assert sorted((m[0], m[1]) for b in first for m in b) == sorted(
        itertools.product(opened.ids("train"), range(5))
    )
    assert first != second
    assert {m[2] for b in first for m in b} != {
        m[2] for b in second for m in b
    }  # windows are drawn anew
    assert [marks(b) for b in loader_of(opened)] == first
    assert [marks(b) for b in loader_of(opened, seed=1)] != first


def test_held_out_slices_are_not_read(opened: corpus.Corpus) -> None:
    seen = {
        split: {item.id for b in loader_of(opened, split=split) for item in b}
        for split in ("train", "validation")
    }
    assert seen == {split: set(opened.ids(split)) for split in seen}
    half = {item.id for b in loader_of(opened, share=0.4) for item in b}
    assert len(half) == 1


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_windows_of_one_process(opened: corpus.Corpus, world: int) -> None:
    alone = [marks(b) for b in loader_of(opened, batch_windows=2 * world)]
    ranks = [
        [marks(b) for b in loader_of(opened, batch_windows=2, shard=Shard(r, world))]
        for r in range(world)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    together = [m for batches in ranks for b in batches for m in b]
    assert len(together) == len(set(together)) == 15
    assert set(together) == {m for b in alone for m in b}
    first = [m for batches in ranks for m in batches[0]]
    assert sorted(first) == sorted(
        alone[0]
    )  # a step of all ranks is a step of one with a larger batch


@pytest.mark.parametrize("stop", [1, 3, 4, 6])
def test_another_loader_continues_with_the_very_next_batch(
    opened: corpus.Corpus, stop: int
) -> None:
    whole, loader, left = loader_of(opened), loader_of(opened), loader_of(opened)
    every = [marks(b) for _ in range(3) for b in whole]
    seen = []
    while len(seen) < stop:
        for batch in loader:
            seen.append(marks(batch))
            if len(seen) == stop:
                break
    left.load_state_dict(loader.state_dict())
    rest = [marks(b) for _ in range(2) for b in left]
    assert seen + rest == every[: len(seen) + len(rest)]
    with pytest.raises(ConfigError, match=r"windows_per_slice: 5 then, 4 now"):
        loader_of(opened, windows_per_slice=4).load_state_dict(loader.state_dict())


def test_as_many_windows_as_hold_the_sites_once(opened: corpus.Corpus) -> None:
    loader = loader_of(opened, windows_per_slice=0, batch_windows=1)
    assert len(loader) == 3 * 6  # 90 sites, 16 a window
    small = store_of(opened, WindowConfig(window=40))  # larger than the slices: padded
    windows = [item for b in loader_of(opened, store=small, windows_per_slice=0) for item in b]
    assert len(windows) == 3
    for item in windows:
        assert item.sites.shape == item.window.present.shape == (1600,)
        assert item.window.present.sum() == 90
        assert (item.sites < 0).any()
    with pytest.raises(ConfigError, match="at least 0"):
        loader_of(opened, windows_per_slice=-1)


def test_sites_from_all_over_a_slice(opened: corpus.Corpus) -> None:
    store = store_of(opened)
    drawn: dict[str, set[int]] = {}
    for _ in range(8):
        for item in itertools.chain(*loader_of(opened, store=store, unit="sites", seed=_)):
            assert len(set(item.sites.tolist())) == 16
            assert item.window.present.all()
            drawn.setdefault(item.id, set()).update(item.sites.tolist())
    assert all(drawn[id] == set(store.grid(id).occupied.tolist()) for id in opened.ids("train"))
    large = store_of(opened, WindowConfig(window=10))
    for item in itertools.chain(*loader_of(opened, store=large, unit="sites", windows_per_slice=0)):
        assert (item.sites >= 0).sum() == item.window.present.sum() == 90


def test_batches_are_made_in_the_thread_that_reads(opened: corpus.Corpus) -> None:
    import threading

    names = [
        n
        for b in loader_of(
            opened, lambda items, epoch: [threading.current_thread().name, str(epoch)]
        )
        for n in b
    ]
    assert {n for n in names if n != "0"} == {"terrazzo-loader_0"}


def test_sampled_sites_lie_side_by_side() -> None:
    side = 150
    coords = (
        np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1)
        .reshape(-1, 2)
        .astype(float)
    )
    grid = lay_out(coords, layout="bin", bin_size=1.0)
    assert np.array_equal(sample_sites(grid, side**2), grid.occupied)
    found = sample_sites(grid, 3000)
    assert 0 < len(found) <= 3000
    assert (np.diff(found) > 0).all()
    right = np.isin(found + 1, found).mean()
    assert right > 0.9  # all but those on the right edge of a square
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(sample_sites(grid, 1)) == 1


def test_few_grids_stay_in_memory(opened: corpus.Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sites_module, "KEPT_CELLS", 200)
    store = store_of(opened)
    for id in [*opened.ids(), "v0"]:
        assert len(store.grid(id).site) == 90
    assert list(store._grids) == ["v3", "v0"]


def test_the_files_lie_beside_the_corpus(opened: corpus.Corpus, tmp_path: Path) -> None:
    store = store_of(opened)
    store.measure("v2")
    assert store.path("v2").is_file()
    assert store.path("v2").parent == Path(opened.folder) / "cache" / "sites"
    assert corpus.verify(opened, progress=False) == []
