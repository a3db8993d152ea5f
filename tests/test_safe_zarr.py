"""Zarr folders that must not be opened: pickles, and files that are somewhere else."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from terrazzo.errors import InputError
from terrazzo.safe_zarr import read_attributes, refuse_code, refuse_links


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one array, described as zarr v3 does."""
    path = tmp_path / "x.zarr"
    (path / "a" / "c").mkdir(parents=True)
    (path / "a" / "c" / "0").write_bytes(b"values")
    (path / "zarr.json").write_text(json.dumps({"attributes": {"name": "mine"}}))
    (path / "a" / "zarr.json").write_text(json.dumps({"codecs": [{"name": "bytes"}]}))
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a/.zarray", {"filters": [{"id": "pickle", "protocol": 5}]}),
        (
            "a/zarr.json",
            {"codecs": [{"name": "sharding", "codecs": [{"name": "numcodecs.Pickle"}]}]},
        ),
        (".zmetadata", {"metadata": {"a/.zarray": {"compressor": {"id": "pickle"}}}}),
        ("a/.zattrs", {"object_codec_id": "pickle"}),
    ],
)
def test_pickles_are_refused(folder: Path, name: str, content: Any) -> None:
    refuse_code(folder)
    (folder / name).write_text(json.dumps(content))
    with pytest.raises(InputError, match="pickles, which run code"):
        refuse_code(folder)


@pytest.mark.parametrize("text", ["{", "[" * 10**5, "\ud800"])
def test_metadata_that_cannot_be_read_are_refused(folder: Path, text: str) -> None:
    (folder / "a" / "zarr.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(InputError, match=r"zarr.json cannot be read"):
        refuse_code(folder)
    assert read_attributes(folder / "a") == {}
    assert read_attributes(folder) == {"name": "mine"}
    assert read_attributes(folder / "nowhere") == {}


def test_metadata_of_an_absurd_size_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("terrazzo.safe_zarr._MAX_METADATA", 10)
    with pytest.raises(InputError, match="that is not a file of settings"):
        refuse_code(folder)


def test_links_that_lead_out_are_refused(folder: Path, tmp_path: Path) -> None:
    refuse_links(folder)
    (folder / "b").symlink_to(folder / "a" / "c" / "0")
    refuse_links(folder)  # a file of its own
    outside = tmp_path / "secret"
    outside.write_text("x")
    for target in (outside, tmp_path, folder / "a", tmp_path / "nowhere", Path("..", "secret")):
        link = folder / "a" / "link"
        link.symlink_to(target)
        with pytest.raises(InputError, match=r"a/link is a link to"):
            refuse_links(folder)
        link.unlink()
    around = tmp_path / "around.zarr"
    around.symlink_to(folder)
    refuse_links(around)  # how the store itself is named is the user's business


def test_pipes_and_lists_of_files_are_refused(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    with pytest.raises(InputError, match="neither a file nor a folder"):
        refuse_links(folder)
    (folder / "pipe").unlink()
    (folder / "a" / "_metadata").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="lists Parquet files"):
        refuse_links(folder)
