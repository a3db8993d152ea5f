"""Nothing of others is replaced or removed by any verb; one slice that fails never stops the others."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import pytest

from terrazzo.files import hash_files

pytestmark = pytest.mark.usefixtures("quiet_figures")

EMBED = "SLICES --model CHECKPOINT --out OUT"
DOMAINS = "SLICES --use-rep X_t -k 3 --label region --out OUT"
PROBE = "FIRST --use-rep X_t --label region --head linear --runs 1 --out OUT"
IMPUTE = "FIRST --model pca --n-genes 4 --head linear --runs 1 --out OUT"
TUNE = "FIRST --model CHECKPOINT --label region --out OUT"
BENCH = "TABLE --data DATA --models mine=obsm:X_t --seeds 1 --out OUT"
BUILD = "SLICES --out OUT --min-genes 1 --workers 1"
# verb, words, and the file of somebody else, in the folder of the test
FOREIGN = [
    ("embed", EMBED, "out/s1.h5ad"),
    ("domains", DOMAINS, "out/s1.h5ad"),
    ("domains", DOMAINS, "out/s1.png"),
    ("domains", DOMAINS, "out/s1-scores/metrics.parquet"),
    ("probe", PROBE, "out/scores/result.json"),
    ("probe", PROBE, "out/probe/thesis.tex"),
    ("probe", f"{PROBE} --predict FIRST", "out/s0.h5ad"),
    (
        "deconvolve",
        "FIRST --use-rep X_t --head linear --out OUT",
        "out/scores/predictions.parquet",
    ),
    ("impute", IMPUTE, "out/scores/result.json"),
    ("finetune", TUNE, "out/tuned/thesis.tex"),
    ("finetune", TUNE, "out/scores/result.json"),
    ("finetune", f"{TUNE} --predict FIRST", "out/s0.h5ad"),
    ("report", "SLICES --projection pca --out OUT.html", "out.html"),
    ("info", "FIRST --grid OUT.png --bin-um 40", "out.png"),
    ("info", "FIRST --overlay OUT.png", "out.png"),
    ("bench", BENCH, "out/small.md"),
    ("bench", BENCH, "out/small.png"),
    ("corpus build", BUILD, "out/thesis.tex"),
    ("corpus build", BUILD, "out/members/alice.json"),
    ("corpus build", BUILD, "out/members/s0.zarr/zarr.json"),
    ("pretrain", "RECIPE --out OUT", "out/thesis.tex"),
    ("demo", "--cells 60 --out OUT", "out/demo.csv"),
    ("demo", "--cells 60 --out OUT", "out/stofm/config.json"),
]


@pytest.mark.parametrize(("verb", "line", "name"), FOREIGN)
@pytest.mark.case(
    "G",
    given="A verb whose result would take the place of a foreign file or folder",
    gets="Exit code 2 before any work; every byte that was there is there",
)
def test_foreign_files_stay(
    call: Any, sentence: Any, tmp_path: Path, verb: str, line: str, name: str
) -> None:
    words = sentence(verb, line)
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("years of work")
    (path.parent / ".cache.part").write_text("mine, too")
    before = hash_files(tmp_path)
    code, _, err = call(*words)
    assert code == 2, err
    assert err.startswith("error: ")
    assert hash_files(tmp_path) == before


OWN = [
    ("embed", EMBED),
    ("domains", DOMAINS),
    ("probe", f"{PROBE} --predict FIRST"),
    ("report", "SLICES --projection pca --out OUT.html"),
    ("info", "FIRST --grid OUT.png --bin-um 40"),
    ("bench", BENCH),
    ("corpus build", BUILD),
]


@pytest.mark.parametrize(("verb", "line"), OWN)
def test_the_same_command_replaces_its_own_results(
    call: Any, sentence: Any, tmp_path: Path, labeled: list[Path], verb: str, line: str
) -> None:
    words = sentence(verb, line)
    assert call(*words)[0] == 0
    names = set(hash_files(tmp_path))
    code, _, err = call(*words)
    assert code == 0, err
    assert set(hash_files(tmp_path)) == names


@pytest.mark.parametrize(("verb", "line"), [one for one in OWN if one[0] != "corpus build"])
@pytest.mark.case(
    "G",
    given="A result where that of another slice of the same name is already",
    gets="Refused, with both sources; `--overwrite` replaces",
)
def test_results_of_another_source_stay(
    call: Any, sentence: Any, tmp_path: Path, labeled: list[Path], verb: str, line: str
) -> None:
    words = sentence(verb, line)
    assert call(*words)[0] == 0
    moved = tmp_path / "patient_2"
    moved.mkdir()
    for path in [*labeled, tmp_path / "small.yaml"]:
        if path.exists():
            shutil.copy(path, moved / path.name)
    for path in moved.glob("*.h5ad"):
        with h5py.File(path, "r+") as file:
            file["X/data"][0] += 1
    if (moved / "small.yaml").exists():
        with (moved / "small.yaml").open("a") as stream:
            stream.write("# another table\n")
    at = {str(path): str(moved / path.name) for path in [*labeled, tmp_path / "small.yaml"]}
    other = [at.get(word, word) for word in words]
    out = list(tmp_path.glob("out*"))
    before = [hash_files(path) if path.is_dir() else path.read_bytes() for path in out]
    code, _, err = call(*other)
    assert code == 2, err
    assert "another source" in err
    assert [hash_files(path) if path.is_dir() else path.read_bytes() for path in out] == before
    assert call(*other, "--overwrite")[0] == 0


def test_finished_rows_of_a_table_go_and_nothing_else(
    call: Any, sentence: Any, tmp_path: Path
) -> None:
    words = sentence("bench", BENCH)
    rows = tmp_path / "out" / "small.rows"
    rows.mkdir(parents=True)
    (rows / "thesis.tex").write_text("mine")
    (rows / f"{'0' * 32}.json").write_text("{}")
    assert call(*words)[0] == 0
    assert sorted(path.name for path in rows.iterdir()) == [f"{'0' * 32}.json", "thesis.tex"]


@pytest.mark.parametrize("name", ["../../escaped", "/tmp/escaped", ".hidden", "a/b", "", "x" * 300])
def test_the_name_of_a_table_is_that_of_a_file(
    call: Any, sentence: Any, tmp_path: Path, name: str
) -> None:
    words = sentence("bench", BENCH)
    table = Path(words[1])
    table.write_text(table.read_text().replace("name: small", f"name: '{name}'"))
    code, _, err = call(*words)
    assert code == 2, err
    assert not (tmp_path / "out").exists()


@pytest.mark.case(
    "G",
    given="Several files with one generic name (`p1/slice.h5ad`, `p2/slice.h5ad`) in one command",
    gets="Named after their folders; other names that clash, also in upper case alone, are refused",
)
def test_generic_names_are_those_of_the_folders(
    call: Any, sentence: Any, tmp_path: Path, labeled: list[Path]
) -> None:
    words = sentence("domains", DOMAINS)
    names = ("p1/slice.h5ad", "p2/slice.h5ad", "p2/a.h5ad", "p1/A.h5ad")
    paths = [tmp_path / name for name in names]
    for path, source in zip(paths, [*labeled, *labeled], strict=True):
        path.parent.mkdir(exist_ok=True)
        shutil.copy(source, path)
    start = words.index(str(labeled[0]))
    code, _, err = call("domains", *paths[:2], *words[start + 2 :])
    assert code == 0, err
    found = sorted(path.name for path in (tmp_path / "out").glob("*.h5ad"))
    assert found == ["p1.h5ad", "p2.h5ad"]
    code, _, err = call("domains", *paths[2:], *words[start + 2 :])
    assert code == 2
    assert "would both be written" in err


@pytest.mark.parametrize(("verb", "line"), [("embed", EMBED), ("domains", DOMAINS)])
@pytest.mark.case(
    "H",
    given="Several slices, of which one cannot be used or not be written",
    gets="It is named, the others are done, and the command ends with exit code 2",
)
def test_one_slice_that_fails_never_stops_the_others(
    call: Any,
    sentence: Any,
    tmp_path: Path,
    labeled: list[Path],
    verb: str,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = sentence(verb, line)
    import terrazzo.models.embed_files as module

    write = module.write_atomically

    def fail(adata: Any, target: Path, *rest: Any) -> None:
        if target.name == "s0.h5ad":
            raise ValueError("of a kind that nobody foresaw")
        write(adata, target, *rest)

    monkeypatch.setattr(module, "write_atomically", fail)
    code, told, err = call(*words)
    assert code == 2, err
    assert f"{labeled[0]}: failed: unexpected error: ValueError: of a kind" in told
    assert err.strip().endswith("error: 1 of 2 slices could not be used; the others are done.")
    assert (tmp_path / "out" / "s1.h5ad").exists()
    assert not (tmp_path / "out" / "s0.h5ad").exists()
    assert [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")] == []


CRASH = """
import os, signal, sys
if "CRASH" in os.environ:
    import terrazzo.slices.reading as reading
    read = reading._read_anndata
    def crash(path):
        if path.name == os.environ["CRASH"]:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(path)
    reading._read_anndata = crash
