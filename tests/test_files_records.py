"""Proof that bytes are what was written: what a hash must see."""

from __future__ import annotations

from pathlib import Path

import pytest

from terrazzo.errors import CorpusError
from terrazzo.files import hash_path, read_record, write_record


def test_the_hash_of_a_folder_sees_names_and_contents(tmp_path: Path) -> None:
    folder = tmp_path / "a.zarr"
    folder.mkdir()
    (folder / "x").write_bytes(b"1")
    first = hash_path(folder)
    (folder / "x").rename(folder / "y")
    second = hash_path(folder)
    (folder / "y").write_bytes(b"2")
    assert len({first, second, hash_path(folder), hash_path(folder / "y")}) == 4


def test_a_record_is_read_as_written_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_record(path, {"b": 1, "a": [None, "x"]})
    assert read_record(path) == {"b": 1, "a": [None, "x"]}
    whole = path.read_text()
    for text in (whole.replace("1", "2", 1), whole[:-2], "[]", "{}", whole + " "):
        path.write_text(text)
        with pytest.raises(CorpusError, match="is damaged"):
            read_record(path)
    path.unlink()
    with pytest.raises(CorpusError, match="is missing"):
        read_record(path)
