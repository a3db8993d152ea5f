"""A table on paper: measured and published apart, what is absent, and the same numbers everywhere."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from terrazzo.bench import figure, render
from terrazzo.bench.run import COLUMNS, Table
from terrazzo.errors import OutputError

pytestmark = pytest.mark.usefixtures("quiet_figures")
COMMAND = "terrazzo bench small --models 'stofm=a & <b>'"
PUBLISHED = {
    "data": "theirs <other> data",
    "rows": [
        {
            "model": "SToFM",
            "part": "one",
            "accuracy": 0.7014,
            "accuracy_sd": 0.02,
            "note": "as printed",
        },
        {"model": "SToFM", "part": "two", "accuracy": 0.6},
        {"model": "A & B", "part": "one", "accuracy": 0.5},
    ],
}
PARTS = [{"name": name, "dataset": "made", "test": "s0"} for name in ("one", "two")]


def rows(
    system: str, part: str, *values: float, split: str = "random", **more: Any
) -> list[dict[str, Any]]:
    """Return the scores of some draws, accuracy and, a tenth lower, macro F1."""
    return [
        {
            "system": system,
            "part": part,
            "split": split,
            "head": "linear",
            "metric": metric,
            "seed": 0,
            "number": number,
            "value": value - less,
        }
        | more
        for metric, less in (("accuracy", 0.0), ("macro_f1", 0.1))
        for number, value in enumerate(values)
    ]


@pytest.fixture
def found(table: Any) -> Table:
    protocol = table(
        title="A <small> table", note="Ours differs.", parts=PARTS, published=PUBLISHED
    )
    scores = [
        *rows("PCA", "one", 0.5, 0.7),
        *rows("PCA", "one", 0.4, split="blocked"),
        *rows("T1 <x>", "one", 0.8, 0.81234),
        *rows("PCA", "two", 0.9),
        *rows("SToFM, all parameters tuned", "one", 0.95, head="fine-tuning"),
    ]
    absent = [
        ["scGPT", "", "no weights | given"],
        ["T1 <x>", "two", "no <genes>"],
        ["all systems", "three", "gone"],
    ]
    return Table(
        protocol,
        pd.DataFrame(scores, columns=COLUMNS),
        pd.DataFrame(absent, columns=["system", "part", "reason"]),
        {"PCA": 61.0, "T1 <x>": 2.0},
        ("one: 5 cells have no label",),
        "2026-11-20T10:00+00:00",
    )


class Text(HTMLParser):
    """Collects the tags, and the text of the cells."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_four_files(found: Table, tmp_path: Path) -> None:
    target = render.write(found, tmp_path / "deep" / "out", command=COMMAND)
    assert target == tmp_path / "deep" / "out" / "small.md"
    assert sorted(p.name for p in target.parent.iterdir()) == [
        "small.html",
        "small.json",
        "small.md",
        "small.png",
    ]
    assert (target.parent / "small.png").read_bytes()[:4] == b"\x89PNG"


def test_markdown(found: Table) -> None:
    text = render.to_markdown(found, COMMAND)
    for fact in (
        "# A <small> table",
        "source: data at hand",
        f"command: `{COMMAND}`",
        "date: 2026-11-20T10:00+00:00",
        "machine: ",
        "1.1 minutes",
        "Ours differs.",
        "- one: 5 cells have no label",
    ):
        assert fact in text
    head = "| system | within, random (leaks space): accuracy | within, random (leaks space): macro F1 |"
    assert f"{head} within, blocked: accuracy | within, blocked: macro F1 |" in text
    assert "| PCA | 0.600 ± 0.100 | 0.500 ± 0.100 | 0.400 | 0.300 |" in text
    assert "| T1 <x> | 0.806 ± 0.006 | 0.706 ± 0.006 |  |  |" in text
    assert "| SToFM, all parameters tuned | 0.950 | 0.850 |  |  |" in text


def test_measured_and_published_stand_apart(found: Table) -> None:
    text = render.to_markdown(found, COMMAND)
    measured, published = text.split("## Published")
    assert [line for line in measured.splitlines() if line.startswith("## ")] == [
        "## Measured: one",
        "## Measured: two",
    ]
    assert "0.7014" not in measured
    assert "| SToFM | 0.7014 ± 0.02 | 0.6 |" in published
    assert "| A & B | 0.5 |  |" in published
    assert "PCA" not in published
    assert "theirs <other> data" in published
    page = render.to_html(found, COMMAND)
    assert page.index('<div class="published">') > page.index("Measured: two")


def test_who_is_absent_has_a_row_and_a_reason(found: Table) -> None:
    text = render.to_markdown(found, COMMAND)
    one, two = text.split("## Measured: two")
    assert "| scGPT | not available | not available | not available | not available |" in one
    assert "| T1 <x> | not available | not available |" in two.split("##")[0]
    assert one.count("| T1 <x> |") == 1
    assert "- scGPT: not available, no weights | given" in two
    assert "- T1 <x> (two): not available, no <genes>" in two
    assert "- all systems (three): not available, gone" in two


