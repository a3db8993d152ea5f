"""Results in a console and in a notebook: short, folded, and escaped."""

from __future__ import annotations

from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from terrazzo.tasks import Hidden, Probe, TaskResult, display, fit_probe, hide_genes
from terrazzo.tasks.results import tidy

EVIL = "<script>alert('x')</script> & \"co\""


class Page(HTMLParser):
    """Tags that are open, those that were seen, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.open.append(tag)
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += f" {data}"


def result(n_splits: int = 2, name: str = "random", notes: tuple[str, ...] = ()) -> TaskResult:
    rows = []
    for i in range(n_splits):
        split = name if i == 0 else f"{name}-{i}"
        for number in range(2):
            rows += tidy({"accuracy": 0.5 + number / 4, "macro_f1": 1 / 3}, split, number)
        rows += tidy({"accuracy": 0.1}, split, 0, "one gene")
    predictions = pd.DataFrame({"true": ["a", "b", "c"]})
    config = {"use_rep": name, "head": {"hidden": [4, 4]}, "seed": 3, "long": "word " * 500}
    return TaskResult("probe", pd.DataFrame(rows), predictions, config, notes)


def fitted(label: str = "type", names: tuple[str, str] = ("a", "b")) -> Probe:
    adata = AnnData(np.zeros((20, 1), dtype=np.float32))
    adata.obs[label] = np.repeat(names, 10)
    adata.obsm["X_a"] = np.random.default_rng(0).normal(size=(20, 3))
    return fit_probe(adata, use_rep="X_a", label=label, head="knn")


def hidden(gene: str = "GENE1") -> Hidden:
    adata = AnnData(np.ones((9, 5), dtype=np.float32))
    adata.var_names = [gene, *(f"g{i}" for i in range(4))]
    return hide_genes(adata, genes=[gene, "g2"])


def test_a_result_is_three_lines_at_most() -> None:
    assert repr(result(notes=("one",))).splitlines() == [
        "TaskResult('probe', 3 predictions, 1 note)",
        "  random: accuracy 0.625 ± 0.125, macro_f1 0.333 ± 0",
        "  random-1: accuracy 0.625 ± 0.125, macro_f1 0.333 ± 0",
    ]
    many = repr(result(n_splits=9)).splitlines()
    assert len(many) == 3
    assert many[2] == "  and 8 more, see summary()"
    empty = TaskResult("probe", pd.DataFrame(), pd.DataFrame(), {})
    assert repr(empty) == "TaskResult('probe', 0 predictions, 0 notes)"
    assert "Result of probe" in empty._repr_html_()


def test_a_probe_names_what_it_predicts_and_reads() -> None:
    assert repr(fitted()).splitlines() == [
        "Probe('type', 2 classes, from obsm['X_a'] of width 3)",
        "  a, b",
    ]
    values = fit_probe(
        AnnData(np.zeros((9, 1), dtype=np.float32)),
        use_rep=np.eye(9),
        values=np.ones((9, 2)),
        head="linear",
    )
    assert "2 columns, from an array of width 9" in repr(values)


def test_hidden_genes_are_counted() -> None:
    assert repr(hidden()).splitlines() == [
        "Hidden(2 genes of 9 cells, 3 genes visible)",
        "  GENE1, g2",
    ]


@pytest.mark.parametrize("make", [result, fitted, hidden])
def test_no_line_is_long(make: Callable[[], Any]) -> None:
    assert all(len(line) < 120 for line in repr(make()).splitlines())
    names = [f"a very long name {i}" for i in range(400)]
    assert len(display.line(names)) <= display.WIDTH


def test_the_page_of_a_result_has_scores_and_notes_and_folds_the_settings() -> None:
    page = Page(result(notes=("12 cells have no label",))._repr_html_())
    for text in ("random-1", "accuracy", "0.625", "12 cells have no label", '{"hidden": [4, 4]}'):
        assert text in page.text
    assert "one gene" not in page.text  # parts are not in the summary
    assert page.tags.count("details") == 2
    assert len(page.text) < 2_000


def test_the_page_of_a_probe() -> None:
    page = Page(fitted()._repr_html_())
    for text in ("type: 2 classes", "a, b", "obsm['X_a'] of width 3", "n_cells", "20"):
        assert text in page.text


def test_long_tables_are_cut() -> None:
    page = Page(result(n_splits=40)._repr_html_())
    assert "and 50 more rows" in page.text


@pytest.mark.parametrize(
    "shown",
    [
        lambda: result(name=EVIL, notes=(EVIL,)),
        lambda: fitted(label=EVIL, names=(EVIL, "b")),
        lambda: hidden(gene=EVIL),
    ],
)
def test_everything_is_escaped(shown: Callable[[], Any]) -> None:
    text = shown()._repr_html_()
    assert "<script" not in text
    page = Page(text)
    assert "script" not in page.tags
    assert EVIL in page.text
