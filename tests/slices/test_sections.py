"""Sections in one AnnData: what is refused, what goes on, and what never is taken for sections."""

from __future__ import annotations

import warnings
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

import terrazzo as tz
from terrazzo.errors import InputError, TerrazzoWarning
from terrazzo.slices.sections import find_sections

GENES = ["TP53", "GAPDH", "ACTB", "CD4", "CD8A", "EPCAM"]


def counts(n: int, seed: int) -> sp.csr_matrix:
    drawn = np.random.default_rng(seed).poisson(3, (n, len(GENES)))
    return sp.csr_matrix(drawn.astype(np.float32))


def slice_of(coords: Any, seed: int = 0, prefix: str = "", **obs: Any) -> AnnData:
    """An AnnData of cells at positions, with unique names."""
    coords = np.asarray(coords, dtype=float)
    names = [f"{prefix}{seed}x{i}" for i in range(len(coords))]
    adata = AnnData(
        counts(len(coords), seed), obs=pd.DataFrame(obs, index=names), var=pd.DataFrame(index=GENES)
    )
    adata.obsm["spatial"] = coords
    return adata


def scattered(n: int = 120, seed: int = 0, at: tuple[float, float] = (0, 0), **obs: Any) -> AnnData:
    """Cells scattered over a square of 1,000."""
    coords = np.random.default_rng(seed).uniform(0, 1000, (n, 2)) + at
    return slice_of(coords, seed, **obs)


def visium(pixels: float = 200.0, seed: int = 1, at: tuple[float, float] = (0, 0)) -> AnnData:
    """A Visium slice of 10 x 10 spots, the barcodes the same in all."""
    row = np.repeat(np.arange(10), 10)
    column = 2 * np.tile(np.arange(10), 10) + row % 2
    obs = {"in_tissue": 1, "array_row": row, "array_col": column}
    coords = np.c_[at[0] + column * pixels / 2, at[1] + row * pixels * np.sqrt(3) / 2]
    adata = slice_of(coords, seed, **obs)
    adata.obs_names = [f"BC{i:03d}-1" for i in range(100)]
    return adata


def shuffled(adata: AnnData, seed: int = 0) -> AnnData:
    return adata[np.random.default_rng(seed).permutation(adata.n_obs)].copy()


def joined(parts: dict[str, AnnData], **options: Any) -> AnnData:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ad.concat(parts, **options)


def refusal(adata: AnnData) -> str:
    with pytest.raises(InputError) as caught:
        tz.Slice.from_anndata(adata)
    message = str(caught.value)
    assert "\n" not in message
    return message


NAMES = (
    "library_id",
    "sample",
    "sample_id",
    "sampleID",
    "Sample_Name",
    "batch",
    "fov",
    "FOV_number",
    "slice",
    "section",
    "tissue_section",
    "brain_section_label",
    "slide",
    "donor",
    "donor_id",
    "patient",
    "orig.ident",
    "gem_group",
    "Animal_ID",
    "Bregma",
)


@pytest.mark.case(
    "A",
    given="Several sections in one AnnData whose coordinates overlap, told apart by a column of obs",
    gets="Refused, with the column and its values; `slice_key=` takes each by itself",
)
@pytest.mark.parametrize("name", NAMES)
def test_a_column_with_a_name_of_sections(name: str) -> None:
    parts = {"A": scattered(seed=1), "B": scattered(seed=2, at=(150, -80))}
    both = shuffled(joined(parts, label=name))
    message = refusal(both)
    for word in (repr(name), "A, B", "overlap", f"--slice-key {name}", f"slice_key={name!r}"):
        assert word in message
    slices = tz.Slice.each_from_anndata(both, slice_key=name)
    assert [one.n_cells for one in slices] == [120, 120]
    assert [one.name for one in slices] == ["slice_A", "slice_B"]
    whole = tz.Slice.from_anndata(both, slice_key="none")
    assert whole.n_cells == 240


