"""What can be read and not be written is found before any work: renamed, converted, left out or refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

from terrazzo.errors import InputError, OutputError
from terrazzo.slices.writable import check_space, make_writable

Change = Callable[[AnnData], None]
NAMES = list("wxyz")


def made() -> AnnData:
    counts = sp.csr_matrix(np.arange(12, dtype=np.float32).reshape(4, 3))
    adata = AnnData(counts, obs=pd.DataFrame({"a": [1, 2, 3, 4]}, index=NAMES))
    adata.obsm["spatial"] = np.ones((4, 2))
    return adata


def column(values: Any) -> Change:
    return lambda adata: adata.obs.__setitem__("m", values)


def entry(where: str, key: Any, value: Any) -> Change:
    return lambda adata: getattr(adata, where).__setitem__(key, value)


def raw(adata: AnnData) -> None:
    adata.raw = adata.copy()
    adata.raw.var["_index"] = ["g1", "g2", "g3"]


def repeated(adata: AnnData) -> None:
    adata.obs = pd.DataFrame(np.ones((4, 3)), index=NAMES, columns=["d", "d", "d_1"])


def numbered(adata: AnnData) -> None:
    adata.obs = pd.DataFrame(np.ones((4, 2)), index=NAMES, columns=[1, 2])


def named(adata: AnnData) -> None:
    adata.obs.index.name = "a"


def objects(*values: Any) -> Any:
    out = np.empty(4, dtype=object)
    out[:] = values
    return out


FIXED: dict[str, tuple[Change, str]] = {
    "_index in obs": (entry("obs", "_index", NAMES), "'_index' to '_index_'"),
    "_index in var": (entry("var", "_index", [1, 2, 3]), "columns of var"),
    "_index in raw.var": (raw, "columns of raw.var renamed"),
    "an index named as a column": (named, "the name of the index of obs, 'a'"),
    "repeated columns": (repeated, "'d' to 'd_2'"),
    "numbers as names": (numbered, "1 to '1', 2 to '2'"),
    "a slash in a column": (entry("obs", "a/b", 1), "'a/b' to 'a_b'"),
    "a slash in a layer": (entry("layers", "a/b", np.ones((4, 3))), "'a/b' to 'a_b'"),
    "a slash in obsm": (entry("obsm", "a/b", np.ones((4, 3))), "entries of obsm renamed"),
    "a dot": (entry("layers", ".", np.ones((4, 3))), "'.' to 'unnamed'"),
    "an empty name": (entry("obs", "", 1), "'' to 'unnamed'"),
    "a tuple as key": (entry("uns", ("a", "b"), 1), "('a', 'b') to 'a_b'"),
    "a number as key, deep": (entry("uns", "k", {"l": {3: 1}}), "uns['k']['l'] renamed"),
    "a table in uns": (entry("uns", "k", pd.DataFrame({"_index": [1]})), "columns of uns['k']"),
    "a set in uns": (entry("uns", "k", {1}), "uns['k'] is left out"),
    "an object in uns": (entry("uns", "k", {"l": object()}), "uns['k']['l'] is left out"),
    "mixed types": (column(objects(1, "a", None, 2.5)), "converted to text or numbers"),
    "whole numbers as objects": (column(objects(1, 2, 3, 4)), "converted"),
    "nothing": (column(objects(None, None, None, None)), "converted"),
    "truth with gaps": (column(objects(True, None, False, True)), "converted"),
    "lists": (column(objects([1], [2], [], [4, 5])), "converted"),
    "dates": (column(pd.date_range("2026", periods=4)), "converted"),
    "durations": (column(pd.to_timedelta([1, 2, 3, 4])), "converted"),
    "intervals": (column(pd.cut(np.arange(4.0), 2)), "converted"),
    "mixed categories": (column(pd.Categorical(objects(1, "c", (1, 2), "d"))), "converted"),
}
AS_THEY_ARE: dict[str, Change] = {
    "numbers": column([0.5, np.nan, 1, 2]),
    "texts": column(["a", "b", "a", "b"]),
    "texts with a gap": column(objects("a", None, "a", "b")),
    "unique texts with a gap": column(objects("a", None, "c", "b")),
    "nullable texts": column(pd.array(["a", None, "b", "c"], dtype="string")),
    "categories": column(pd.Categorical(["a", None, "b", "a"])),
    "nothing in uns": entry("uns", "k", None),
    "a list in uns": entry("uns", "k", ["a", "b"]),
    "sparse pairs": entry("obsp", "k", sp.csr_matrix(np.eye(4))),
}
REFUSED: dict[str, tuple[Change, str]] = {
    "NUL in a column": (column(["a\x00b", "c", "d", "d"]), r"^obs can be read but not be written"),
    "NUL in a category": (column(pd.Categorical(["a\x00", "c", "d", "d"])), "^obs "),
    "half a letter": (column(["a\udcff", "c", "d", "d"]), "^obs "),
    "NUL in a cell's name": (lambda adata: setattr(adata, "obs_names", ["a\x00", *"xyz"]), "^obs "),
    "NUL in a gene's name": (lambda adata: setattr(adata, "var_names", ["a\x00", *"xy"]), "^var "),
    "objects in obsm": (
        entry("obsm", "k", np.array([["a", 1]] * 4, dtype=object)),
        r"^obsm\['k'\]",
    ),
}


def back(adata: AnnData, tmp_path: Path) -> AnnData:
    adata.write_h5ad(tmp_path / "a.h5ad")
    return anndata.read_h5ad(tmp_path / "a.h5ad")


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.case(
    "H",
    given="Names and values that AnnData reads and refuses to write (`_index`, slashes, mixed types ...)",
    gets="Renamed, converted or, in `uns`, left out, with a line that says so; counts and cells never change",
)
def test_what_can_be_fixed_is_fixed_and_said(name: str, tmp_path: Path) -> None:
    change, says = FIXED[name]
    adata = made()
    change(adata)
    notes = make_writable(adata)
    assert len(notes) == 1
    assert says in notes[0]
    written = back(adata, tmp_path)
    assert list(written.obs_names) == NAMES
    assert (written.X != made().X).nnz == 0
    np.testing.assert_array_equal(written.obsm["spatial"], 1)
    assert make_writable(adata) == []


@pytest.mark.parametrize("name", AS_THEY_ARE)
def test_what_can_be_written_stays(name: str, tmp_path: Path) -> None:
    adata = made()
    AS_THEY_ARE[name](adata)
    before = adata.copy()
    assert make_writable(adata) == []
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    back(adata, tmp_path)


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.case(
    "H",
    given="Texts that no HDF5 file can have (a NUL in a name)",
    gets="Refused before the work, with where it is; the other slices are done",
)
def test_what_cannot_be_written_is_refused_before_the_work(name: str) -> None:
    change, says = REFUSED[name]
    adata = made()
    change(adata)
    with pytest.raises(InputError, match=says):
        make_writable(adata)


def test_values_keep_their_meaning(tmp_path: Path) -> None:
    adata = made()
    adata.obs["mixed"] = objects(1, "a", None, 2.5)
    adata.obs["whole"] = objects(1, 2, 3, 4)
    adata.obs["day"] = pd.date_range("2026-01-01", periods=4)
    make_writable(adata)
    obs = back(adata, tmp_path).obs
    assert obs["mixed"].astype(object).where(obs["mixed"].notna(), None).tolist() == [
        "1",
        "a",
        None,
        "2.5",
    ]
    assert obs["whole"].tolist() == [1, 2, 3, 4]
    assert obs["day"].tolist()[0] == "2026-01-01 00:00:00"


@pytest.mark.case(
    "H",
    given="A disk without room for the result",
    gets="Refused before the work, with the numbers",
)
def test_a_disk_that_is_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_space(made(), tmp_path / "new" / "er")
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 2**19})())
    with pytest.raises(OutputError, match=r"disk is full: about 0.00 GB are needed"):
        check_space(made(), tmp_path)
