"""A file is whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from terrazzo.files import whole_file, whole_folder, why_not, write_text


def test_a_file_is_written(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "für alle")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "für alle"
    write_text(tmp_path / "a.txt", "anew")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.txt", "anew")]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, ValueError])
def test_what_stops_the_writing_leaves_the_file_as_it_was(
    tmp_path: Path, error: type[BaseException]
) -> None:
    write_text(tmp_path / "a.txt", "before")

    def write() -> None:
        with whole_file(tmp_path / "a.txt") as draft:
            draft.write_text("half")
            assert draft.suffix == ".part"
            raise error

    with pytest.raises(error):
        write()
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.txt", "before")]


def test_drafts_of_one_file_do_not_meet(tmp_path: Path) -> None:
    with whole_file(tmp_path / "a.txt") as one, whole_file(tmp_path / "a.txt") as other:
        assert one != other
        one.write_text("one")
        other.write_text("other")
    assert (tmp_path / "a.txt").read_text() == "one"  # the last to be finished
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(28, "No space left on device"), "the disk is full"),
        (RuntimeError("h5py: No space left on device"), "the disk is full"),
        (OSError("something else"), "something else"),
    ],
)
def test_why_it_could_not_be_written(error: Exception, says: str) -> None:
    assert why_not(error) == says


def test_a_folder_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    for text in ("one", "two"):
        with whole_folder(tmp_path / "a") as draft:
            (draft / text).write_text(text)
        assert [path.name for path in (tmp_path / "a").iterdir()] == [text]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, ValueError])
def test_what_stops_the_writing_leaves_the_folder_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "before").touch()

    def write(name: str) -> None:
        with whole_folder(tmp_path / name) as draft:
            (draft / "half").touch()
            assert draft.suffix == ".part"
            if name == "a":
                raise error

    with pytest.raises(error):
        write("a")
    rename = Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if path.suffix == ".part":
            raise error
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    for name in ("a", "b"):
        with pytest.raises(error):
            write(name)
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "before"]
