"""Building: resumable, atomic, the same twice; nothing enters twice, and no donor straddles the splits."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import psutil
import pytest

from terrazzo import corpus, simulate
from terrazzo.cli.main import main
from terrazzo.corpus import members as member
from terrazzo.corpus.splits import Splits, assign
from terrazzo.errors import ConfigError, CorpusError, InputError, OutputError, TerrazzoWarning


def build(sources: Any, out: Path, **options: Any) -> corpus.Corpus:
    return corpus.build(
        sources, out, **{"min_genes": 0, "scheduler": "synchronous", "progress": False, **options}
    )


@pytest.fixture(scope="module")
def slices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slices")
    for i, adata in enumerate(simulate.corpus(4, 120, n_genes=50, seed=2, n_donors=2)):
        adata.write_h5ad(folder / f"s{i}.h5ad")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def test_building_twice_gives_the_same_bytes(slices: Path, tmp_path: Path) -> None:
    one, two = build([slices], tmp_path / "one"), build([slices], tmp_path / "two")
    assert contents(one.folder) == contents(two.folder)


def test_row_order_of_the_source_does_not_matter(slices: Path, tmp_path: Path) -> None:
    adata = anndata.read_h5ad(slices / "s0.h5ad")
    adata[np.random.default_rng(0).permutation(adata.n_obs)].copy().write_h5ad(tmp_path / "s0.h5ad")
    one, two = (
        build(slices / "s0.h5ad", tmp_path / "one"),
        build(tmp_path / "s0.h5ad", tmp_path / "two"),
    )
    assert one.manifest["content"].tolist() == two.manifest["content"].tolist()
    assert (one.rows("s0", 0, 120) != two.rows("s0", 0, 120)).nnz == 0


def test_finished_members_are_not_made_again(
    slices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted(slices.glob("*.h5ad"))
    build(files[:2], tmp_path)
    made: list[str] = []
    whole = member.write_member
    monkeypatch.setattr(
        member, "write_member", lambda path, *rest: (made.append(path.name), whole(path, *rest))
    )
    before = contents(tmp_path)
    build(files[:2], tmp_path)
    assert made == []
    assert contents(tmp_path) == before
    build(files[:3], tmp_path)
    assert made == [".s2.zarr.part"]
    build(files[:3], tmp_path, min_genes=5)
    assert len(made) == 4
    (tmp_path / "members" / "s1.zarr" / "X" / "zarr.json").unlink()
    assert len(build(files[:3], tmp_path, min_genes=5)) == 3
    assert made[4:] == [".s1.zarr.part"]
    with pytest.raises(CorpusError, match="not among the sources"):
        build(files[:2], tmp_path)


class Killed(BaseException):
    """As sudden as it gets within a process."""


@pytest.mark.parametrize("old", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_stopped_at_any_rename_it_continues(
    slices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: bool
) -> None:
    files = sorted(slices.glob("*.h5ad"))[:2]
    wanted = contents(build(files, tmp_path / "wanted").folder)
    rename = Path.replace
    for limit in range(1, 30):
        out = tmp_path / f"stopped{limit}"
        if old:
            build(files[:1], out)
        left = [limit]

        def stop(self: Path, target: Path, left: list[int] = left) -> Path:
            left[0] -= self.name.endswith(".part")
            if left[0] == 0 and self.name.endswith(".part"):
                raise Killed
            return rename(self, target)

        monkeypatch.setattr(Path, "replace", stop)
        try:
            build(files, out)
        except Killed:
            monkeypatch.setattr(Path, "replace", rename)
            if old:  # what was there stays usable, or says that it is not finished
                assert corpus.verify(out) in (
                    [],
                    ["slice s1: members/s1.zarr is not in the manifest"],
                )
                assert corpus.Corpus.open(out).ids()[0] == "s0"
            else:
                with pytest.raises(CorpusError, match="not finished"):
                    corpus.Corpus.open(out)
        else:
            break
        build(files, out)
        assert contents(out) == wanted
    assert limit > (3 if old else 5)


KILLED = """
import os, signal, sys
from terrazzo import corpus
from terrazzo.corpus import member

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

def second(*args, times=[]):
    times.append(1)
    return die() if len(times) == 2 else whole(*args)

whole = member.hash_files
if sys.argv[3] == "member":
    member.hash_files = second
else:
    sys.modules["terrazzo.corpus.build"].write_bytes = die