@pytest.mark.parametrize("kind", ["text", "category", "whole numbers", "fractions"])
def test_values_of_any_kind(kind: str) -> None:
    both = joined({"1": scattered(seed=1), "2": scattered(seed=2)}, label="section")
    values = both.obs["section"].astype(str)
    columns = {
        "text": values.astype(object),
        "category": values.astype("category").cat.add_categories(["never used"]),
        "whole numbers": values.astype(int),
        "fractions": values.astype(int) / 100,
    }
    both.obs["section"] = columns[kind]
    message = refusal(both)
    assert "tells 2 sections apart" in message
    assert "never used" not in message


def test_long_values_are_shortened() -> None:
    parts = {f"{'x' * 300}{i}": scattered(60, seed=i) for i in range(9)}
    message = refusal(joined(parts, label="sample"))
    assert "and 4 more" in message
    assert "x" * 60 not in message.split("apart (")[1].split(")")[0]


@pytest.mark.case(
    "A",
    given="Spots of several sections at the same places of the array (ad.concat of Visium slices)",
    gets="Refused, whichever column, library of uns['spatial'] or cell names tell the sections apart",
)
@pytest.mark.parametrize("label", ["library_id", "condition", "anything", "number"])
def test_shared_places_of_the_array(label: str) -> None:
    far = visium(230.0, 2, at=(5000, 0))  # the coordinates do not overlap, the array does
    both = shuffled(joined({"A": visium(), "B": far}, label=label, index_unique="-"))
    if label == "number":
        both.obs[label] = (both.obs[label] == "B").astype(int)
    message = refusal(both)
    assert repr(label) in message
    assert "200 of 200 cells share a place of the array" in message
    for one in tz.Slice.each_from_anndata(both, slice_key=label):
        assert one.spacing == pytest.approx(100)


def test_shared_coordinates() -> None:
    one = scattered(seed=1)
    other = slice_of(one.obsm["spatial"], seed=2)
    both = shuffled(joined({"a": one, "b": other}, label="condition"))
    assert "240 of 240 cells share coordinates" in refusal(both)


def test_two_libraries() -> None:
    parts = {"A": visium(), "B": visium(230.0, 2, at=(30, 10))}
    for name, one in parts.items():
        one.uns["spatial"] = {name: {"scalefactors": {"spot_diameter_fullres": 130.0}}}
    both = joined(parts, label="origin", index_unique="-", uns_merge="unique")
    assert "'origin'" in refusal(both)
    del both.obs["origin"]
    both.obs_names = [f"spot {i}" for i in range(200)]
    message = refusal(shuffled(both))
    assert "uns['spatial'] has 2 libraries (A, B)" in message
    assert "add a column" in message


@pytest.mark.parametrize("index_unique", ["-", "_"])
def test_names_from_concat(index_unique: str) -> None:
    parts = {"A": visium(), "B": visium(seed=2, at=(30, 10))}
    message = refusal(joined(parts, index_unique=index_unique))
    assert "names tell 2 sections apart (A, B)" in message


def test_names_that_repeat() -> None:
    both = joined({"A": visium(), "B": visium(seed=2, at=(30, 10))})
    with pytest.warns(TerrazzoWarning, match="repeat"):
        message = refusal(both)
    assert "names repeat" in message


def test_joined_without_any_trace() -> None:
    both = joined({"A": visium(), "B": visium(seed=2, at=(30, 10))})
    both.obs_names = [str(i) for i in range(200)]
    assert "one below the other" in refusal(both)


def test_cells_of_the_same_names_in_an_unknown_column() -> None:
    parts = {"A": scattered(seed=1), "B": scattered(seed=2)}
    for one in parts.values():
        one.obs_names = [f"cell{i}" for i in range(120)]
    both = joined(parts, label="anything", index_unique="-")
    assert "'anything'" in refusal(both)


