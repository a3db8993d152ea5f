"""The one check of foreign compressed matrices, and the doors that it guards."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pytest
import scipy.sparse as sp
from anndata import AnnData

import terrazzo as tz
from terrazzo.errors import CorpusError, InputError
from terrazzo.slices.counts import to_csr
from terrazzo.sparse import check_arrays, check_matrix


def _matrix() -> sp.csr_matrix:
    return sp.csr_matrix(np.array([[1, 0, 2], [0, 0, 0], [0, 3, 4]], dtype=np.float32))


DAMAGE: dict[str, Callable[[Any], None]] = {
    "negative index": lambda m: m.indices.__setitem__(0, -1),
    "far negative index": lambda m: m.indices.__setitem__(1, -400),
    "index too large": lambda m: m.indices.__setitem__(0, 3),
    "huge index": lambda m: m.indices.__setitem__(0, 10**8),
    "indices of floats": lambda m: setattr(m, "indices", m.indices.astype(float)),
    "indptr of floats": lambda m: setattr(m, "indptr", m.indptr.astype(float)),
    "indptr falls": lambda m: m.indptr.__setitem__(1, 4),
    "indptr starts late": lambda m: m.indptr.__setitem__(0, 1),
    "negative indptr": lambda m: m.indptr.__setitem__(0, -1),
    "indptr ends late": lambda m: m.indptr.__setitem__(3, 5),
    "indptr of thousands": lambda m: m.indptr.__imul__(1000),
    "indptr short": lambda m: setattr(m, "indptr", m.indptr[:-1]),
    "indptr long": lambda m: setattr(m, "indptr", np.append(m.indptr, 4)),
    "data short": lambda m: setattr(m, "data", m.data[:2]),
    "indices short": lambda m: setattr(m, "indices", m.indices[:2]),
    "indices of two dimensions": lambda m: setattr(m, "indices", m.indices.reshape(2, 2)),
    "data of texts": lambda m: setattr(m, "data", np.array(["a", "b", "c", "d"])),
}


@pytest.mark.case(
    "J",
    given="A sparse matrix whose indices, row pointers or lengths do not fit, in memory, .h5ad, .zarr, 10x or a corpus",
    gets="One line with the place and the fault, before any compiled code reads it",
)
@pytest.mark.parametrize("fault", DAMAGE)
@pytest.mark.parametrize("format", ["csr", "csc"])
def test_every_damage_is_found(fault: str, format: str) -> None:
    matrix = _matrix().asformat(format)
    check_matrix(matrix, "X")
    DAMAGE[fault](matrix)
    with pytest.raises(InputError, match="X is a damaged sparse matrix"):
        check_matrix(matrix, "X")
    adata = AnnData(np.zeros((3, 3)), obsm={"spatial": np.arange(6.0).reshape(3, 2)})
    adata.layers["counts"] = matrix
    with pytest.raises(InputError, match=r"layers\['counts'\]"):
        tz.Slice.from_anndata(adata)


@pytest.mark.parametrize("dtype", ["i4", "i8", "u4", "u8", "i2", ">i4"])
def test_indices_of_any_integer_type(dtype: str) -> None:
    matrix = _matrix()
    indices = matrix.indices.astype(dtype)
    check_arrays(matrix.data, indices, matrix.indptr.astype(dtype), (3, 3), "X")
    indices[0] = 3
    with pytest.raises(InputError, match="indices reach from"):
        check_arrays(matrix.data, indices, matrix.indptr, (3, 3), "X")
    with pytest.raises(CorpusError, match="indptr has 4 entries, not 10"):
        check_arrays(matrix.data, indices, matrix.indptr, (9, 3), "X", CorpusError)


def test_room_behind_the_values_is_not_read() -> None:
    matrix = _matrix()
    expected = matrix.toarray()
    matrix.data = np.append(matrix.data, np.float32([9, 9]))
    matrix.indices = np.append(matrix.indices, np.int32([-7, 10**6, 5]))
    np.testing.assert_array_equal(to_csr(matrix).toarray(), expected)


def test_flags_that_are_not_true_any_more() -> None:
    matrix = sp.csr_matrix(np.array([[1, 2, 4]], dtype=np.float32))
    assert matrix.has_canonical_format
    matrix.indices[:] = [2, 0, 0]
    csr = to_csr(matrix)
    np.testing.assert_array_equal(csr.toarray(), [[6, 0, 1]])
    assert csr.indices.tolist() == [0, 2]


@pytest.mark.parametrize("format", ["coo", "bsr"])
def test_other_formats(format: str) -> None:
    matrix = sp.csr_matrix(np.eye(4, dtype=np.float32)).asformat(format)
    check_matrix(matrix, "X")
    if format == "coo":
        matrix.row = matrix.row.copy()
        matrix.row[0] = -3
    else:
        matrix.indices[0] = 10**6
    with pytest.raises(InputError, match="damaged sparse matrix"):
        to_csr(matrix)
    check_matrix(np.eye(2), "X")  # what is not sparse is another's business


def test_values_that_vanish_are_no_counts() -> None:
    adata = AnnData(np.array([[5e-324, 1.0], [2.0, 0.0]]), obsm={"spatial": np.eye(2)})
    counts = tz.Slice.from_anndata(adata).counts
    assert counts.nnz == 2
    assert (counts.data > 0).all()


def write_zarr(adata: AnnData, path: Path, version: int = 3) -> None:
    with warnings.catch_warnings(), ad.settings.override(zarr_write_format=version):
        warnings.simplefilter("ignore")
        adata.write_zarr(path)


def _spoil(group: Any) -> None:
    indices = group["indices"][:]
    indices[0] = -400
    group["indices"][...] = indices


@pytest.mark.parametrize("place", ["X", "layers/counts", "raw/X", "obsp/near", "obsm/wide"])
@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_files(simulated: Any, tmp_path: Path, suffix: str, place: str) -> None:
    adata = simulated(20, 10)
    adata.X = sp.csr_matrix(adata.X)
    adata.raw = adata.copy()
    adata.layers["counts"] = sp.csc_matrix(adata.X)
    adata.obsp["near"] = sp.csr_matrix(np.eye(20))
    adata.obsm["wide"] = sp.csr_matrix(np.eye(20))
    path = tmp_path / f"a{suffix}"
    if suffix == ".h5ad":
        adata.write_h5ad(path)
        with h5py.File(path, "a") as file:
            _spoil(file[place])
    else:
        import zarr

        write_zarr(adata, path)
        _spoil(zarr.open_group(path, mode="r+")[place])
    with pytest.raises(InputError, match=rf"a{suffix}: .*damaged sparse matrix"):
        tz.read(path)


def test_a_backed_matrix(simulated: Any, tmp_path: Path) -> None:
    adata = simulated(20, 10)
    adata.X = sp.csr_matrix(adata.X)
    adata.write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "a") as file:
        _spoil(file["X"])
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    try:
        with pytest.raises(InputError, match="indices reach from -400"):
            tz.Slice.from_anndata(backed)
    finally:
        backed.file.close()


def test_a_lazy_matrix(simulated: Any) -> None:
    import dask.array as da

    adata = simulated(20, 10)
    matrix = sp.csr_matrix(adata.X)
    matrix.indices[3] = 10**8
    blocks = da.from_array(np.zeros((20, 10), np.float32), chunks=(20, 10)).map_blocks(
        lambda _: matrix, dtype=matrix.dtype, meta=sp.csr_matrix((0, 0), dtype=matrix.dtype)
    )
    adata.X = blocks
    with pytest.raises(InputError, match="damaged sparse matrix"):
        tz.Slice.from_anndata(adata)


@pytest.mark.parametrize("shift", [-400, 10**8])
def test_no_process_dies_of_it(simulated: Any, tmp_path: Path, shift: int) -> None:
    """As an attacker would: in a process of its own, which must end with an error and not with a signal."""
    code = f"""
import numpy as np, scipy.sparse as sp, terrazzo as tz
adata = tz.simulate.tissue(60)
matrix = sp.csr_matrix(adata.X)
matrix.indices[:] = matrix.indices + {shift}
adata.X = matrix
tz.Baseline("pca").embed(adata)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "damaged sparse matrix" in done.stderr
