"""Marks in results, and the guard: nothing of others, or of another source, is replaced."""

from __future__ import annotations

import os
from pathlib import Path

import anndata
import numpy as np
import pytest

from terrazzo.errors import OutputError
from terrazzo.files import write_text
from terrazzo.marks import KEY, Mark, find_mark, guard, mark_file, mark_of, quick_hash


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "p1" / "slice.h5ad"
    path.parent.mkdir()
    path.write_bytes(b"counts of patient one")
    return path


@pytest.fixture
def other(tmp_path: Path) -> Path:
    path = tmp_path / "p2" / "slice.h5ad"
    path.parent.mkdir()
    path.write_bytes(b"counts of patient two")
    return path


def h5ad(path: Path, mark: Mark | None) -> Path:
    anndata.AnnData(np.ones((2, 2), np.float32)).write_h5ad(path)
    if mark is not None:
        mark_file(path, mark)
    return path


def text(path: Path, mark: Mark | None) -> Path:
    write_text(path, "first\n" * 50_000 + ("" if mark is None else mark.text()) + "\nlast")
    return path


def folder(path: Path, mark: Mark | None) -> Path:
    path.mkdir(exist_ok=True)
    write_text(path / "result.json", "{}" if mark is None else f'{{"{KEY}": "{mark.text()}"}}')
    return path


@pytest.mark.parametrize("make", [h5ad, text, folder])
@pytest.mark.case(
    "G",
    given="A file of somebody else, or a result of another slice, where a result would go",
    gets="Refused before any work, with what is there; `--overwrite` replaces files, never folders",
)
def test_only_results_of_the_same_source_are_replaced(
    tmp_path: Path, source: Path, other: Path, make: object
) -> None:
    mark = mark_of("embed", [source])
    target = tmp_path / "target"
    guard(target, mark)  # nothing is there
    make(target, None)  # type: ignore[operator]
    with pytest.raises(OutputError, match="not written by terrazzo"):
        guard(target, mark)
    make(target, mark)  # type: ignore[operator]
    guard(target, mark)
    with pytest.raises(OutputError, match=r"another source \(p1/slice.h5ad, and now p2/slice"):
        guard(target, mark_of("embed", [other]))
    with pytest.raises(OutputError, match="a result of terrazzo embed"):
        guard(target, mark_of("domains", [source]))
    guard(target, mark_of("embed", [other]), overwrite=True)


def test_a_foreign_folder_stays_in_any_case(tmp_path: Path, source: Path) -> None:
    (tmp_path / "out.zarr").mkdir()
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="folder that was not written by terrazzo"):
            guard(tmp_path / "out.zarr", mark_of("embed", [source]), overwrite=overwrite)


def test_a_link_to_nothing_is_not_ours(tmp_path: Path, source: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "missing")
    with pytest.raises(OutputError, match="not written by terrazzo"):
        guard(tmp_path / "link", mark_of("embed", [source]))


def test_the_same_source_changed_or_moved(source: Path, tmp_path: Path) -> None:
    before = mark_of("embed", [source])
    source.write_bytes(b"counted again")
    assert mark_of("embed", [source]).is_like(before)
    moved = source.rename(tmp_path / "moved.h5ad")
    assert not mark_of("embed", [moved]).is_like(before)
    assert mark_of("embed", [moved]).is_like(
        Mark("embed", "", mark_of("embed", [moved]).content, "")
    )
    os.symlink(moved, tmp_path / "link.h5ad")
    assert mark_of("embed", [tmp_path / "link.h5ad"]).place == mark_of("embed", [moved]).place


def test_another_part_of_a_source_is_another_source(source: Path) -> None:
    first = mark_of("embed", [source], {"bins": "8"})
    assert not mark_of("embed", [source], {"bins": "16"}).is_like(first)
    assert mark_of("embed", [source], {"bins": "8"}).is_like(first)


@pytest.mark.parametrize("name", ["p 1/ü:\n.h5ad", "x" * 300, "\udcff", "<b>\"'--></b>"])
def test_any_name_goes_through_a_file(name: str) -> None:
    mark = Mark("info --grid", "0" * 16, "1" * 16, name)
    found = Mark.parse(b"before " + mark.text().encode("ascii") + b" after")
    assert found is not None
    assert found.is_like(mark)
    rest = mark.text().replace(mark.made_by, "")
    assert not set(rest) & set("<>()\"'\n ")


def test_a_file_saved_again_by_others_is_not_ours(tmp_path: Path, source: Path) -> None:
    path = h5ad(tmp_path / "a.h5ad", mark_of("embed", [source]))
    assert find_mark(path) is not None
    anndata.read_h5ad(path).write_h5ad(path)
    assert find_mark(path) is None


def test_samples_tell_large_files_apart(tmp_path: Path) -> None:
    content = bytearray(os.urandom(2**20)) * 8
    path = tmp_path / "large"
    path.write_bytes(content)
    before = quick_hash(path)
    assert quick_hash(path) == before
    path.write_bytes(content + b"x")
    assert quick_hash(path) != before
    assert quick_hash(tmp_path / "missing") != before
    assert quick_hash(tmp_path) == quick_hash(tmp_path)
