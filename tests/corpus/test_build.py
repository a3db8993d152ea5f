"""Building: resumable, atomic, the same twice; nothing enters twice, and no donor straddles the splits."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest

from terrazzo import corpus, simulate
from terrazzo.cli import main
from terrazzo.corpus import members
from terrazzo.corpus.splits import Splits, assign
from terrazzo.errors import ConfigError, CorpusError, InputError, OutputError, TerrazzoWarning
from terrazzo.locks import alone

N_CELLS = 60


def build(sources: Any, out: Path, **options: Any) -> corpus.Corpus:
    return corpus.build(
        sources, out, **{"min_genes": 0, "scheduler": "synchronous", "progress": False, **options}
    )


def build_renaming(sources: Any, out: Path, before: Callable[[str], None]) -> None:
    """Build; call ``before`` with the final name of each file or folder just before it gets it."""
    rename = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if self.name.endswith(".part"):
            before(Path(target).name)
        return rename(self, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        build(sources, out)


@pytest.fixture(scope="module")
def slices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three slices of two donors; without columns, since every column is three files of a member."""
    folder = tmp_path_factory.mktemp("slices")
    for i, adata in enumerate(simulate.corpus(3, N_CELLS, n_genes=30, seed=2, n_donors=2)):
        adata.uns["donor"] = adata.obs["donor"].iloc[0]
        adata.obs = adata.obs[[]]
        adata.write_h5ad(folder / f"s{i}.h5ad")
    return folder


@pytest.fixture(scope="module")
def files(slices: Path) -> list[Path]:
    return sorted(slices.glob("*.h5ad"))


RENAMED: list[str] = []  # while the corpus of all slices was built, in this order