"""


def crash_on(name: str, folder: Path) -> dict[str, str]:
    """Return an environment in which every process dies when it reads a file of this name."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(CRASH)
    paths = [str(folder), os.environ.get("PYTHONPATH", "")]
    path = os.pathsep.join(one for one in paths if one)
    return {**os.environ, "CRASH": name, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"}


def run(words: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "terrazzo", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=environment,
    )


@pytest.mark.slow
@pytest.mark.case(
    "I",
    given="A slice on which a library crashes (HDF5 on flipped bits)",
    gets="The same command again names it and does the others; `--skip-failed` skips it at once",
)
def test_a_slice_that_crashes_is_named_and_skipped(
    sentence: Any, tmp_path: Path, labeled: list[Path]
) -> None:
    words = sentence("embed", EMBED)
    environment = crash_on("s0.h5ad", tmp_path / "site")
    out = tmp_path / "out"
    first = run(words, environment)
    assert first.returncode == -9
    second = run(words, environment)
    assert second.returncode == 2, second.stderr
    assert f"{labeled[0]}: failed: a library crashed" in second.stdout
    assert sorted(path.name for path in out.iterdir()) == ["s1.h5ad"]
    shutil.rmtree(out)
    third = run([*words, "--skip-failed"], environment)
    assert third.returncode == 2, third.stderr
    assert "SIGKILL" in third.stdout
    assert sorted(path.name for path in out.iterdir()) == ["s1.h5ad"]


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_build_names_and_skips_it(
    sentence: Any, tmp_path: Path, labeled: list[Path], workers: str
) -> None:
    words = sentence("corpus build", BUILD.replace("--workers 1", f"--workers {workers}"))
    environment = crash_on("s0.h5ad", tmp_path / "site")
    out = tmp_path / "out"
    done = run(words, environment)
    if workers == "1":
        assert done.returncode == -9
        done = run(words, environment)
    assert done.returncode == 2, done.stderr
    assert "1 of 2 slices cannot be used" in done.stderr
    assert f"{labeled[0]}: a library crashed" in done.stderr
    for folder in (out, tmp_path / "anew"):
        skipping = [str(folder) if word == str(out) else word for word in words]
        skipping.append("--skip-failed")
        done = run(skipping, environment)
        assert done.returncode == 0, done.stderr
        names = sorted(path.name for path in folder.rglob("*") if path.parent == folder)
        assert names == ["corpus.json", "manifest.parquet", "members", "vocab.parquet"]
        assert sorted(path.name for path in (folder / "members").iterdir()) == [
            "s1.json",
            "s1.zarr",
        ]


@pytest.mark.case(
    "I",
    given="`finetune --test`",
    gets="One training: the model that is saved is the one that was scored",
)
def test_finetune_with_a_test_slice_trains_once(
    call: Any, sentence: Any, tmp_path: Path, labeled: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import terrazzo.systems.stofm.finetune as module

    fits: list[int] = []
    fit = module._fit

    def counted(*arguments: Any) -> None:
        fits.append(1)
        fit(*arguments)

    monkeypatch.setattr(module, "_fit", counted)
    words = sentence("finetune", f"{TUNE} --epochs 1")
    before = os.umask(0o027)
    try:
        code, _, err = call(*words, "--test", labeled[1])
    finally:
        os.umask(before)
    assert code == 0, err
    assert len(fits) == 1
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == ["scores", "tuned"]
    modes = {path.stat().st_mode & 0o777 for path in out.rglob("*") if path.is_file()}
    assert modes == {0o640}
    folders = {path.stat().st_mode & 0o777 for path in out.rglob("*") if path.is_dir()}
    assert folders == {0o750}
    code, _, err = call(*words, "--test", labeled[1])
    assert code == 2
    assert "exists already" in err
    assert call(*words, "--no-score", "--overwrite")[0] == 0
    assert len(fits) == 2
