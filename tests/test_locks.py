"""One run at a time in a folder; drafts of dead processes are swept, those of running ones stay."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from terrazzo.errors import OutputError
from terrazzo.files import sweep, whole_file, whole_folder, work_folder, write_text
from terrazzo.locks import alone
from terrazzo.processes import Writer, own_tag, writer_of

HOLD = """
import sys, time
from pathlib import Path
from terrazzo.locks import alone
with alone(Path(sys.argv[1]), "trained"):
    print("locked", flush=True)
    time.sleep(600)
"""
DRAFT = """
import sys, time
from pathlib import Path
from terrazzo.files import whole_file, whole_folder, work_folder
folder = Path(sys.argv[1])
with whole_file(folder / "a.txt") as one, whole_folder(folder / "b") as two, work_folder(folder) as three:
    one.write_text("half")
    (two / "half").touch()
    (three / "half").touch()
    print("writing", flush=True)
    time.sleep(600)
"""


def start(code: str, folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline()
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


@pytest.mark.case(
    "I",
    given="A second run in the folder of one that still runs",
    gets="Refused, with the process that runs; the lock of a dead process is taken over",
)
def test_a_second_run_is_refused_with_the_process_of_the_first(tmp_path: Path) -> None:
    process = start(HOLD, tmp_path)
    with (
        pytest.raises(OutputError, match=f"is being written by process {process.pid} on "),
        alone(tmp_path),
    ):
        pass
    kill(process)
    assert (tmp_path / ".lock").exists()
    with alone(tmp_path):
        assert str(os.getpid()) in (tmp_path / ".lock").read_text()
        with pytest.raises(OutputError, match=str(os.getpid())), alone(tmp_path):
            pass
        with alone(tmp_path, name=".other.lock"):
            pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.case(
    "I",
    given="What a killed run left half-written",
    gets="Swept by the next run of the folder; that of a running process, or of another machine, stays",
)
def test_drafts_of_the_dead_are_swept(tmp_path: Path) -> None:
    process = start(DRAFT, tmp_path)
    drafts = sorted(path.name for path in tmp_path.iterdir())
    assert len(drafts) == 3
    sweep(tmp_path)
    write_text(tmp_path / "other.txt", "x")
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".part") == drafts
    kill(process)
    foreign = [".cache.part", ".a.txt.part", f".a.txt.{own_tag()}.part", "a.part"]
    elsewhere = re.sub(r"[0-9a-f]{8}-", "00000000-", drafts[0], count=1)
    for name in (*foreign, elsewhere):
        (tmp_path / name).touch()
    time.sleep(0.05)
    write_text(tmp_path / "a.txt", "whole")
    assert {path.name for path in tmp_path.iterdir()} == {
        *foreign,
        elsewhere,
        "a.txt",
        "other.txt",
    }


def test_sweeping_below(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    kill(start(DRAFT, tmp_path / "deep" / "er"))
    sweep(tmp_path)
    assert len(list((tmp_path / "deep" / "er").iterdir())) == 3
    sweep(tmp_path, deep=True)
    assert list((tmp_path / "deep" / "er").iterdir()) == []
    sweep(tmp_path / "missing", deep=True)


def test_a_folder_that_was_moved_aside_is_moved_back(tmp_path: Path) -> None:
    process = start(DRAFT, tmp_path)
    (tag,) = {path.name.split(".")[-3] for path in tmp_path.iterdir()}
    kill(process)
    sweep(tmp_path)
    for name in ("b", "c"):
        (tmp_path / f".{name}.{tag}.01234567.old").mkdir()
        (tmp_path / f".{name}.{tag}.01234567.old" / "older").touch()
    (tmp_path / "c").mkdir()
    sweep(tmp_path)
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["older"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "c"]
    assert list((tmp_path / "c").iterdir()) == []


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
@pytest.mark.case(
    "I", given="A umask", gets="Files and folders have the permissions that it asks for"
)
def test_modes_are_those_of_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_text(tmp_path / "a.txt", "x")
        with whole_folder(tmp_path / "b") as draft:
            (draft / "c").touch()
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o666 & ~mask
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o777 & ~mask
    assert (tmp_path / "b" / "c").stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("name", ["x" * 250, "ü" * 120, "é" * 60 + ".h5ad", "a b.txt"])
def test_long_names_have_drafts(tmp_path: Path, name: str) -> None:
    write_text(tmp_path / name, "x")
    with whole_folder(tmp_path / f"{name[:-1]}y") as draft:
        assert draft.is_dir()
    assert len(list(tmp_path.iterdir())) == 2


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "real").mkdir()
    (tmp_path / "disk" / "real.txt").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "real")
    (tmp_path / "link.txt").symlink_to(tmp_path / "disk" / "real.txt")
    write_text(tmp_path / "link.txt", "new")
    with whole_folder(tmp_path / "link") as draft:
        (draft / "new").touch()
    assert (tmp_path / "disk" / "real.txt").read_text() == "new"
    assert (tmp_path / "disk" / "real" / "new").exists()
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "link.txt").is_symlink()


def test_a_file_in_the_place_of_a_folder_stays(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("mine")
    with pytest.raises(OSError, match="file"), whole_folder(tmp_path / "a"):
        pass
    with pytest.raises(OSError, match="directory"), whole_file(tmp_path) as draft:
        draft.write_text("x")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "mine")]


def test_who_is_dead() -> None:
    own = writer_of(own_tag())
    assert own is not None
    assert not own.is_dead()
    assert Writer(own.machine, own.pid, own.started - 100).is_dead()  # its number was given anew
    assert Writer(own.machine, 2**22 + 1, own.started).is_dead()
    assert not Writer("00000000", own.pid, own.started - 100).is_dead()  # nobody knows
    assert writer_of("no-tag") is None


def test_work_is_gone_in_the_end(tmp_path: Path) -> None:
    def stop() -> None:
        with work_folder(tmp_path) as work:
            (work / "x").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert list(tmp_path.iterdir()) == []