@pytest.fixture(scope="module")
def whole(slices: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus of all slices."""
    out = tmp_path_factory.mktemp("whole") / "out"
    build_renaming([slices], out, RENAMED.append)
    return out


@pytest.fixture(scope="module")
def pair(files: list[Path], whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus of the first two slices."""
    out = tmp_path_factory.mktemp("pair") / "out"
    shutil.copytree(whole, out)
    for path in out.glob("members/s2.*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return build(files[:2], out).folder


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the members that are written."""
    names: list[str] = []
    write = members.write_member

    def record(path: Path, *rest: Any) -> None:
        names.append(path.name.removeprefix(".").removesuffix(".zarr.part"))
        write(path, *rest)

    monkeypatch.setattr(members, "write_member", record)
    return names


def contents(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def test_building_twice_gives_the_same_bytes(files: list[Path], pair: Path, tmp_path: Path) -> None:
    assert contents(build(files[:2], tmp_path / "again").folder) == contents(pair)


def test_row_order_of_the_source_does_not_matter(
    files: list[Path], whole: Path, tmp_path: Path
) -> None:
    adata = anndata.read_h5ad(files[0])
    adata[np.random.default_rng(0).permutation(adata.n_obs)].copy().write_h5ad(tmp_path / "s0.h5ad")
    one = corpus.Corpus.open(whole)
    two = build(tmp_path / "s0.h5ad", tmp_path / "two")
    assert one.row("s0")["content"] == two.row("s0")["content"]
    assert (one.rows("s0", 0, N_CELLS) != two.rows("s0", 0, N_CELLS)).nnz == 0


def test_finished_members_are_not_made_again(
    files: list[Path], pair: Path, tmp_path: Path, made: list[str]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(pair, out)
    build(files[:2], out)
    assert made == []
    assert contents(out) == contents(pair)
    build(files[:2], out, min_genes=5)
    assert made == ["s0", "s1"]
    build(files, out, min_genes=5)
    assert made[2:] == ["s2"]
    (out / "members" / "s1.zarr" / "X" / "zarr.json").unlink()
    assert len(build(files, out, min_genes=5)) == 3
    assert made[3:] == ["s1"]
    with pytest.raises(CorpusError, match="not among the sources"):
        build(files[:2], out)


class Killed(BaseException):
    """As sudden as it gets within a process."""


def killer(step: str, times: int = 1) -> Callable[[str], None]:
    """Return a function that raises when it is called with this name so many times."""
    seen: list[str] = []

    def kill(name: str) -> None:
        seen.append(name)
        if seen.count(step) == times:
            raise Killed

    return kill


MEMBER_STEPS = [f"s{number}.{end}" for number in range(3) for end in ("zarr", "json")]
TABLE_STEPS = [".vocab.parquet.part", "corpus.json", "vocab.parquet", "manifest.parquet"]


def test_stopped_at_every_rename_it_continues(
    files: list[Path], pair: Path, tmp_path: Path
) -> None:
    """One build is stopped at each rename in turn; after each, a copy of what it left is completed."""
    assert RENAMED == MEMBER_STEPS + TABLE_STEPS
    out = tmp_path / "stopped"
    for step in MEMBER_STEPS[:4] + TABLE_STEPS:
        with pytest.raises(Killed):
            build_renaming(files[:2], out, killer(step))
        with pytest.raises(CorpusError, match="not finished"):
            corpus.Corpus.open(out)
        copy = tmp_path / f"copy-{step}"
        shutil.copytree(out, copy)
        assert contents(build(files[:2], copy).folder) == contents(pair)


def test_stopped_beside_an_older_corpus_it_continues(
    files: list[Path], pair: Path, tmp_path: Path
) -> None:
    """What was there stays usable at every rename."""
    old = build(files[:1], tmp_path / "old").folder
    for number, step in enumerate(MEMBER_STEPS[2:4] + TABLE_STEPS + ["corpus.json"]):
        out = tmp_path / f"stopped{number}"
        shutil.copytree(old, out)
        last = number == 6
        with pytest.raises(Killed):
            build_renaming(files[:2], out, killer(step, 2 if last else 1))
        unlisted = ["slice s1: members/s1.zarr is not in the manifest"]
        assert corpus.verify(out, progress=False) == ([] if number in (0, 6) else unlisted)
        assert corpus.Corpus.open(out).ids() == (["s0", "s1"] if last else ["s0"])
        assert contents(build(files[:2], out).folder) == contents(pair)


KILLED = """
import os, signal, sys
from terrazzo.corpus import build, members

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

def second(*args, times=[]):
    times.append(1)
    return die() if len(times) == 2 else hash_files(*args)

hash_files = members.hash_files
for where, out in zip(("member", "manifest"), sys.argv[1:]):
    child = os.fork()  # before anything has started a thread
    if not child:
        if where == "member":
            members.hash_files = second
        else:
            sys.modules["terrazzo.corpus.build"].write_bytes = die
        build(sys.argv[3:], out, min_genes=0, scheduler="synchronous")
        os._exit(0)
    print(where, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def test_killed_it_continues(files: list[Path], pair: Path, tmp_path: Path) -> None:
    places = {name: tmp_path / name for name in ("member", "manifest")}
    command = [sys.executable, "-c", KILLED, *map(str, places.values()), *map(str, files[:2])]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["member -9", "manifest -9"], done.stderr
    for where, out in places.items():
        assert any(path.name.endswith(".part") for path in out.rglob("*")) == (where == "member")
        assert (out / ".lock").exists()  # of a dead process: that stops nobody
        with pytest.raises(CorpusError, match="not finished"):
            corpus.Corpus.open(out)
        assert contents(build(files[:2], out).folder) == contents(pair)
        assert corpus.verify(out, progress=False) == []


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_killed_at_any_moment_it_continues(slices: Path, tmp_path: Path, workers: str) -> None:
    out, rng = tmp_path / "out", np.random.default_rng(int(workers))
    command = [sys.executable, "-m", "terrazzo", "corpus", "build", str(slices), "--min-genes", "0"]
    command += ["--workers", workers, "--out"]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
    wanted = contents(tmp_path / "whole")
    kills = 0
    while kills < 3:
        n_files = rng.uniform(0, 0.9) * len(wanted)
        with subprocess.Popen(
            [*command, str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as running:
            while (
                running.poll() is None and sum(len(names) for *_, names in os.walk(out)) < n_files
            ):
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.05))
            running.kill()  # this process only: its workers must not write on, beside those of the next build
        if running.returncode == -9:
            kills += 1
        else:
            shutil.rmtree(out)  # done before it could be killed
    subprocess.run([*command, str(out)], check=True, capture_output=True)
    assert contents(out) == wanted
    assert corpus.verify(out, progress=False) == []


WAITING = """
import os, threading

def wait(job):
    os.write(1, b"waiting\\n")
    threading.Event().wait(600)
    os.write(1, b"survived\\n")
    os._exit(1)
"""

RUNNING = """
from terrazzo.corpus.scheduler import run_tasks
from waiting import wait

if __name__ == "__main__":
    list(run_tasks(wait, [1, 2], None, 2))
"""


def test_workers_end_with_a_killed_build(tmp_path: Path) -> None:
    """They share the build's standard output, which ends when the last of them has ended: there is no deadline."""
    (tmp_path / "waiting.py").write_text(WAITING)
    (tmp_path / "running.py").write_text(RUNNING)
    command = [sys.executable, str(tmp_path / "running.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert [running.stdout.readline() for _ in range(2)] == ["waiting\n"] * 2
        running.kill()  # the build alone
        assert running.stdout.read() == ""


LOCKING = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""


def test_a_build_beside_a_build_is_refused(files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with alone(out), pytest.raises(CorpusError) as caught:
        build(files, out)
    refused = rf"is being built by process {os.getpid()} on .*wait until that is done"
    assert re.search(refused, str(caught.value))
    assert not (out / ".lock").exists()
    command = [sys.executable, "-c", LOCKING, str(out / ".lock")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(CorpusError, match="is being built by another process: wait"):
            build(files, out)
    assert list((out / "members").iterdir()) == []
    assert len(build(files[:1], out)) == 1
    assert not (out / ".lock").exists()


def test_where_there_are_no_locks_a_build_says_so(
    slices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.warns(TerrazzoWarning, match="has no locks"):
        assert len(build(slices / "s0.h5ad", tmp_path / "out")) == 1


@pytest.mark.parametrize(
    "damage", ["flipped", "gone", "more", "record", "vocabulary", "manifest", "corpus.json"]
)
def test_the_same_build_again_fixes_what_is_damaged(
    files: list[Path], pair: Path, tmp_path: Path, made: list[str], damage: str
) -> None:
    out = tmp_path / "out"
    shutil.copytree(pair, out)
    path = {
        "record": out / "members" / "s1.json",
        "more": out / "members" / "s1.zarr" / "X" / "stray",
        "vocabulary": out / "vocab.parquet",
        "manifest": out / "manifest.parquet",
        "corpus.json": out / "corpus.json",
    }.get(damage, out / "members" / "s1.zarr" / "X" / "indices" / "c" / "0")
    content = path.read_bytes() if path.exists() else b"x"
    at = len(content) // 2
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    try:
        problems = corpus.verify(out, progress=False)
    except CorpusError as error:
        problems = [str(error)]
    assert len(problems) == 1
    assert path.name in problems[0]
    build(files[:2], out)
    assert contents(out) == contents(pair)
    assert corpus.verify(out, progress=False) == []
    assert made == ([] if path.parent == out else ["s1"])


def test_duplicates_are_refused_and_reported(files: list[Path], pair: Path, tmp_path: Path) -> None:
    adata = anndata.read_h5ad(files[1])
    again = adata[::-1, ::-1].copy()
    again.var_names = again.var["ensembl_id"].tolist()
    again.obs_names = [f"other-{i}" for i in range(again.n_obs)]
    again.write_h5ad(tmp_path / "again.h5ad")
    some = [*files[:2], tmp_path / "again.h5ad"]
    out = tmp_path / "out"
    shutil.copytree(pair, out)
    with pytest.warns(TerrazzoWarning, match="again: duplicate of s1"):
        built = build(some, out)
    assert built.ids() == ["s0", "s1"]
    assert [row["id"] for row in built.about["dropped"]] == ["again"]
    assert corpus.verify(built, progress=False) == []
    before = contents(built.folder)
    with pytest.warns(TerrazzoWarning, match="again: duplicate of s1"):
        build(some, out)
    assert contents(built.folder) == before
    # of two, the one that is held out stays
    table = pd.DataFrame({"path": map(str, some), "split": ["train", "train", "test"]})
    table.to_csv(tmp_path / "table.csv", index=False)
    with pytest.warns(TerrazzoWarning) as caught:
        held_out = build(tmp_path / "table.csv", out)
    assert any("s1: duplicate of again" in str(w.message) for w in caught)
    assert held_out.ids("test") == ["again"]
    assert held_out.ids("train") == ["s0"]


def test_a_duplicate_of_what_is_removed_is_none(
    files: list[Path], pair: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(pair, out)
    shutil.copy(files[0], tmp_path / "twin.h5ad")
    with pytest.warns(TerrazzoWarning, match="duplicate"):
        build([*files[:2], tmp_path / "twin.h5ad"], out)
    shutil.rmtree(out / "members" / "s0.zarr")
    built = build([files[1], tmp_path / "twin.h5ad"], out)
    assert built.ids() == ["s1", "twin"]
    assert corpus.verify(built, progress=False) == []


def test_evaluation_slices_are_kept_out_by_content(
    files: list[Path], whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    shutil.copy(files[2], tmp_path / "renamed.h5ad")
    with pytest.warns(TerrazzoWarning, match="which is excluded"):
        built = build(files, out, exclude=[tmp_path / "renamed.h5ad"])
    assert built.ids() == ["s0", "s1"]


def test_quality_control(files: list[Path], tmp_path: Path) -> None:
    adata = anndata.read_h5ad(files[0])
    expressed = np.diff(adata.X.indptr)
    limit = int(np.median(expressed))
    built = build(files[0], tmp_path / "out", min_genes=limit)
    assert built.n_cells() == (expressed >= limit).sum()
    assert built.manifest["n_cells_read"].tolist() == [60]
    assert "cells left out" in built.about["notes"]["s0"][0]
    poor = adata.copy()
    poor.X = poor.X.multiply(np.arange(60)[:, None] < 3).tocsr()
    poor.write_h5ad(tmp_path / "poor.h5ad")
    with pytest.warns(TerrazzoWarning, match="poor: 3 of 60 cells have at least 5"):
        some = build(
            [files[0], tmp_path / "poor.h5ad"],
            tmp_path / "some",
            min_genes=5,
            min_cells=10,
        )
    assert some.ids() == ["s0"]
    with pytest.raises(
        CorpusError, match=r"no slice is left: poor: 3 of 60.*need a smaller --min-genes"
    ):
        build(tmp_path / "poor.h5ad", tmp_path / "none", min_genes=5, min_cells=10)
    with pytest.warns(
        TerrazzoWarning, match=r"1 slices lose more than half .* poor: 3 of 60 .* --min-genes"
    ):
        few = build([files[0], tmp_path / "poor.h5ad"], tmp_path / "few", min_genes=5)
    assert few.n_cells() > 3


@pytest.fixture
def mixed(files: list[Path], tmp_path: Path) -> list[Path]:
    simulate.tissue(80, n_genes=50, organism="mouse").write_h5ad(tmp_path / "mouse.h5ad")
    return [files[0], tmp_path / "mouse.h5ad"]


def test_several_organisms_need_orthologs(mixed: list[Path], tmp_path: Path) -> None:
    with pytest.raises(
        CorpusError, match=r"several organisms: human \(s0\), mouse \(mouse\).*--orthologs"
    ):
        build(mixed, tmp_path / "out")
    pairs = {
        f"ENSMUSG{99_000_000_001 + i:011d}": f"ENSG{99_000_000_001 + i:011d}" for i in range(40)
    }
    pairs["ENSMUSG99000000041"] = pairs["ENSMUSG99000000040"]  # not one-to-one: both are lost
    built = build(mixed, tmp_path / "out", orthologs=pairs)
    rows = built.manifest.set_index("id")
    assert rows.loc["mouse", ["organism", "gene_organism", "n_genes"]].tolist() == [
        "mouse",
        "human",
        39,
    ]
    assert built.slice("mouse").organism == "human"
    assert "39 of 50 mouse genes" in built.about["notes"]["mouse"][0]
    vocabulary = built.vocabulary()
    assert vocabulary.organism == "human"
    assert len(vocabulary) == 39  # of them 30 that the human slice has
    assert vocabulary.match(built.slice("mouse")).coverage.n_matched == 39
    with pytest.raises(InputError, match="second column reads as"):
        build(mixed, tmp_path / "bad", orthologs={"x": "1"})


def test_donors_do_not_straddle(files: list[Path], whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    built = build(files, out, splits=Splits("donor", test=0.5))
    by_donor = built.manifest.groupby("donor")["split"].agg(set)
    assert sorted(map(len, by_donor)) == [1, 1]
    assert sorted(map(min, by_donor)) == ["test", "train"]
    # the vocabulary knows the training slices only
    train = [path for path in files if path.stem in built.ids("train")]
    only = build(train, tmp_path / "only")
    assert built.vocabulary().content_hash() == only.vocabulary().content_hash()


def test_deals() -> None:
    ids, donors = [f"s{i}" for i in range(12)], [f"d{i // 3}" for i in range(12)]
    free: list[str | None] = [None] * 12
    for seed in range(10):
        dealt = assign(ids, donors, free, Splits("donor", validation=0.25, test=0.25, seed=seed))
        assert [dealt.count(s) for s in ("train", "validation", "test")] == [6, 3, 3]
        assert all(len(set(dealt[3 * i : 3 * i + 3])) == 1 for i in range(4))
        assert dealt == assign(
            ids, donors, free, Splits("donor", validation=0.25, test=0.25, seed=seed)
        )
    joined = ["a", "a|b", "b", "c", "c", "d", "d", "d", "d", "e", "f", "g"]
    for seed in range(10):
        assert len(set(assign(ids, joined, free, Splits("donor", test=0.4, seed=seed))[:3])) == 1
    stated = ["test", *[None] * 11]
    assert assign(ids, donors, stated, Splits("donor"))[:4] == ["test", "test", "test", "train"]
    with pytest.raises(CorpusError, match="its donor is in train and in test"):
        assign(ids, donors, ["test", "train", *[None] * 10], Splits("donor"))
    with pytest.warns(TerrazzoWarning, match="1 donors have slices in more than one split"):
        assert assign(ids, donors, stated, Splits("slice")).count("test") == 1
    with pytest.raises(CorpusError, match="donor of 1 slices is not known"):
        assign(ids, ["unknown", *donors[1:]], free, Splits("donor", test=0.1))
    with pytest.raises(CorpusError, match="no slice is left to train on"):
        assign(["a"], ["d"], [None], Splits("slice", test=0.5))
    with pytest.raises(ConfigError, match="below 1 together"):
        Splits("slice", validation=0.5, test=0.5)


def test_a_table_of_sources(files: list[Path], tmp_path: Path) -> None:
    shutil.copy(files[0], tmp_path / "a b.h5ad")
    rows = {
        "path": ["a b.h5ad", str(files[2])],
        "tissue": ["cortex", ""],
        "technology": ["Xenium", ""],
    }
    pd.DataFrame({**rows, "donor": ["x", "y"], "split": ["", "test"]}).to_csv(
        tmp_path / "t.csv", index=False
    )
    built = build(tmp_path / "t.csv", tmp_path / "out")
    first, second = built.manifest.to_dict("records")
    assert (first["id"], first["tissue"], first["technology"], first["donor"]) == (
        "a_b",
        "cortex",
        "Xenium",
        "x",
    )
    assert (second["tissue"], second["technology"], second["split"]) == (
        "unknown",
        "MERFISH",
        "test",
    )
    assert built.slice("a_b").technology == "Xenium"
    for text, message in (
        ("path,tisue\nx,y\n", "unknown column 'tisue'. Did you mean 'tissue'"),
        ("id\nx\n", "needs a column path"),
        ("path,split\na b.h5ad,valid\n", "line 2: split 'valid'"),
        ("path,microns_per_unit\na b.h5ad,one\n", "'one' is not a number"),
    ):
        (tmp_path / "bad.csv").write_text(text)
        with pytest.raises(CorpusError, match=message):
            build(tmp_path / "bad.csv", tmp_path / "bad")
    (tmp_path / "sub").mkdir()
    shutil.copy(files[2], tmp_path / "sub" / "s0.h5ad")
    both = build([files[0], tmp_path / "sub"], tmp_path / "both")
    assert both.ids() == [f"{files[0].parent.name}_s0", "sub_s0"]


def test_slices_that_cannot_be_used(files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "broken.h5ad").write_bytes(b"nothing")
    some = [files[0], tmp_path / "broken.h5ad"]
    with pytest.raises(CorpusError, match=r"1 of 2 slices cannot be used(.|\n)*broken: .*damaged"):
        build(some, tmp_path / "out")
    with pytest.warns(TerrazzoWarning, match="1 slices are left out: broken"):
        assert build(some, tmp_path / "out", skip_failed=True).ids() == ["s0"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    with pytest.raises(CorpusError, match="is not empty and is not a corpus"):
        build(some, tmp_path / "mine")
    with pytest.raises(InputError, match="does not exist"):
        build(tmp_path / "gone.h5ad", tmp_path / "out")
    with pytest.raises(ConfigError, match="scheduler 'dask' is not known"):
        build(some, tmp_path / "out", scheduler="dask")


def test_a_full_disk_keeps_what_is_finished(
    files: list[Path], pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = members.write_member
    calls = []

    def full(path: Path, *rest: Any) -> None:
        calls.append(path.name)
        write(path, *rest)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(members, "write_member", full)
    with pytest.raises(OutputError, match=r"No space left on device.*Finished slices are kept"):
        build(files[:2], tmp_path)
    with pytest.raises(CorpusError, match="was not finished"):
        corpus.Corpus.open(tmp_path)
    assert contents(build(files[:2], tmp_path).folder) == contents(pair)
    assert calls == [f".s{number}.zarr.part" for number in (0, 1, 1)]


def test_an_unforeseen_error_names_its_slice(
    slices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def odd(*_: Any) -> None:
        raise RuntimeError("odd")

    monkeypatch.setattr(members, "write_member", odd)
    with pytest.raises(RuntimeError) as caught:
        build(slices / "s2.h5ad", tmp_path)
    assert caught.value.__notes__ == [f"in slice s2: {slices / 's2.h5ad'}"]


@pytest.mark.parametrize(
    "scheduler", [pytest.param("processes", marks=pytest.mark.slow), "threads"]
)
def test_dask_gives_the_same(files: list[Path], pair: Path, tmp_path: Path, scheduler: str) -> None:
    one = build(files[:2], tmp_path, scheduler=scheduler, workers=2)
    assert contents(one.folder) == contents(pair)


def test_a_dask_cluster_gives_the_same(files: list[Path], pair: Path, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=1,
        threads_per_worker=1,
        processes=False,
        dashboard_address=None,
        protocol="tcp://",
    ) as cluster:
        one = build(files[:2], tmp_path, scheduler=cluster.scheduler_address)
    assert contents(one.folder) == contents(pair)


def test_command_line(
    slices: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    shutil.copytree(whole, out)
    words = ["corpus", "build", str(slices), "--out", out, "--min-genes", "0", "--workers", "1"]
    assert main([*words, "--split-by", "donor", "--validation", "0.5"]) == 0
    assert "3 slices, 180 cells" in capsys.readouterr().out
    assert main(["corpus", "info", out]) == 0
    assert "MERFISH" in capsys.readouterr().out
    assert main(["corpus", "verify", out]) == 0
    shard = tmp_path / "out" / "members" / "s2.zarr" / "X" / "data" / "c" / "0"
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    capsys.readouterr()
    assert main(["corpus", "verify", out]) == 2
    assert "slice s2: members/s2.zarr/X/data/c/0 is damaged" in capsys.readouterr().err
    assert main(["corpus", "info", str(slices)]) == 2
    assert "is not a corpus" in capsys.readouterr().err