def test_part_of_a_section_over_another() -> None:
    parts = {"A": scattered(400, seed=1), "B": scattered(400, seed=2, at=(850, 0))}
    assert "lie among those of" in refusal(joined(parts, label="sample"))


def test_a_small_section_in_a_large_one() -> None:
    small = slice_of(np.random.default_rng(3).uniform(400, 600, (12, 2)), 3)
    parts = {"A": scattered(1000, seed=1), "B": small}
    assert "of the cells of 'B' lie among those of 'A'" in refusal(joined(parts, label="sample"))


def test_the_coarsest_column_that_suffices_is_named() -> None:
    parts = {str(i): scattered(seed=i, donor="x" if i < 2 else "y") for i in range(4)}
    both = joined(parts, label="sample")
    both.obs["cell_type"] = np.random.default_rng(0).choice(["T", "B"], both.n_obs)
    assert "obs['sample'] tells 4 sections apart" in refusal(both)
    two = both[both.obs["sample"].isin(["0", "2"])].copy()
    assert "obs['donor'] tells 2 sections apart" in refusal(two)


def test_fields_of_view_of_two_slides() -> None:
    parts = {}
    for slide in ("S1", "S2"):
        one = scattered(400, seed=len(parts))
        one.obs["fov"] = (one.obsm["spatial"][:, 0] // 250).astype(int)
        parts[slide] = one
    both = joined(parts, label="slide")
    assert "obs['slide'] tells 2 sections apart" in refusal(both)


def test_fields_of_view_in_coordinates_of_their_own() -> None:
    parts = {str(i): scattered(80, seed=i) for i in range(6)}
    assert "obs['fov'] tells 6 parts apart" in refusal(joined(parts, label="fov"))


@pytest.mark.case(
    "A",
    given="Several sections, or fields of view, side by side in one coordinate system",
    gets="Taken as one slice, and said: a warning for sections, a line of `info` for fields of view",
)
def test_side_by_side() -> None:
    both = joined({"A": scattered(seed=1), "B": scattered(seed=2, at=(1500, 0))}, label="sample")
    with pytest.warns(TerrazzoWarning, match="tells 2 sections apart .*do not overlap"):
        tissue = tz.Slice.from_anndata(both)
    assert "taken as one slice" in tissue.describe()["sections"]
    tiled = scattered(2000, seed=3)
    tiles = (tiled.obsm["spatial"] // 250).astype(int)
    tiled.obs["fov"] = tiles[:, 0] * 4 + tiles[:, 1]
    tissue = tz.Slice.from_anndata(tiled)  # no warning
    assert "16 parts" in tissue.describe()["sections"]


@pytest.mark.case(
    "A",
    given="One section with types, regions, clusters, or flags of its cells",
    gets="One slice, as ever",
)
@pytest.mark.parametrize("order", ["mixed", "sorted"])
@pytest.mark.parametrize(
    "name", ["cell_type", "region", "leiden", "layer", "label", "batch_corrected_cluster", "group"]
)
def test_labels_within_a_section(name: str, order: str) -> None:
    adata = scattered(600, seed=4)
    values = np.random.default_rng(5).choice(["T", "B", "tumor", "stroma"], 600)
    if order == "sorted":
        values = np.sort(values)
    if (name, order) == ("group", "sorted"):
        pytest.skip("cells in blocks of a column called group are sections")
    adata.obs[name] = pd.Categorical(values)
    adata.obs["sample"] = "one"
    adata.obs["is_tumor"] = values == "tumor"
    adata.obs["n_counts"] = np.arange(600) % 7
    tissue = tz.Slice.from_anndata(adata)
    assert tissue.sections == ""


def test_regions_on_an_array() -> None:
    adata = visium()
    adata.obs["region"] = np.random.default_rng(0).choice(["L1", "L2"], 100)
    adata.uns["spatial"] = {"A": {}, "B": {}}  # a library of a section that is not here
    assert tz.Slice.from_anndata(adata).sections == ""


def test_one_of_two_sections_is_one_section() -> None:
    both = joined({"A": visium(), "B": visium(seed=2)}, label="library_id", index_unique="-")
    assert tz.Slice.from_anndata(both[both.obs["library_id"] == "A"].copy()).n_cells == 100


@pytest.mark.parametrize("column", ["is_duplicate", "cell_type", None])
def test_cells_at_one_place_are_no_sections(column: str | None) -> None:
    rng = np.random.default_rng(0)
    coords = rng.uniform(0, 1000, (300, 2))
    coords = np.concatenate([coords, coords[:60]])  # published duplicates
    adata = slice_of(coords)
    if column is not None:
        adata.obs[column] = pd.Categorical(np.repeat(["False", "True"], [300, 60]))
    assert tz.Slice.from_anndata(adata).n_cells == 360
    at_one_point = slice_of(np.zeros((40, 2)), cell_type=rng.choice(["T", "B"], 40))
    assert find_sections(at_one_point, at_one_point.obsm["spatial"]) is None


def test_a_plane_of_a_volume_is_no_section() -> None:
    adata = scattered(200, seed=6)
    adata.obs_names = [f"embryo_cell{i // 2}_z{i % 2}" for i in range(200)]
    assert tz.Slice.from_anndata(adata).sections == ""


@pytest.mark.parametrize("shape", ["half", "regions", "strips"])
def test_ragged_borders_do_not_overlap(shape: str) -> None:
    rng = np.random.default_rng(7)
    for n in (60, 400, 3000):
        coords = rng.uniform(0, 1, (n, 2))
        codes = {
            "half": coords[:, 0] + 0.05 * np.sin(30 * coords[:, 1]) > 0.5,
            "regions": ((coords[:, None] - rng.uniform(0, 1, (7, 2))) ** 2).sum(-1).argmin(1),
            "strips": (coords[:, 0] * 9).astype(int),
        }
        adata = slice_of(coords, sample=codes[shape].astype(int).astype(str))
        sections = find_sections(adata, coords)
        assert sections is not None
        assert sections.overlap == ""


def test_odd_tables_are_survived() -> None:
    adata = scattered(50)
    adata.obs["sample"] = [[i] for i in range(50)]  # lists
    adata.obs["batch"] = pd.array([None, "x"] * 25, dtype="object")
    adata.obs["when"] = pd.to_datetime("2020-01-01")
    adata.uns["spatialdata_attrs"] = {"region_key": np.array(["a", "b"]), "region": None}
    adata.uns["spatial"] = ["no", "libraries"]
    assert tz.Slice.from_anndata(adata).sections == ""


def test_a_key_that_tells_nothing_apart() -> None:
    adata = scattered(50, seed=8)
    adata.obs["sample"] = ["A"] * 25 + [None] * 25
    with pytest.raises(InputError, match=r"no such column\. Did you mean 'sample'"):
        tz.Slice.each_from_anndata(adata, slice_key="smple")
    with pytest.raises(InputError, match="missing for 25 of 50 cells"):
        tz.Slice.each_from_anndata(adata, slice_key="sample")
    adata.obs["each"] = adata.obs_names
    with pytest.raises(InputError, match="50 values for 50 cells"):
        tz.Slice.each_from_anndata(adata, slice_key="each")
    adata.obs["sample"] = ["A"] * 25 + ["B"] * 25
    with pytest.raises(InputError, match="this makes one slice"):
        tz.Slice.from_anndata(adata, slice_key="sample")


def test_a_section_that_cannot_be_used_is_named() -> None:
    both = joined({"A": scattered(seed=1), "B": scattered(seed=2)}, label="sample")
    both.obsm["spatial"][150] = np.nan
    with pytest.raises(InputError, match=r"sample 'B': .*NaN"):
        tz.Slice.each_from_anndata(both, slice_key="sample")
