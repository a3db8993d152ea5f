"""MERSCOPE and Slide-seq: wide tables of counts, units, and bad files."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import terrazzo as tz
from terrazzo.errors import InputError
from terrazzo.slices import open_slice
from terrazzo.slices.platforms import parts

GENES = ["Slc17a7", "Gad1", "Blank-1", "Pvalb", "Blank-23"]
IDS = [f"16422602300{i:09d}" for i in range(6)]  # 20 digits: a float would lose the last ones


@pytest.fixture
def merscope(tmp_path: Path, counts: Any) -> Path:
    """Write an output folder whose tables are in different orders."""
    folder = tmp_path / "region_0"
    folder.mkdir()
    table = pd.DataFrame(counts(6, 5), index=pd.Index(IDS, name="cell"), columns=GENES)
    table.to_csv(folder / "cell_by_gene.csv")
    places = {
        "fov": 0,
        "volume": 500.5,
        "center_x": np.arange(6) * 12.0 + 4000,
        "center_y": np.arange(6) * 5.0 - 300,
    }
    pd.DataFrame(places, index=IDS).iloc[::-1].to_csv(folder / "cell_metadata.csv")
    return folder


def test_merscope(merscope: Path, counts: Any) -> None:
    opened = open_slice(merscope)
    assert (opened.format, opened.notes) == (
        "MERSCOPE",
        ("2 features that are not genes left out (2 blank barcodes)",),
    )
    tissue = tz.read(merscope)
    assert tissue.gene_symbols.tolist() == ["Slc17a7", "Gad1", "Pvalb"]
    np.testing.assert_array_equal(tissue.counts.toarray(), counts(6, 5)[:, [0, 1, 3]])
    assert tissue.obs_names.tolist() == IDS
    assert (tissue.unit, tissue.technology, tissue.organism) == ("um", "MERSCOPE", "mouse")
    assert tissue.spacing == pytest.approx(13.0)  # 5, 12, 13
    np.testing.assert_array_equal(tissue.coords[0], [4000, -300])


def test_wide_tables_are_read_by_pieces(merscope: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = tz.read(merscope).content_hash()
    monkeypatch.setattr(parts, "_BLOCK", 64)  # bytes: two lines at a time
    text = (merscope / "cell_by_gene.csv").read_bytes()
    (merscope / "cell_by_gene.csv").unlink()
    (merscope / "cell_by_gene.csv.gz").write_bytes(gzip.compress(text))
    assert tz.read(merscope).content_hash() == expected


def test_large_counts_stay_exact(merscope: Path) -> None:
    table = pd.read_csv(merscope / "cell_by_gene.csv", index_col=0, dtype={"cell": str})
    table.iloc[0, 0] = 2**24 + 1
    table.to_csv(merscope / "cell_by_gene.csv")
    assert tz.read(merscope).counts[0, 0] == 2**24 + 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "cannot be read|must name"),
        ("cell\n1\n", "must name the cells' columns"),
        ("cell,Gad1\n", "cannot be read|no rows"),
        ("cell,Gad1\na,many\n", "cannot be read"),
        ("cell,Gad1\na,1,2\n", "Expected 2 columns, got 3"),
        ("cell,Gad1\na,1\na,2\n", "cell ids of the counts repeat"),
        ("cell,Gad1\n\xff\xfe,1\n", "do not belong together"),
    ],
)
def test_bad_tables_of_counts(merscope: Path, text: str, said: str) -> None:
    (merscope / "cell_by_gene.csv").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=said):
        tz.read(merscope)


def test_a_missing_count_is_named_by_its_cell(merscope: Path) -> None:
    path = merscope / "cell_by_gene.csv"
    lines = path.read_text().splitlines()
    lines[3] = f"{IDS[2]},,1,1,1,1"
    path.write_text("\n".join(lines))
    with pytest.raises(InputError, match=f"NaN or infinite.*{IDS[2]}"):
        tz.read(merscope)


@pytest.mark.parametrize(
    ("name", "said"), [("cell_metadata.csv", "table of cells"), ("cell_by_gene.csv", "of counts")]
)
def test_merscope_missing_file(merscope: Path, name: str, said: str) -> None:
    (merscope / name).unlink()
    with pytest.raises(InputError, match=f"{said} is missing; it should be {name}"):
        tz.read(merscope)


def test_merscope_missing_column(merscope: Path) -> None:
    pd.DataFrame({"center_x": [1.0]}, index=IDS[:1]).to_csv(merscope / "cell_metadata.csv")
    with pytest.raises(InputError, match="column center_y missing"):
        tz.read(merscope)
    (merscope / "cell_metadata.csv").write_text("")
    with pytest.raises(InputError, match=r"cell_metadata.csv"):
        tz.read(merscope)


@pytest.fixture
def slideseq(tmp_path: Path, counts: Any) -> Path:
    """Write the two files of a puck; genes are rows, and some beads have no counts."""
    beads = [f"AACG{i:02d}" for i in range(7)]
    pd.DataFrame(
        counts(7, 4).T, index=pd.Index(["Actb", "Snap25", "Mbp", "Plp1"], name="Row"), columns=beads
    ).to_csv(tmp_path / "Puck_1.MappedDGEForR.csv")
    places = {
        "barcodes": [*beads[::-1], "NONE"],
        "xcoord": [*np.arange(7)[::-1] * 20.0, 5],
        "ycoord": 100.0,
    }
    pd.DataFrame(places).to_csv(tmp_path / "Puck_1.BeadLocationsForR.csv", index=False)
    return tmp_path


def test_slide_seq(slideseq: Path, counts: Any) -> None:
    tissue = tz.read(slideseq)
    np.testing.assert_array_equal(tissue.counts.toarray(), counts(7, 4))
    assert tissue.gene_symbols.tolist() == ["Actb", "Snap25", "Mbp", "Plp1"]
    assert (tissue.technology, tissue.unit, tissue.n_cells) == ("Slide-seq", "um", 7)
    assert tissue.spacing == pytest.approx(20 * 0.65)  # pixels of 0.65 um
    np.testing.assert_array_equal(tissue.native_coords[2], [40.0, 100.0])


def test_slide_seq_bad_input(slideseq: Path) -> None:
    beads = slideseq / "Puck_1.BeadLocationsForR.csv"
    pd.read_csv(beads).rename(columns={"xcoord": "x"}).to_csv(beads, index=False)
    with pytest.raises(InputError, match="column xcoord missing"):
        tz.read(slideseq)
    beads.unlink()
    with pytest.raises(InputError, match="table of beads is missing"):
        tz.read(slideseq)
    for number in (1, 2):
        (slideseq / f"Puck_{number}.BeadLocationsForR.csv").write_text("barcodes,xcoord,ycoord\n")
    with pytest.raises(InputError, match="more than one file"):
        tz.read(slideseq)
