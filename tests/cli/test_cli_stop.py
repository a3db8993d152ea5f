"""Ctrl-C, really sent, amid what each verb does or writes: exit code 130, one line, no rest, the handler as before."""

from __future__ import annotations

import importlib
import inspect
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anndata
import pytest

import terrazzo as tz
from terrazzo.cli.app import app
from terrazzo.cli.stop import (
    EXIT_CODE,
    MESSAGES,
    PATIENCE,
    RESTART,
    how_to_go_on,
    stoppable,
)

pytestmark = pytest.mark.usefixtures("quiet_figures")
WRITING = "anndata:AnnData.write_h5ad"
RESULT = "pandas:DataFrame.to_parquet"
TUNING = "terrazzo.systems.stofm.finetune:FineTuning.training_step"
FOUND = "-k 3 --seeds 1 --bootstraps 0 --no-report"


def stop_at(place: str, to: int, setattr: Callable[..., None] = setattr) -> None:
    """Have the first call of ``module:name`` press Ctrl-C when it is done; ``to`` is a process, 0 all of the group."""
    module, _, name = place.partition(":")
    owner = importlib.import_module(module)
    *path, last = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    whole, calls = getattr(owner, last), []

    def stopped(*args: Any, **options: Any) -> Any:
        out = whole(*args, **options)
        if not calls:
            calls.append(1)
            os.kill(to, signal.SIGINT)
            time.sleep(0.2)
        return out

    setattr(owner, last, stopped)