corpus.build([sys.argv[1]], sys.argv[2], min_genes=0, scheduler="synchronous")
"""


@pytest.mark.parametrize("where", ["member", "manifest"])
def test_killed_it_continues(slices: Path, tmp_path: Path, where: str) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLED, str(slices), str(out), where]
    assert subprocess.run(command, check=False, env=os.environ).returncode == -9
    assert any(path.name.endswith(".part") for path in out.rglob("*")) == (where == "member")
    with pytest.raises(CorpusError, match="not finished"):
        corpus.Corpus.open(out)
    built = build([slices], out)
    assert built.ids() == ["s0", "s1", "s2", "s3"]
    assert corpus.verify(built, progress=False) == []
    assert not [path for path in out.rglob("*") if path.name.endswith(".part")]


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_killed_at_any_moment_it_continues(slices: Path, tmp_path: Path, workers: str) -> None:
    out, rng, kills = tmp_path / "out", np.random.default_rng(int(workers)), 0
    command = [sys.executable, "-m", "terrazzo", "corpus", "build", str(slices), "--min-genes", "0"]
    command += ["--workers", workers, "--out"]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
    wanted = contents(tmp_path / "whole")
    for share in np.sort(rng.uniform(0, 0.9, 3)):
        with subprocess.Popen(
            [*command, str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as running:
            while running.poll() is None and sum(
                len(files) for *_, files in os.walk(out)
            ) < share * len(wanted):
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.05))
            running.kill()  # this process only: its workers must not write on, beside those of the next build
        kills += running.returncode == -9
    assert kills >= 2
    subprocess.run([*command, str(out)], check=True, capture_output=True)
    assert contents(out) == wanted
    assert corpus.verify(out, progress=False) == []


def test_workers_end_with_a_killed_build() -> None:
    code = "import time; from terrazzo.corpus.scheduler import run_tasks; list(run_tasks(time.sleep, [99, 99], None, 2))"
    with subprocess.Popen([sys.executable, "-c", code]) as running:
        process, deadline = psutil.Process(running.pid), time.monotonic() + 60
        while len(process.children(recursive=True)) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(2)
        children = process.children(recursive=True)
        running.kill()
    assert len(children) >= 2
    assert psutil.wait_procs(children, timeout=20)[1] == []


def test_a_build_beside_a_build_is_refused(slices: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = f"""
import pathlib, time
from terrazzo.corpus.running import alone
pathlib.Path({str(out)!r}, "members").mkdir(parents=True)
with alone(pathlib.Path({str(out)!r})):
    print("held", flush=True)
    time.sleep(99)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(
            CorpusError,
            match=rf"is being built by process {other.pid} on .*wait until that is done",
        ):
            build([slices], out)
        assert list((out / "members").iterdir()) == []
        other.kill()
    assert (out / ".lock").exists()  # of a dead process: that stops nobody
    assert len(build([slices], out)) == 4
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
def test_the_same_build_again_mends_what_is_damaged(
    slices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    out, files = tmp_path / "out", sorted(slices.glob("*.h5ad"))[:2]
    wanted = contents(build(files, out).folder)
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
    made: list[str] = []
    whole = member.write_member
    monkeypatch.setattr(
        member, "write_member", lambda path, *rest: (made.append(path.name), whole(path, *rest))
    )
    build(files, out)
    assert contents(out) == wanted
    assert corpus.verify(out, progress=False) == []
    assert made == ([] if path.parent == out else [".s1.zarr.part"])


def test_duplicates_are_refused_and_reported(slices: Path, tmp_path: Path) -> None:
    adata = anndata.read_h5ad(slices / "s1.h5ad")
    again = adata[::-1, ::-1].copy()
    again.var_names = again.var["ensembl_id"].tolist()
    again.obs_names = [f"other-{i}" for i in range(again.n_obs)]
    again.write_h5ad(tmp_path / "again.h5ad")
    files = [slices / "s0.h5ad", slices / "s1.h5ad", tmp_path / "again.h5ad"]
    with pytest.warns(TerrazzoWarning, match="again: duplicate of s1"):
        built = build(files, tmp_path / "out")
    assert built.ids() == ["s0", "s1"]
    assert [row["id"] for row in built.about["dropped"]] == ["again"]
    assert corpus.verify(built, progress=False) == []
    before = contents(built.folder)
    with pytest.warns(TerrazzoWarning, match="again: duplicate of s1"):
        build(files, tmp_path / "out")
    assert contents(built.folder) == before
    # of two, the one that is held out stays
    table = pd.DataFrame({"path": map(str, files), "split": ["train", "train", "test"]})
    table.to_csv(tmp_path / "table.csv", index=False)
    with pytest.warns(TerrazzoWarning) as caught:
        held = build(tmp_path / "table.csv", tmp_path / "held")
    assert any("s1: duplicate of again" in str(w.message) for w in caught)
    assert held.ids("test") == ["again"]
    assert held.ids("train") == ["s0"]


def test_a_duplicate_of_what_is_gone_is_none(slices: Path, tmp_path: Path) -> None:
    shutil.copy(slices / "s0.h5ad", tmp_path / "twin.h5ad")
    with pytest.warns(TerrazzoWarning, match="duplicate"):
        build([slices / "s0.h5ad", slices / "s1.h5ad", tmp_path / "twin.h5ad"], tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "members" / "s0.zarr")
    built = build([slices / "s1.h5ad", tmp_path / "twin.h5ad"], tmp_path / "out")
    assert built.ids() == ["s1", "twin"]
    assert corpus.verify(built, progress=False) == []


def test_evaluation_slices_are_kept_out_by_content(slices: Path, tmp_path: Path) -> None:
    shutil.copy(slices / "s3.h5ad", tmp_path / "renamed.h5ad")
    with pytest.warns(TerrazzoWarning, match="which is excluded"):
        built = build([slices], tmp_path / "out", exclude=[tmp_path / "renamed.h5ad"])
    assert built.ids() == ["s0", "s1", "s2"]


def test_quality_control(slices: Path, tmp_path: Path) -> None:
    adata = anndata.read_h5ad(slices / "s0.h5ad")
    expressed = np.diff(adata.X.indptr)
    limit = int(np.median(expressed))
    built = build(slices / "s0.h5ad", tmp_path / "out", min_genes=limit)
    assert built.n_cells() == (expressed >= limit).sum()
    assert built.manifest["n_cells_read"].tolist() == [120]
    assert "cells left out" in built.about["notes"]["s0"][0]
    poor = adata.copy()
    poor.X = poor.X.multiply(np.arange(120)[:, None] < 3).tocsr()
    poor.write_h5ad(tmp_path / "poor.h5ad")
    with pytest.warns(TerrazzoWarning, match="poor: 3 of 120 cells have at least 5"):
        some = build(
            [slices / "s0.h5ad", tmp_path / "poor.h5ad"],
            tmp_path / "some",
            min_genes=5,
            min_cells=10,
        )
    assert some.ids() == ["s0"]
    with pytest.raises(
        CorpusError, match=r"no slice is left: poor: 3 of 120.*need a smaller --min-genes"
    ):
        build(tmp_path / "poor.h5ad", tmp_path / "none", min_genes=5, min_cells=10)
    with pytest.warns(
        TerrazzoWarning, match=r"1 slices lose more than half .* poor: 3 of 120 .* --min-genes"
    ):
        assert (
            build(
                [slices / "s0.h5ad", tmp_path / "poor.h5ad"], tmp_path / "few", min_genes=5
            ).n_cells()
            > 3
        )


@pytest.fixture
def mixed(slices: Path, tmp_path: Path) -> list[Path]:
    simulate.tissue(80, n_genes=50, organism="mouse").write_h5ad(tmp_path / "mouse.h5ad")
    return [slices / "s0.h5ad", tmp_path / "mouse.h5ad"]


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
    assert len(vocabulary) == 50
    assert vocabulary.match(built.slice("mouse")).coverage.n_matched == 39
    with pytest.raises(InputError, match="second column reads as"):
        build(mixed, tmp_path / "bad", orthologs={"x": "1"})


def test_donors_do_not_straddle(slices: Path, tmp_path: Path) -> None:
    built = build([slices], tmp_path / "out", splits=Splits("donor", test=0.5))
    by_donor = built.manifest.groupby("donor")["split"].agg(set)
    assert sorted(map(len, by_donor)) == [1, 1]
    assert sorted(map(min, by_donor)) == ["test", "train"]
    assert len(built.ids("train")) == 2
    # the vocabulary knows the training slices only
    alone = build([slices / f"{name}.h5ad" for name in built.ids("train")], tmp_path / "alone")
    assert built.vocabulary().content_hash() == alone.vocabulary().content_hash()


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


def test_a_table_of_sources(slices: Path, tmp_path: Path) -> None:
    shutil.copy(slices / "s0.h5ad", tmp_path / "a b.h5ad")
    rows = {
        "path": ["a b.h5ad", str(slices / "s2.h5ad")],
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
    for text, said in (
        ("path,tisue\nx,y\n", "unknown column 'tisue'. Did you mean 'tissue'"),
        ("id\nx\n", "needs a column path"),
        ("path,split\na b.h5ad,valid\n", "line 2: split 'valid'"),
        ("path,microns_per_unit\na b.h5ad,one\n", "'one' is no number"),
    ):
        (tmp_path / "bad.csv").write_text(text)
        with pytest.raises(CorpusError, match=said):
            build(tmp_path / "bad.csv", tmp_path / "bad")
    (tmp_path / "sub").mkdir()
    shutil.copy(slices / "s2.h5ad", tmp_path / "sub" / "s0.h5ad")
    both = build([slices / "s0.h5ad", tmp_path / "sub"], tmp_path / "both")
    assert both.ids() == [f"{slices.name}_s0", "sub_s0"]


def test_slices_that_cannot_be_used(slices: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.h5ad").write_bytes(b"nothing")
    files = [slices / "s0.h5ad", tmp_path / "broken.h5ad"]
    with pytest.raises(CorpusError, match=r"1 of 2 slices cannot be used(.|\n)*broken: .*damaged"):
        build(files, tmp_path / "out")
    with pytest.warns(TerrazzoWarning, match="1 slices are left out: broken"):
        assert build(files, tmp_path / "out", skip_failed=True).ids() == ["s0"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    with pytest.raises(CorpusError, match="is not empty and is no corpus"):
        build(files, tmp_path / "mine")
    with pytest.raises(InputError, match="does not exist"):
        build(tmp_path / "gone.h5ad", tmp_path / "out")
    with pytest.raises(ConfigError, match="scheduler 'dask' is not known"):
        build(files, tmp_path / "out", scheduler="dask")


def test_a_full_disk_keeps_what_is_finished(
    slices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, calls = member.write_member, []

    def full(path: Path, *rest: Any) -> None:
        calls.append(path.name)
        whole(path, *rest)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(member, "write_member", full)
    with pytest.raises(OutputError, match=r"No space left on device.*Finished slices are kept"):
        build([slices], tmp_path)
    with pytest.raises(CorpusError, match="was not finished"):
        corpus.Corpus.open(tmp_path)
    assert len(build([slices], tmp_path)) == 4
    assert calls == [
        ".s0.zarr.part",
        ".s1.zarr.part",
        ".s1.zarr.part",
        ".s2.zarr.part",
        ".s3.zarr.part",
    ]
    assert corpus.verify(tmp_path, progress=False) == []


def test_an_unforeseen_error_names_its_slice(
    slices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def odd(*_: Any) -> None:
        raise RuntimeError("odd")

    monkeypatch.setattr(member, "write_member", odd)
    with pytest.raises(RuntimeError) as caught:
        build(slices / "s2.h5ad", tmp_path)
    assert caught.value.__notes__ == [f"in slice s2: {slices / 's2.h5ad'}"]


@pytest.mark.parametrize(
    "scheduler", [pytest.param("processes", marks=pytest.mark.slow), "threads"]
)
def test_dask_gives_the_same(slices: Path, tmp_path: Path, scheduler: str) -> None:
    files = sorted(slices.glob("*.h5ad"))[:2]
    one = build(files, tmp_path / "one", scheduler=scheduler, workers=2)
    assert contents(one.folder) == contents(build(files, tmp_path / "two").folder)


def test_a_dask_cluster_gives_the_same(slices: Path, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    files = sorted(slices.glob("*.h5ad"))[:2]
    with distributed.LocalCluster(
        n_workers=1,
        threads_per_worker=1,
        processes=False,
        dashboard_address=None,
        protocol="tcp://",
    ) as cluster:
        one = build(files, tmp_path / "one", scheduler=cluster.scheduler_address)
    assert contents(one.folder) == contents(build(files, tmp_path / "two").folder)


def test_command_line(slices: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    words = ["corpus", "build", str(slices), "--out", out, "--min-genes", "0", "--workers", "1"]
    assert main([*words, "--split-by", "donor", "--validation", "0.5"]) == 0
    assert "4 slices, 480 cells" in capsys.readouterr().out
    assert main(["corpus", "info", out]) == 0
    assert "MERFISH" in capsys.readouterr().out
    assert main(["corpus", "verify", out]) == 0
    shard = tmp_path / "out" / "members" / "s2.zarr" / "X" / "data" / "c" / "0"
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    capsys.readouterr()
    assert main(["corpus", "verify", out]) == 2
    assert "slice s2: members/s2.zarr/X/data/c/0 is damaged" in capsys.readouterr().err
    assert main(["corpus", "info", str(slices)]) == 2
    assert "is no corpus" in capsys.readouterr().err
