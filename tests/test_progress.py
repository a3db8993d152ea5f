"""Progress: a bar with amount, rate and time left on a terminal; nothing elsewhere."""

from __future__ import annotations

import io
import re
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


def test_nothing_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(None).stage("encode cells", 10) as advance:
        advance(10)
        advance.of(20)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [(3, "fits", "3 fits"), (0.25, "fits", "0.2 fits"), (12345.6, "cells", "12,346 cells"), (999, "B", "999 B"),
     (45_300, "B", "45.3 kB"), (7_100_000_000, "B", "7.1 GB"), (5, "", "5")],
)  # fmt: skip
def test_amounts(value: float, unit: str, expected: str) -> None:
    assert _amount(value, unit) == expected