def test_html_is_whole_and_escaped(found: Table) -> None:
    page = render.to_html(found, COMMAND)
    reader = Text()
    reader.feed(page)
    assert not {"small", "x", "other", "genes", "b"} & set(reader.tags)
    assert {"T1 <x>", "A & B", "0.600 ± 0.100", "A <small> table"} <= set(reader.words)
    assert f"command: `{COMMAND}`" in reader.words
    assert reader.tags.count("table") == 3
    assert 'src="small.png"' in page


def test_numbers_of_the_json_are_those_of_the_markdown(found: Table, tmp_path: Path) -> None:
    target = render.write(found, tmp_path, command=COMMAND)
    record = json.loads(target.with_suffix(".json").read_text(encoding="utf-8"))
    assert len(record["scores"]) == len(found.scores)
    assert (record["command"], record["date"], record["table"]) == (COMMAND, found.date, "small")
    assert record["protocol"]["published"]["rows"][0]["accuracy"] == 0.7014
    assert {r["system"] for r in record["not_available"]} == {"scGPT", "T1 <x>", "all systems"}
    assert record["seconds"]["PCA"] == 61
    measured = target.read_text(encoding="utf-8").split("## Published")[0]
    printed = sorted(re.findall(r"\d\.\d{3}(?: ± \d\.\d{3})?(?= \|)", measured))
    said = [
        f"{r['mean']:.3f}" + (f" ± {r['sd']:.3f}" if r["n"] > 1 else "") for r in record["summary"]
    ]
    assert printed == sorted(said)


def test_the_figure_has_a_panel_a_part_and_one_for_published_numbers(found: Table) -> None:
    drawn = figure.figure(found)
    assert [ax.get_title() for ax in drawn.axes] == ["measured: one", "measured: two", "published"]
    systems = [label.get_text() for label in drawn.axes[0].get_yticklabels()]
    assert systems == ["PCA", "T1 <x>", "SToFM, all parameters tuned"]
    assert [label.get_text() for label in drawn.axes[2].get_yticklabels()] == [
        "SToFM one",
        "SToFM two",
        "A & B one",
    ]
    assert drawn.axes[2].lines[0].get_xdata().tolist() == [0.7014, 0.6, 0.5]
    assert all("accuracy (higher is better)" in ax.get_xlabel() for ax in drawn.axes)
    assert [t.get_text() for t in drawn.axes[0].get_legend().get_texts()] == [
        "within, random (leaks space)",
        "within, blocked",
    ]


def test_several_heads_are_several_tables(table: Any) -> None:
    protocol = table(heads=["linear", "knn"])
    scores = [*rows("PCA", "one", 0.5), *rows("PCA", "one", 0.6, head="knn")]
    none = pd.DataFrame(columns=["system", "part", "reason"])
    text = render.to_markdown(Table(protocol, pd.DataFrame(scores, columns=COLUMNS), none), "c")
    assert "## Measured: one, linear" in text
    assert "## Measured: one, knn" in text
    assert "## Published" not in text


def test_sizes_of_hidden_squares_are_columns_as_they_come(table: Any) -> None:
    protocol = table(
        task="reconstruction",
        metrics=["mse"],
        heads=["none"],
        label="",
        sizes=[10, 4],
        parts=PARTS[:1],
        published={"data": "theirs", "rows": [{"model": "A", "part": "10 x 10", "mse": 0.25}]},
    )
    scores = [
        {
            "system": system,
            "part": "one",
            "split": f"{size} x {size}",
            "head": "none",
            "metric": "mse",
            "seed": 0,
            "number": number,
            "value": 0.5 + number / 10,
        }
        for system in ("gene mean", "mine")
        for size in (10, 4)
        for number in range(2)
    ]
    absent = pd.DataFrame([["scGPT-spatial", "", "gone"]], columns=["system", "part", "reason"])
    made = Table(protocol, pd.DataFrame(scores, columns=COLUMNS), absent)
    text = render.to_markdown(made, "c")
    assert "| system | 10 x 10: MSE | 4 x 4: MSE |" in text
    assert "| mine | 0.550 ± 0.050 | 0.550 ± 0.050 |" in text
    assert "| scGPT-spatial | not available | not available |" in text
    assert "| system | 10 x 10 MSE |" in text
    drawn = figure.figure(made)
    assert [t.get_text() for t in drawn.axes[0].get_legend().get_texts()] == ["10 x 10", "4 x 4"]
    assert "lower is better" in drawn.axes[0].get_xlabel()


def test_a_table_without_a_number(table: Any, tmp_path: Path) -> None:
    protocol = table(published=PUBLISHED)
    absent = pd.DataFrame(
        [["all systems", "", "comes later"]], columns=["system", "part", "reason"]
    )
    target = render.write(
        Table(protocol, pd.DataFrame(columns=COLUMNS), absent), tmp_path, command="c"
    )
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".html", ".json", ".md", ".yaml"]
    text = target.read_text(encoding="utf-8")
    assert "| all systems |  | comes later |" in text
    assert "<img" not in target.with_suffix(".html").read_text(encoding="utf-8")


def test_a_folder_that_cannot_be_written(found: Table, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="could not be written"):
        render.write(found, tmp_path / "file", command=COMMAND)
    with pytest.raises(OutputError, match="could not be written"):
        render.write(found, tmp_path / "file" / "deeper", command=COMMAND)
