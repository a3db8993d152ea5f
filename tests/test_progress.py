"""Progress: a bar with amount, rate and time left on a terminal; nothing elsewhere."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import rich.console

from terrazzo.progress import Progress, _amount


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a terminal of 80 columns would show."""
    shown, real = io.StringIO(), rich.console.Console

    def console(**options: Any) -> Any:
        return real(file=shown, force_terminal=True, width=80, legacy_windows=False)

    monkeypatch.setattr("rich.console.Console", console)
    return shown


def lines(shown: io.StringIO) -> list[str]:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.getvalue()).replace("\r", "\n").splitlines()


def test_a_bar_says_amount_rate_and_time_left(terminal: io.StringIO) -> None:
    with Progress(True).stage("encode cells", 4000) as advance:
        for _ in range(4):
            advance(1000)
    last = [line for line in lines(terminal) if "encode cells" in line][-1]
    assert "4,000 of 4,000 cells" in last
    assert "cells/s" in last
    assert re.search(r"left \d:\d\d:\d\d", last)
    assert len(last.rstrip()) <= 80


def test_without_a_total_the_time_is_shown(terminal: io.StringIO) -> None:
    with Progress(True).stage("leiden", None) as advance:
        pass
    (line,) = {line.strip() for line in lines(terminal) if "leiden" in line}
    assert re.search(r"\d:\d\d:\d\d", line)
    assert "left" not in line
    advance(1)  # a stage that is over may be told so


def test_a_total_that_is_known_later(terminal: io.StringIO) -> None:
    with Progress(True).stage("download x", 0, "B") as stage:
        stage.of(2_500_000)
        stage(2_500_000)
    assert any("2.5 MB of 2.5 MB" in line for line in lines(terminal))


def test_an_inner_stage_stands_below_the_outer_one(terminal: io.StringIO) -> None:
    with Progress(True).stage("slices", 2, "slices") as outer:
        for _ in range(2):
            with Progress(True).stage("encode cells", 100) as inner:
                inner(100)
            inner(100)  # it is over, and may be told so
            outer(1)
    shown = lines(terminal)
    assert any("2 of 2 slices" in line for line in shown)
    assert any("100 of 100 cells" in line for line in shown)
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
    assert "1 of 1 fits" in lines(terminal)[-1]


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
        ["fit pca", "embed what is left", "imputation"],
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
        assert any(re.search(r"\d:\d\d:\d\d", one) for one in bars)
    counted = [one for one in shown if " of " in one]
    assert all("left" in one for one in counted)
    assert verb == "info" or any(re.search(r"\w/s ", one) for one in shown)


def test_nothing_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(None).stage("encode cells", 10) as advance:
        advance(10)
        advance.of(20)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (3, "fits", "3 fits"),
        (0.25, "fits", "0.2 fits"),
        (12345.6, "cells", "12,346 cells"),
        (999, "B", "999 B"),
        (45_300, "B", "45.3 kB"),
        (7_100_000_000, "B", "7.1 GB"),
        (5, "", "5"),
    ],
)
def test_amounts(value: float, unit: str, expected: str) -> None:
    assert _amount(value, unit) == expected
