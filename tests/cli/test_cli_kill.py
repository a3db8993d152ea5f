"""Runs that are killed, ended by a scheduler, or started twice: no half file, no leftover, the same results."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest

from terrazzo.files import hash_files

# A process dies at the call of this number of what gives a file its name, before or after it.
DYING = """
import os, signal, sys
from pathlib import Path
if "DIE_AT" in os.environ and "terrazzo" in sys.orig_argv:  # not the processes that it starts
    number, when = os.environ["DIE_AT"].split()
    calls = []
    def dying(whole):
        def call(*args):
            calls.append(1)
            if len(calls) == int(number) and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            out = whole(*args)
            if len(calls) == int(number):
                os.kill(os.getpid(), signal.SIGKILL)
            return out
        return call
    Path.rename, Path.replace = dying(Path.rename), dying(Path.replace)
"""
WAITING = """
import os, time
if "WAIT_IN" in os.environ:
    import importlib
    module, _, name = os.environ["WAIT_IN"].partition(":")
    def wait(*args, **options):
        print("waiting", flush=True)
        time.sleep(600)
    owner = importlib.import_module(module)
    *path, last = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    setattr(owner, last, wait)
"""
BUILD = "SLICES --out OUT --min-genes 1 --workers 1"
TUNE = "FIRST --model CHECKPOINT --label region --out OUT --epochs 1 --no-score"
FIND = "SLICES --out OUT -k 3 --seeds 1 --bootstraps 0 --no-report"
CARRY = "SLICES --reference FIRST --label region --no-report --out OUT"
BENCH = "TABLE --data DATA --models mine=obsm:X_t --seeds 1 --out OUT"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Return an environment in which processes die, or wait, where a variable says so."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(DYING + WAITING)
    paths = [str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]
    path = os.pathsep.join(one for one in paths if one)
    return {**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"}


def run(words: list[str], environment: dict[str, str], **more: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "terrazzo", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**environment, **more},
    )
    return done.returncode, done.stderr


@contextmanager
def started(
    words: list[str], environment: dict[str, str], wait_in: str
) -> Iterator[subprocess.Popen[str]]:
    """Start a command, and go on when it waits in a function."""
    process = subprocess.Popen(
        [sys.executable, "-m", "terrazzo", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**environment, "WAIT_IN": wait_in},
        preexec_fn=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL),
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line == "waiting\n":
                break
        time.sleep(0.1)
        yield process
    finally:
        process.kill()
        process.communicate()


def vectors(out: Path) -> Any:
    return [anndata.read_h5ad(path).obsm["X_stofm"] for path in sorted(out.iterdir())]


def weights(*names: str) -> Callable[[Path], Any]:
    from safetensors.numpy import load_file

    return lambda out: [load_file(out / name) for name in names]


def page(out: Path) -> str:
    text = out.with_suffix(".html").read_text()
    return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", "", text)


def scores(out: Path) -> Any:
    return [json.loads((out / "small.json").read_text())["scores"], len(list(out.iterdir()))]


def answers(out: Path) -> Any:
    """Return the columns that were written, and the tables."""
    columns = {}
    for path in sorted(out.glob("*.h5ad")):
        obs = anndata.read_h5ad(path).obs
        for name in obs:
            if name.startswith("terrazzo_"):
                values = obs[name]
                is_number = pd.api.types.is_float_dtype(values)
                columns[f"{path.name} {name}"] = values.to_numpy() if is_number else list(values)
    tables = [sorted(path.name for path in out.iterdir())]
    tables += [path.read_text() for path in sorted(out.glob("*.csv")) if path.name != "scores.csv"]
    return [columns, tables]


VERBS: dict[str, tuple[str, Callable[[Path], Any], list[int]]] = {
    "embed": ("SLICES --model CHECKPOINT --out OUT", vectors, [1, 2]),
    "corpus build": (BUILD, hash_files, [1, 2, 4, 6, 8]),
    "pretrain": (
        "RECIPE --out OUT",
        weights("model/model.safetensors"),
        [2, 6],
    ),
    "finetune": (
        TUNE,
        weights("tuned/model/model.safetensors", "tuned/probe/probe.safetensors"),
        [1, 2, 3],
    ),
    "bench": (BENCH, scores, [1, 2, 3, 4]),
    "report": ("SLICES --projection pca --out OUT.html", page, [1]),
    "regions": (FIND, answers, [3, 9]),
    "types": (FIND, answers, [4]),
    "annotate": (CARRY, answers, [3]),
}


def check_same(found: Any, expected: Any) -> None:
    """Compare results; a sum may be rounded otherwise in another process."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            check_same(found[name], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            check_same(one, other)
    elif isinstance(expected, float | np.ndarray):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    else:
        assert found == expected


def leftovers(folder: Path) -> list[str]:
    names = [path.name for path in folder.rglob("*") if "site" not in path.parts]
    return [name for name in names if name.startswith(".") or name.endswith((".part", ".old"))]


