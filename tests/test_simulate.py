"""Simulated tissue: its truth can be found again, its numbers look like tissue, and the same seed gives the same."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from scipy.spatial import cKDTree
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score

from terrazzo.errors import ConfigError
from terrazzo.images import TissueImage
from terrazzo.simulate import corpus, tissue

LAYOUTS = ("cells", "visium", "st")


@pytest.fixture(scope="module")
def slices():
    return {
        "cells": tissue(1000, seed=1, image=True, image_px=500),
        "visium": tissue(600, layout="visium", seed=1, image=True, image_px=500),
        "st": tissue(300, layout="st", seed=1, image=True, image_px=500),
    }


def log_shares(adata):
    counts = adata.X.toarray()
    total = np.maximum(counts.sum(1, keepdims=True), 1)
    return np.log1p(counts / total * np.median(total))


def types_found(train, test):
    model = LogisticRegression(max_iter=200, tol=1e-2).fit(
        log_shares(train), train.obs["cell_type"]
    )
    return model.score(log_shares(test), test.obs["cell_type"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_form(slices, layout):
    adata = slices[layout]
    assert sp.issparse(adata.X)
    assert adata.X.format == "csr"
    assert adata.X.dtype == np.float32
    assert adata.X.has_sorted_indices
    assert (adata.X.data >= 1).all()
    np.testing.assert_array_equal(adata.X.data, np.rint(adata.X.data))
    assert not adata.layers
    assert adata.obs_names.is_unique
    assert adata.var_names.is_unique
    assert adata.var["ensembl_id"].str.fullmatch(r"ENSG\d{11}").all()
    assert adata.obsm["spatial"].dtype == np.float64
    assert np.isfinite(adata.obsm["spatial"]).all()
    assert adata.obsm["spatial"].min() > 0
    assert set(adata.obs["region"]) == {f"region_{i}" for i in range(1, 6)}
    assert adata.uns["technology"] == {"cells": "MERFISH", "visium": "Visium", "st": "ST"}[layout]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_seed_same_slice(layout):
    def same(a, b):
        return (
            a.X.shape == b.X.shape
            and (a.X != b.X).nnz == 0
            and (a.obsm["spatial"] == b.obsm["spatial"]).all()
        )

    one = tissue(150, layout=layout, seed=3)
    again = tissue(
        150, layout=layout, seed=3, image=True, image_px=60
    )  # the drawing changes nothing else
    assert same(one, again)
    assert one.obs.equals(again.obs)
    assert not same(one, tissue(150, layout=layout, seed=4))
    picture = again.uns["spatial"]["tissue"]["images"]["hires"]
    twin = tissue(150, layout=layout, seed=3, image=True, image_px=60).uns["spatial"]["tissue"][
        "images"
    ]["hires"]
    np.testing.assert_array_equal(picture, twin)


def test_seed_moves_cells_and_atlas_seed_moves_genes():
    one, other = tissue(50, seed=1), tissue(50, seed=2)
    assert (one.var == other.var).all(axis=None)
    assert not (one.obsm["spatial"] == other.obsm["spatial"]).all()
    moved = tissue(50, seed=1, atlas_seed=1)
    assert not (one.var["marker_of"] == moved.var["marker_of"]).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_regions_can_be_found(slices, layout):
    adata = slices[layout]
    scores = PCA(20, random_state=0).fit_transform(log_shares(adata))
    k = 30 if layout == "cells" else 7
    near = cKDTree(adata.obsm["spatial"]).query(adata.obsm["spatial"], k)[1]
    found = KMeans(5, n_init=5, random_state=0).fit_predict(scores[near].mean(1))
    assert adjusted_rand_score(adata.obs["region"], found) > 0.4


def test_cell_types_can_be_found(slices):
    adata = slices["cells"]
    assert types_found(adata[:700], adata[700:]) > 0.75
    assert adata.obs["cell_type"].value_counts(normalize=True).max() < 0.35


def test_markers_and_programs_are_up(slices):
    adata = slices["cells"]
    shares = np.expm1(log_shares(adata))
    for column, key in (("marker_of", "cell_type"), ("program_of", "region")):
        ratios = [
            shares[adata.obs[key] == label][:, adata.var[column] == label].mean()
            / shares[adata.obs[key] != label][:, adata.var[column] == label].mean()
            for label in adata.obs[key].cat.categories
        ]
        assert np.median(ratios) > (3 if column == "marker_of" else 1.2)


@pytest.mark.parametrize(
    ("options", "total", "detected"),
    [
        (
            {},
            (120, 180),
            (55, 90),
        ),  # Xenium breast, 380 genes: 145, 63; seqFISH, 351 genes: 209, 102
        ({"n_genes": 18_000}, (900, 1200), (600, 850)),
        ({"layout": "visium", "n_genes": 3000}, (4500, 5500), (800, 1500)),
        (
            {"layout": "visium", "n_genes": 8513, "depth": 1449},
            (1300, 1600),
            (700, 950),
        ),  # DLPFC 151673: 1449, 831
        (
            {"layout": "st", "n_genes": 15_045, "depth": 4291},
            (3900, 4700),
            (1900, 2500),
        ),  # HER2 A1: 4291, 2345
    ],
)
def test_depth_looks_like_tissue(options, total, detected):
    adata = tissue(400, seed=2, **options)
    assert total[0] < np.median(np.asarray(adata.X.sum(1))) < total[1]
    assert detected[0] < np.median(np.diff(adata.X.indptr)) < detected[1]


def test_a_few_cells_are_nearly_empty():
    totals = np.asarray(tissue(3000, seed=5).X.sum(1)).ravel()
    assert 0.002 < (totals < 15).mean() < 0.03


def test_counts_are_overdispersed():
    adata = tissue(2000, n_types=1, n_regions=1, seed=1, depth=2000.0)
    counts = adata.X.toarray()
    mean, variance = counts.mean(0), counts.var(0)
    rich = mean > 5
    assert np.median(variance[rich] / mean[rich]) > 2
    assert counts.max() > 60  # the part of the sampler for large means was reached


@pytest.mark.parametrize(
    ("layout", "pitch", "spot"), [("visium", 100.0, 55.0), ("st", 200.0, 100.0)]
)
def test_lattice(slices, layout, pitch, spot):
    adata = slices[layout]
    row, col = adata.obs["array_row"].to_numpy(), adata.obs["array_col"].to_numpy()
    assert min(row.min(), col.min()) >= 0
    assert len(set(zip(row, col, strict=True))) == adata.n_obs
    microns = adata.uns["simulation"]["microns_per_pixel"]
    assert 0.4 < microns < 0.6
    xy = adata.obsm["spatial"] * microns
    np.testing.assert_allclose(cKDTree(xy).query(xy, 2)[0][:, 1], pitch, rtol=1e-6)
    grid = (
        np.stack([col * 50.0, row * 50.0 * 3**0.5], 1)
        if layout == "visium"
        else np.stack([col, row], 1) * 200.0
    )
    np.testing.assert_allclose(cKDTree(grid).query(grid, 2)[0][:, 1], pitch, rtol=1e-6)
    if layout == "visium":
        assert ((row + col) % 2 == 0).all()
    # x grows with the column and y with the row: a small rotation, no mirror
    fit, *_ = np.linalg.lstsq(grid - grid.mean(0), xy - xy.mean(0), rcond=None)
    assert np.linalg.det(fit) == pytest.approx(1.0)
    assert fit[0, 0] > 0.99
    diameter = adata.uns["spatial"]["tissue"]["scalefactors"]["spot_diameter_fullres"]
    assert diameter * microns == pytest.approx(spot)


def test_cells_have_no_lattice(slices):
    assert "array_row" not in slices["cells"].obs
    assert "proportions" not in slices["cells"].obsm
    xy = slices["cells"].obsm["spatial"]
    assert 4 < np.median(cKDTree(xy).query(xy, 2)[0][:, 1]) < 15


@pytest.mark.parametrize("layout", ["visium", "st"])
def test_proportions(slices, layout):
    adata = slices[layout]
    share = adata.obsm["proportions"]
    np.testing.assert_allclose(share.sum(1), 1.0)
    assert list(adata.uns["proportions_names"]) == list(adata.obs["cell_type"].cat.categories)
    np.testing.assert_array_equal(adata.obs["cell_type"].cat.codes, share.argmax(1))
    genes = {t: (adata.var["marker_of"] == t).to_numpy() for t in adata.uns["proportions_names"]}
    marked = [np.asarray(adata.X[:, mask].sum(1)).ravel() for mask in genes.values()]
    marked = np.stack(marked, 1) / np.asarray(adata.X.sum(1))
    assert (
        np.median([np.corrcoef(marked[:, i], share[:, i])[0, 1] for i in range(share.shape[1])])
        > 0.6
    )


def test_corpus_shares_programs_not_geometry():
    first, second, third, fourth = corpus(4, 500, seed=7, n_genes=200)
    for adata in (second, third, fourth):
        assert adata.var.equals(first.var)
        assert not (adata.obsm["spatial"] == first.obsm["spatial"]).all()
    assert types_found(first, second) > 0.7
    assert [a.obs["donor"].iloc[0] for a in (first, second, third, fourth)] == [
        "donor_1",
        "donor_2",
    ] * 2
    assert first.obs_names.intersection(second.obs_names).empty
    again = corpus(4, 500, seed=7, n_genes=200)[2]
    assert (again.X != third.X).nnz == 0
    (other,) = corpus(1, 500, seed=7, n_genes=200, atlas_seed=5)
    assert types_found(first, other) < 0.4


def test_batch_shifts_genes():
    def means(batch):
        return log_shares(tissue(800, seed=1, n_genes=100, batch=batch)).mean(0)

    assert np.abs(means(0.0) - means(0.5)).mean() > 3 * np.abs(means(0.0) - means(0.02)).mean()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_image_lies_on_the_tissue(slices, layout):
    adata = slices[layout]
    entry = adata.uns["spatial"]["tissue"]
    factors, pixels = entry["scalefactors"], entry["images"]["hires"]
    scale = factors["tissue_hires_scalef"]
    assert max(pixels.shape[:2]) == 500
    image = TissueImage(pixels, factors["microns_per_pixel"] / scale, scale)
    xy = adata.obsm["spatial"]
    at = np.stack([image.crop(x, y, size_px=1)[0, 0] for x, y in xy]).astype(int)
    assert (at[:, 1] < 225).mean() > 0.97  # stained, not glass
    for corner in (pixels[:8, :8], pixels[-8:, :8], pixels[:8, -8:], pixels[-8:, -8:]):
        assert corner.min() > 240
    cols, rows = np.meshgrid(np.arange(0, pixels.shape[1], 5), np.arange(0, pixels.shape[0], 5))
    points = (np.stack([cols.ravel(), rows.ravel()], 1) + 0.5) / scale
    away = cKDTree(xy).query(points)[0] > 0.12 * np.ptp(xy, axis=0).max()
    assert away.sum() > 50
    assert pixels[rows.ravel()[away], cols.ravel()[away]].min() > 240
    tissue_pixels = pixels[pixels.min(2) < 240].astype(int)
    assert (tissue_pixels[:, 0] > tissue_pixels[:, 1]).mean() > 0.95  # pink and purple
    if layout == "cells":
        assert at[:, 0].mean() < tissue_pixels[:, 0].mean() - 50  # nuclei are where the cells are


def test_mouse_and_real_genes():
    mouse = tissue(20, organism="mouse", n_genes=12)
    assert mouse.var["ensembl_id"].str.fullmatch(r"ENSMUSG\d{11}").all()
    assert mouse.var_names.str.istitle().all()
    ids = [f"ENSG{i:011d}" for i in (141510, 146648, 136997)]
    named = tissue(20, gene_ids=ids, gene_symbols=["TP53", "EGFR", "MYC"], technology="Xenium")
    assert list(named.var_names) == ["TP53", "EGFR", "MYC"]
    assert list(named.var["ensembl_id"]) == ids
    assert named.uns["technology"] == "Xenium"
    assert list(tissue(5, gene_ids=ids).var_names) == ids


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("n", [1, 2, 7, 333])
def test_any_size_gives_exactly_that_many_rows(layout, n):
    adata = tissue(
        n, layout=layout, n_genes=3, n_regions=2, n_types=1, shape="square", image=True, image_px=40
    )
    assert adata.shape == (n, 3)
    assert adata.uns["spatial"]["tissue"]["images"]["hires"].dtype == np.uint8


@pytest.mark.parametrize("layout", LAYOUTS)
def test_survives_h5ad(tmp_path, slices, layout):
    adata = slices[layout]
    adata.write_h5ad(tmp_path / "a.h5ad")
    back = ad.read_h5ad(tmp_path / "a.h5ad")
    assert (back.X != adata.X).nnz == 0
    assert back.obs["region"].equals(adata.obs["region"])
    assert set(back.uns) == set(adata.uns)
    assert dict(back.uns["simulation"]) == adata.uns["simulation"]
    for key in adata.obsm:
        np.testing.assert_array_equal(back.obsm[key], adata.obsm[key])
    hires = "spatial", "tissue", "images", "hires"
    here, there = adata.uns, back.uns
    for key in hires:
        here, there = here[key], there[key]
    np.testing.assert_array_equal(here, there)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_cells", 0),
        ("n_cells", 2.5),
        ("n_cells", True),
        ("n_genes", 0),
        ("n_regions", 0),
        ("n_types", -1),
        ("seed", -1),
        ("seed", None),
        ("atlas_seed", 0.5),
        ("layout", "slide"),
        ("shape", "round"),
        ("organism", "rat"),
        ("depth", 0),
        ("depth", float("nan")),
        ("depth", "deep"),
        ("batch", -0.1),
        ("name", ""),
        ("name", "a/b"),
        ("donor", 3),
        ("image_px", 0),
        ("gene_ids", ["a", "a"]),
        ("gene_ids", "abc"),
        ("gene_symbols", ["A"]),
    ],
)
def test_bad_arguments_are_named(name, value):
    with pytest.raises(ConfigError, match=name):
        tissue(**{"n_cells": 10, name: value})


def test_bad_combinations_are_named():
    with pytest.raises(ConfigError, match="n_genes"):
        tissue(10, n_genes=3, gene_ids=["a", "b"])
    with pytest.raises(ConfigError, match="gene_symbols"):
        tissue(10, gene_ids=["a", "b"], gene_symbols=["A"])
    for options in ({"n_slices": 0}, {"n_donors": 0}, {"seed": -2}, {"n_gene": 3}, {"donor": "a"}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            corpus(**{"n_slices": 1, "n_cells": 10, **options})
