"""A hidden square on the tissue: which panel holds which numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from terrazzo import plot
from terrazzo.errors import InputError
from terrazzo.plot.palettes import MISSING

pytestmark = pytest.mark.usefixtures("quiet_figures")


@pytest.fixture
def table() -> pd.DataFrame:
    """Make two regions, of 2 x 2 and of 3 x 3 sites, on squares of 8 x 8; predictions are minus the truth."""
    parts = []
    for size in (2, 3):
        row, column = np.divmod(np.arange(64), 8)
        hidden = (row >= 3) & (row < 3 + size) & (column >= 3) & (column < 3 + size)
        part = pd.DataFrame(
            {
                "size": size,
                "cell": np.arange(64),
                "x": column * 10.0,
                "y": row * 10.0,
                "hidden": hidden,
            }
        )
        for number, gene in enumerate(("A:1", "B")):
            true = np.arange(64) + 100.0 * number + size
            part[f"true:{gene}"] = true
            part[f"mine:{gene}"] = np.where(hidden, -true, np.nan)
            part[f"gene mean:{gene}"] = np.where(hidden, 5.0, np.nan)
        parts.append(part)
    return pd.concat(parts)


def panels(figure: Any) -> dict[str, dict[str, np.ndarray]]:
    """Return the numbers of each panel, and how many cells are blank in it."""
    out = {}
    for axes in figure.axes:
        cells = {c.get_label(): c for c in axes.collections}
        blank = cells.pop(MISSING, None)
        (shown,) = cells.values()
        out[axes.get_title()] = {
            "values": np.asarray(shown.get_array()),
            "blank": 0 if blank is None else len(blank.get_offsets()),
            "scale": (shown.norm.vmin, shown.norm.vmax),
        }
    return out


def test_what_was_measured_shown_and_predicted(table: pd.DataFrame) -> None:
    figure = plot.reconstruction(table)
    shown = panels(figure)
    assert list(shown) == ["measured", "shown", "mine", "gene mean"]
    assert "A:1" in figure.get_suptitle()
    assert "3 x 3" in figure.get_suptitle()
    of_size = table[table["size"] == 3]
    hidden, true = of_size["hidden"].to_numpy(), of_size["true:A:1"].to_numpy()
    np.testing.assert_array_equal(shown["measured"]["values"], true)
    np.testing.assert_array_equal(shown["shown"]["values"], true[~hidden])
    assert shown["shown"]["blank"] == 9
    np.testing.assert_array_equal(shown["mine"]["values"], np.where(hidden, -true, true))
    np.testing.assert_array_equal(shown["gene mean"]["values"][hidden], np.full(9, 5.0))
    assert (
        len({panel["scale"] for panel in shown.values()}) == 1
    )  # one scale: what is seen can be compared
    assert len(figure.axes[-1].child_axes) == 1
    assert not figure.axes[0].child_axes


def test_a_gene_a_size_and_systems_may_be_chosen(table: pd.DataFrame) -> None:
    figure = plot.reconstruction(table, gene="B", size=2, systems=["gene mean"])
    shown = panels(figure)
    assert list(shown) == ["measured", "shown", "gene mean"]
    assert shown["shown"]["blank"] == 4
    assert shown["measured"]["values"][0] == 102


def test_a_result_of_the_task_draws_itself(simulated: Any) -> None:
    from terrazzo import tasks

    done = tasks.reconstruct(
        simulated(300, 40), size=[2, 3], repeats=1, bin_um=40, occupancy=0.3, progress=False
    )
    assert len(panels(plot.reconstruction(done))) == 6


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gene": "C"}, "no gene 'C'; they hold: A:1, B"),
        ({"size": 4}, "no size 4; they hold: 2, 3"),
        ({"systems": ["mine", "theirs"]}, "no system 'theirs'; they hold: mine, gene mean"),
    ],
)
def test_what_is_not_there(table: pd.DataFrame, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        plot.reconstruction(table, **options)


def test_what_is_no_result(table: pd.DataFrame) -> None:
    for thing in (3, table.drop(columns="hidden")):
        with pytest.raises(InputError, match=r"terrazzo\.tasks\.reconstruct"):
            plot.reconstruction(thing)
    with pytest.raises(InputError, match="hold no size"):
        plot.reconstruction(table[:0])
