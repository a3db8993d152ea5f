"""Progress: a bar with amount, rate and time left on a terminal; nothing elsewhere."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
import tqdm.std

from terrazzo.progress import Progress


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a terminal of 80 columns would show, every step of it."""
    shown = io.StringIO()
    shown.isatty = lambda: True  # type: ignore[method-assign]

    class Bar(tqdm.std.tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            options |= {"file": shown, "ncols": 80, "mininterval": 0, "dynamic_ncols": False}
            super().__init__(*args, **options)

    monkeypatch.setattr("tqdm.auto.tqdm", Bar)
    return shown


def lines(shown: io.StringIO) -> list[str]:
    """Every state of every bar, in order; escape sequences removed."""
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.getvalue())
    return [line.strip() for line in re.split(r"[\r\n]", plain) if line.strip()]


def test_a_bar_says_amount_rate_and_time_left(terminal: io.StringIO) -> None:
    with Progress(True).stage("encode cells", 4000) as advance:
        for _ in range(4):
            advance(1000)
    last = [line for line in lines(terminal) if "encode cells" in line][-1]
    assert "4000/4000 cells" in last
    assert "cells/s" in last
    assert re.search(r"left \d\d:\d\d", last)
    assert len(last) <= 80


def test_without_a_total_the_time_is_shown(terminal: io.StringIO) -> None:
    with Progress(True).stage("leiden", None) as advance:
        pass
    (line,) = {line for line in lines(terminal) if "leiden" in line}
    assert re.search(r"\d\d:\d\d", line)
    assert "left" not in line
    advance(1)  # a stage that is over may still be called


def test_a_total_that_is_known_later(terminal: io.StringIO) -> None:
    with Progress(True).stage("download x", 0, "B") as stage:
        stage.of(2_500_000)
        stage(2_500_000)
    assert any("2.50M/2.50M" in line for line in lines(terminal))


def test_an_inner_stage_stands_below_the_outer_one(terminal: io.StringIO) -> None:
    with Progress(True).stage("slices", 2, "slices") as outer:
        for _ in range(2):
            with Progress(True).stage("encode cells", 100) as inner:
                inner(100)
            inner(100)  # it is over, and may be told so
            outer(1)
    shown = lines(terminal)
    assert any("2/2 slices" in line for line in shown)
    assert any("100/100 cells" in line for line in shown)
    assert "encode cells" not in shown[-1]


def test_stages_that_end_in_another_order(terminal: io.StringIO) -> None:
    """A generator may be left alone with its stage open."""

    def work() -> Iterator[None]:
        with Progress(True).stage("inner", 2, "fits") as advance:
            yield
            advance(1)

    with Progress(True).stage("outer", 1, "fits"):
        working = work()
        next(working)
    working.close()
    with Progress(True).stage("next", 1, "fits") as advance:
        advance(1)
    assert "1/1 fits" in lines(terminal)[-1]


def test_what_is_printed_meanwhile_stays_on_standard_output(
    capfd: pytest.CaptureFixture[str],
) -> None:
    code = "import sys; sys.stderr.isatty = lambda: True\nfrom terrazzo.progress import Progress\n"
    code += "import os; os.environ['FORCE_COLOR'] = '1'\nwith Progress().stage('work', None): print('a result')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "a result\n"
    assert "work" in done.stderr


VERBS = [
    ("info", "FIRST", ["read s0.h5ad"]),
    (
        "embed",
        "SLICES --model CHECKPOINT --out OUT",
        ["read s0.h5ad", "encode cells", "write s1.h5ad"],
    ),
    (
        "domains",
        "FIRST --use-rep X_t -k 3 --n-seeds 2 --out OUT",
        ["read s0.h5ad", "domains", "write s0.h5ad"],
    ),
    ("probe", "FIRST --use-rep X_t --label region --head linear --out OUT", ["probe", "fit probe"]),
    ("deconvolve", "FIRST --use-rep X_t --head linear --out OUT", ["deconvolution", "fit probe"]),
    (
        "impute",
        "FIRST --model pca --n-genes 4 --head linear --out OUT",
        ["fit pca", "embed the visible genes", "imputation"],
    ),
    (
        "finetune",
        "FIRST --model CHECKPOINT --label region --epochs 1 --out OUT",
        ["fine-tunings", "fine-tune", "encode"],
    ),
    (
        "bench",
        "TABLE --data DATA --models mine=obsm:X_t --seeds 1 --out OUT",
        ["read s0", "small", "probe"],
    ),
    ("report", "SLICES --projection pca --out OUT.html", ["report"]),
    ("corpus build", "SLICES --out OUT --min-genes 1 --workers 1", ["slices", "vocabulary"]),
    ("corpus verify", "CORPUS", ["verify"]),
    ("pretrain", "RECIPE --out OUT", ["cells/s"]),
]
SLOW = ("finetune", "embed", "pretrain", "bench", "deconvolve", "report")


@pytest.mark.usefixtures("quiet_figures")
@pytest.mark.parametrize(
    ("verb", "line", "stages"),
    [pytest.param(*one, id=one[0], marks=[pytest.mark.slow] * (one[0] in SLOW)) for one in VERBS],
)
def test_a_verb_shows_what_it_does(
    call: Any,
    sentence: Any,
    terminal: io.StringIO,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
    line: str,
    stages: Any,
) -> None:
    words = sentence(verb, line)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    code, _, err = call(*words)
    assert code == 0, err
    shown = lines(terminal)
    for stage in stages:
        bars = [one for one in shown if stage in one]
        assert bars, stage
        assert any(re.search(r"\d\d:\d\d", one) for one in bars)
    counted = [one for one in shown if re.search(r"\d/\d", one)]
    assert all("left" in one for one in counted)
    assert verb == "info" or any(re.search(r"\w/s\b|s/\w", one) for one in shown)


def test_a_notebook_has_bars_too(monkeypatch: pytest.MonkeyPatch) -> None:
    class ZMQInteractiveShell:
        """The name of a Jupyter kernel's shell."""

    ipython = types.SimpleNamespace(get_ipython=ZMQInteractiveShell)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    assert Progress().enabled


def test_nothing_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(None).stage("encode cells", 10) as advance:
        advance(10)
        advance.of(20)
    assert capsys.readouterr() == ("", "")