def check_whole(folder: Path) -> None:
    """Check that everything that has its name is whole."""
    for path in folder.rglob("*"):
        if any(part.startswith(".") for part in path.relative_to(folder).parts) or path.is_dir():
            continue
        if path.suffix == ".h5ad":
            anndata.read_h5ad(path)
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".parquet":
            pd.read_parquet(path)
        elif path.suffix == ".html":
            assert path.read_text().rstrip().endswith("</html>")
        elif path.suffix == ".safetensors":
            from safetensors.numpy import load_file

            load_file(path)


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.case(
    "I",
    given="A run that is killed (`kill -9`) at any file that it writes",
    gets="No half file; the same command again ends with the same results and leaves nothing else",
)
def test_killed_at_any_file_the_same_command_ends_the_same(
    sentence: Any, tmp_path: Path, environment: dict[str, str], verb: str
) -> None:
    line, result, numbers = VERBS[verb]
    words = sentence(verb, line)
    out = tmp_path / "out"
    assert run(words, environment)[0] == 0
    expected = result(out)

    def clear() -> None:
        shutil.rmtree(out, ignore_errors=True)
        out.with_suffix(".html").unlink(missing_ok=True)

    for number in numbers:
        for when in ("before", "after"):
            clear()
            code, _ = run(words, environment, DIE_AT=f"{number} {when}")
            assert code == -9, (number, when)
            check_whole(out)
            again = list(words)
            if verb == "pretrain" and (out / "run.json").exists():
                again.append("--resume")
            code, err = run(again, environment)
            assert code == 0, (number, when, err)
            check_same(result(out), expected)
            assert leftovers(tmp_path) == [], (number, when)


@pytest.mark.slow
@pytest.mark.case(
    "I",
    given="A corpus that is built again from changed slices, and killed before it is done",
    gets="The older corpus is whole and readable",
)
def test_a_killed_rebuild_leaves_the_older_corpus(
    sentence: Any, tmp_path: Path, labeled: list[Path], environment: dict[str, str]
) -> None:
    from terrazzo import corpus

    words = sentence("corpus build", BUILD)
    assert run(words, environment)[0] == 0
    out = tmp_path / "out"
    before = corpus.Corpus.open(out).content_hash()
    adata = anndata.read_h5ad(labeled[0])
    adata.X.data[:] += 1
    adata.write_h5ad(labeled[0])
    for number in (1, 2, 1):
        code, err = run(words, environment, DIE_AT=f"{number} before")
        assert code == -9, err
        assert corpus.Corpus.open(out).content_hash() == before
        assert corpus.verify(out) == []
    code, err = run(words, environment)
    assert code == 0, err
    assert corpus.Corpus.open(out).content_hash() != before
    assert corpus.verify(out) == []
    anew = [str(tmp_path / "anew") if word == str(out) else word for word in words]
    assert run(anew, environment)[0] == 0
    assert hash_files(tmp_path / "anew") == hash_files(out)
    assert leftovers(tmp_path) == []


PLACES = {
    "embed": ("SLICES --model CHECKPOINT --out OUT", "anndata:AnnData.write_h5ad"),
    "corpus build": (
        BUILD.replace("--workers 1", "--workers 2"),
        "terrazzo.corpus.build:_manifest",
    ),
    "finetune": (TUNE, "terrazzo.systems.stofm.finetune:_fit"),
    "pretrain": ("RECIPE --out OUT", "terrazzo.training.run:_fit"),
    "bench": (BENCH, "terrazzo.bench.render:to_html"),
    "regions": (FIND, "terrazzo.answers.run:marker_genes"),
    "types": (FIND, "anndata:AnnData.write_h5ad"),
    "annotate": (CARRY, "anndata:AnnData.write_h5ad"),
}


@pytest.mark.parametrize(
    ("verb", "number"),
    [
        ("embed", signal.SIGTERM),
        pytest.param("embed", signal.SIGHUP, marks=pytest.mark.slow),
        *(pytest.param(v, signal.SIGTERM, marks=pytest.mark.slow) for v in PLACES if v != "embed"),
    ],
)
@pytest.mark.case(
    "I",
    given="SIGTERM: `kill`, the end of a job's time",
    gets="As Ctrl-C: one line on how to go on, nothing half-written, exit code 143",
)
def test_a_scheduler_ends_a_run(
    sentence: Any, tmp_path: Path, environment: dict[str, str], verb: str, number: int
) -> None:
    line, place = PLACES[verb]
    with started(sentence(verb, line), environment, place) as process:
        process.send_signal(number)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + number, err
    lines = [line for line in err.strip().splitlines() if "warning" not in line]
    assert lines[-1].startswith("stopped: ")
    assert "Traceback" not in err
    assert leftovers(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "verb", ["finetune", "bench", "pretrain", "corpus build", "regions", "annotate"]
)
def test_a_second_run_beside_a_running_one_is_refused(
    sentence: Any, tmp_path: Path, environment: dict[str, str], verb: str
) -> None:
    line, place = PLACES[verb]
    words = sentence(verb, line)
    again = [*words, "--resume"] if verb == "pretrain" else words
    with started(words, environment, place) as process:
        code, err = run(again, environment)
        assert code == 2, err
        assert f"process {process.pid}" in err
    code, err = run(again, environment)  # the first is dead: its lock is taken over
    assert code == 0, err
    assert leftovers(tmp_path) == []


@pytest.mark.slow
@pytest.mark.case(
    "I", given="A fork (multiprocessing) after an embedding", gets="Embeds, with the same numbers"
)
def test_a_fork_after_an_embedding_embeds(tiny_model: Any, tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "model")
    code = f"""
import os, sys, numpy as np, terrazzo as tz
model = tz.load({str(tmp_path / "model")!r})
adata = tz.simulate.tissue(60, n_genes=60)
before = model.embed(adata.copy(), progress=False).obsm["X_stofm"]
child = os.fork()
if child == 0:
    after = model.embed(adata.copy(), progress=False).obsm["X_stofm"]
    os._exit(0 if np.allclose(before, after, atol=1e-5) else 3)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    for threads in ("1", "4"):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
            env={**os.environ, "OMP_NUM_THREADS": threads},
        )
        assert done.returncode == 0, done.stderr