@pytest.fixture
def stop(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """Press Ctrl-C at a place; what is left in the folder of temporary files is an error."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a job in the background ignores it
    yield lambda place: stop_at(place, os.getpid(), monkeypatch.setattr)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def rest(folder: Path) -> list[str]:
    """Return what is half-written, or temporary."""
    names = [path.relative_to(folder) for path in folder.rglob("*")]
    ours = [
        name for name in names if "torchinductor" not in str(name)
    ]  # torch's own, made when it is imported
    return [str(name) for name in ours if name.name.startswith(".") or name.suffix == ".part"] + [
        str(name) for name in ours if name.parts[0] == "temporary" and len(name.parts) > 1
    ]


def check(code: int, err: str, words: list[str], folder: Path) -> None:
    said = [line for line in err.strip().splitlines() if "warning: " not in line]
    assert (code, said[-1]) == (EXIT_CODE, f"stopped: {how_to_go_on(words)}"), err
    assert "Traceback" not in err
    assert rest(folder) == []


# Verb, where it is stopped, and the words after the slices; CHECKPOINT, RECIPE and TABLE are made by the test.
STOPPED: list[tuple[str, str, str]] = [
    ("info", "terrazzo.slices:open_slice", "FIRST"),
    ("info", "matplotlib.figure:Figure.savefig", "FIRST --grid OUT.png --bin-um 40"),
    ("embed", WRITING, "SLICES --model CHECKPOINT --out OUT"),
    ("embed", "terrazzo.systems.stofm.model:encode_cells", "SLICES --model CHECKPOINT --out OUT"),
    ("domains", WRITING, "SLICES --use-rep X_t -k 3 --out OUT"),
    ("domains", "matplotlib.figure:Figure.savefig", "SLICES --use-rep X_t -k 3 --out OUT"),
    ("probe", RESULT, "FIRST --use-rep X_t --label region --head linear --out OUT"),
    (
        "probe",
        "safetensors.numpy:save",
        "FIRST --use-rep X_t --label region --head linear --out OUT",
    ),
    ("deconvolve", RESULT, "FIRST --use-rep X_t --head linear --out OUT"),
    ("impute", RESULT, "FIRST --model pca --n-genes 4 --head linear --out OUT"),
    ("finetune", TUNING, "FIRST --model CHECKPOINT --label region --out OUT"),
    (
        "finetune",
        "safetensors.torch:save_file",
        "FIRST --model CHECKPOINT --label region --no-score --out OUT",
    ),
    ("pretrain", "terrazzo.systems.stofm.objectives:MultiScale.training_step", "RECIPE --out OUT"),
    ("pretrain", "torch:save", "RECIPE --out OUT"),
    (
        "bench",
        "terrazzo.bench.render:to_html",
        "TABLE --data DATA --models mine=obsm:X_t --seeds 1 --out OUT",
    ),
    ("report", "pathlib:Path.write_text", "SLICES --projection pca --out OUT.html"),
    (
        "corpus build",
        "terrazzo.corpus.members:hash_files",
        "SLICES --out OUT --min-genes 1 --workers 1",
    ),
    ("corpus build", "pyarrow.parquet:write_table", "SLICES --out OUT --min-genes 1 --workers 1"),
    ("corpus verify", "terrazzo.corpus.verify:hash_json", "CORPUS"),
    ("demo", "terrazzo.demo:build", "--cells 60 --out OUT"),
    ("regions", WRITING, f"SLICES --out OUT {FOUND}"),
    ("regions", "terrazzo.answers.run:marker_genes", f"SLICES --out OUT {FOUND}"),
    ("regions", "terrazzo.answers.keeping:write_record", f"SLICES --out OUT {FOUND}"),
    ("regions", "matplotlib.figure:Figure.savefig", f"SLICES --out OUT {FOUND}"),
    ("types", RESULT, f"SLICES --out OUT {FOUND}"),
    ("annotate", WRITING, "SLICES --reference FIRST --label region --no-report --out OUT"),
]

CHEAP = [STOPPED[i] for i in (0, 2, 5, 6, 10, 15, 16, 20, 22)]


@pytest.mark.parametrize(
    ("verb", "place", "line"),
    [
        pytest.param(
            *one,
            id=f"{one[0]} at {one[1].partition(':')[2]}",
            marks=[pytest.mark.slow] * (one not in CHEAP),
        )
        for one in STOPPED
    ],
)
def test_a_verb_is_stopped(
    call: Any, stop: Any, sentence: Any, verb: str, place: str, line: str, tmp_path: Path
) -> None:
    words = sentence(verb, line)
    stop(place)
    code, _, err = call(*words)
    check(code, err, words, tmp_path)


def test_what_is_finished_is_kept(call: Any, stop: Any, sentence: Any, tmp_path: Path) -> None:
    words = sentence("embed", "SLICES --model CHECKPOINT --out OUT")
    stop("terrazzo.models.embed_files:write_atomically")
    code, _, err = call(*words)
    check(code, err, words, tmp_path)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["s0.h5ad"]
    assert anndata.read_h5ad(tmp_path / "out" / "s0.h5ad").obsm["X_stofm"].shape[0] == 60
    code, told, _ = call(*words)
    assert code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["s0.h5ad", "s1.h5ad"]
    assert "s0.h5ad: finished before" in told


def test_what_was_found_is_kept(
    call: Any, stop: Any, sentence: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = sentence("regions", f"SLICES --out OUT {FOUND}")
    stop("terrazzo.answers.folders:Folder._note")
    code, _, err = call(*words)
    check(code, err, words, tmp_path)
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == ["regions.json", "s0.h5ad", "unfinished"]
    first = anndata.read_h5ad(out / "s0.h5ad").obs["terrazzo_region"]
    written = (out / "s0.h5ad").stat().st_mtime_ns

    def find(*args: Any, **options: Any) -> Any:
        raise AssertionError("what was found is not found again")

    with monkeypatch.context() as patched:
        patched.setattr("terrazzo.answers.run.find", find)
        code, told, err = call(*words)
    assert code == 0, err
    assert (out / "s0.h5ad").stat().st_mtime_ns == written
    assert not (out / "unfinished").exists()
    second = anndata.read_h5ad(out / "s1.h5ad")
    assert list(second.obs["terrazzo_region"].cat.categories) == list(first.cat.categories)
    assert second.uns["terrazzo"]["terrazzo_region"]["task"] == "regions"
    anew = tmp_path / "anew"
    code, whole, err = call(*[str(anew) if word == str(out) else word for word in words])
    assert code == 0, err
    assert told.splitlines()[:-1] == whole.splitlines()[:-1]
    assert {path.name for path in out.iterdir()} == {path.name for path in anew.iterdir()}
    for name in ("regions.csv", "markers.csv", "shares.csv", "names.csv", "projection.json"):
        assert (out / name).read_bytes() == (anew / name).read_bytes()
    code, again, _ = call(*words)
    assert code == 0
    assert "left alone" in again


def test_other_settings_do_not_go_on_from_what_was_found(
    call: Any, stop: Any, sentence: Any, tmp_path: Path
) -> None:
    words = sentence("types", f"FIRST --out OUT {FOUND}")
    stop("terrazzo.models.embed_files:write_atomically")
    code, _, err = call(*words)
    check(code, err, words, tmp_path)
    code, _, err = call(*["2" if word == "3" else word for word in words])
    assert code == 0, err
    out = tmp_path / "out"
    assert anndata.read_h5ad(out / "s0.h5ad").obs["terrazzo_type"].nunique() == 2
    assert not (out / "unfinished").exists()


@pytest.mark.slow
def test_a_stopped_run_is_resumed(call: Any, stop: Any, sentence: Any, tmp_path: Path) -> None:
    words = sentence("pretrain", "RECIPE --out OUT")
    stop("terrazzo.training.callbacks:CheckpointWriter._save")
    code, _, err = call(*words)
    check(code, err, words, tmp_path)
    assert (tmp_path / "out" / "checkpoints" / "last.ckpt").is_file()
    code, _, err = call(*words, "--resume")
    assert code == 0, err
    assert tz.load(tmp_path / "out" / "model").trained


@pytest.mark.parametrize("line", MESSAGES)
def test_what_is_said_of_a_verb_is_of_one_that_is_there(line: str) -> None:
    *_, unused = app.parse_commands(line.split())
    assert unused == []


def test_what_is_said() -> None:
    assert "--resume" in how_to_go_on(["pretrain", "recipe.yaml"])
    assert how_to_go_on(["corpus", "build", "a"]) == how_to_go_on(["embed", "a"])
    assert how_to_go_on(["regions", "a"]) == how_to_go_on(["types", "a"])
    for words in (["corpus", "verify", "a"], ["report"], ["annotate", "a"], []):
        assert how_to_go_on(words) == RESTART


def test_a_second_press_lets_the_tidying_up_go_on(stop: Any) -> None:
    tidied = False
    with stoppable():
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        except KeyboardInterrupt:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)
            tidied = True
    assert tidied


def test_a_later_press_is_not_ignored(stop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("terrazzo.cli.stop.PATIENCE", 0.0)
    presses = 0
    with stoppable():
        for _ in range(2):
            try:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(1)
            except KeyboardInterrupt:
                presses += 1
    assert presses == 2
    assert PATIENCE > 0


def test_what_is_to_be_ignored_stays_ignored(stop: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with stoppable():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    signal.signal(signal.SIGINT, signal.default_int_handler)


def run(words: list[str], place: str, to: str) -> tuple[int, str]:
    """Run a command in a process of its own, the first of a group, as a terminal starts it."""
    code = f"""
import importlib, os, signal, sys, time
from collections.abc import Callable
from typing import Any
{inspect.getsource(stop_at)}
if __name__ == "__main__":
    stop_at({place!r}, {to})
    from terrazzo.cli import main
    sys.exit(main(sys.argv[1:]))
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    return done.returncode, done.stderr


PROCESSES = [
    ("domains", WRITING, "SLICES --use-rep X_t -k 3 --out OUT"),
    ("finetune", TUNING, "FIRST --model CHECKPOINT --label region --out OUT"),
    ("embed", WRITING, "SLICES --model CHECKPOINT --out OUT"),
    ("pretrain", "terrazzo.systems.stofm.objectives:MultiScale.training_step", "RECIPE --out OUT"),
    (
        "corpus build",
        "terrazzo.corpus.build:_check_organisms",
        "SLICES --out OUT --min-genes 1 --workers 2",
    ),
]


@pytest.mark.parametrize(
    ("verb", "place", "line"),
    [
        pytest.param(*one, id=one[0], marks=[] if one[0] == "domains" else [pytest.mark.slow])
        for one in PROCESSES
    ],
)
def test_a_process_is_stopped(
    sentence: Any, verb: str, place: str, line: str, tmp_path: Path
) -> None:
    words = sentence(verb, line)
    code, err = run(words, place, "0")
    check(code, err, words, tmp_path)
