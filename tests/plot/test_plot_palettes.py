"""A category has its colour by its name: in every call, subset and slice, unless somebody chose another."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from terrazzo import plot
from terrazzo.errors import ConfigError, InputError
from terrazzo.plot.palettes import COLOURS, MISSING_COLOUR, by_name, natural

NAMES = ["L1", "L2", "L3", "L4", "L5", "L6", "WM"]


def labelled(values: Any, **uns: Any) -> AnnData:
    obs = pd.DataFrame({"kind": values}, index=[f"c{i}" for i in range(len(values))])
    return AnnData(np.ones((len(obs), 1), np.float32), obs=obs, uns=uns)


def test_colours_are_the_same_in_subsets_and_in_any_order(simulated: Any) -> None:
    adata = simulated()
    whole = plot.colours(adata, "region")
    assert plot.colours(adata, "region") == whole
    assert len(set(whole.values())) == 5
    for region in whole:
        part = adata[adata.obs["region"] == region].copy()
        assert plot.colours(part, "region") == {region: whole[region]}
    assert plot.colours(adata[::-1].copy(), "region") == whole


def test_colours_do_not_depend_on_the_process() -> None:
    assert by_name(["0", "1", "2"], {}) == dict(zip("012", COLOURS, strict=False))
    assert [COLOURS.index(c) for c in by_name(NAMES, {}).values()] == [2, 3, 4, 5, 6, 7, 8]


def test_names_that_meet_move_on_and_move_no_other() -> None:
    names = [f"type {chr(97 + i)}" for i in range(26)] + [f"kind {chr(97 + i)}" for i in range(14)]
    together = by_name(names, {})
    assert len(set(together.values())) == len(names) == len(COLOURS)
    alone = {name: by_name([name], {})[name] for name in names}
    kept = [name for name in names if together[name] == alone[name]]
    assert {alone[name] for name in kept} == set(
        alone.values()
    )  # each colour stays with one that it belongs to


def test_there_is_a_colour_for_everybody() -> None:
    assert len(set(by_name([str(i) for i in range(300)], {}).values())) == 300
    assert MISSING_COLOUR not in COLOURS


def test_scanpys_colours_go_first_where_they_fit() -> None:
    kinds = pd.Categorical(["b", "a", "b"], categories=["b", "a", "unused"])
    chosen = np.array(["#FF0000", "#00ff00", "#0000ff"])
    assert plot.colours(labelled(kinds, kind_colors=chosen), "kind") == {
        "b": "#ff0000",
        "a": "#00ff00",
    }
    own = plot.colours(labelled(kinds), "kind")
    for stored in (chosen[:2], np.array(["red", "green", "no colour"]), "red", np.zeros((3, 3))):
        assert plot.colours(labelled(kinds, kind_colors=stored), "kind") == own


def test_scanpys_colours_survive_a_subset() -> None:
    adata = labelled(pd.Categorical(["a", "b", "c"]), kind_colors=["red", "lime", "blue"])
    assert plot.colours(adata[[0, 2]].copy(), "kind") == {"a": "#ff0000", "c": "#0000ff"}


def test_palettes() -> None:
    adata = labelled(pd.Categorical(["a", "b", "c"]), kind_colors=["red", "lime", "blue"])
    assert plot.colours(adata, "kind", palette=["k", "w", "red"]) == {
        "a": "#000000",
        "b": "#ffffff",
        "c": "#ff0000",
    }
    assert plot.colours(adata, "kind", palette="tab10") == dict(
        zip("abc", ["#1f77b4", "#ff7f0e", "#2ca02c"], strict=True)
    )
    assert plot.colours(adata, "kind", palette="gray")["a"] == "#000000"
    bare = labelled(pd.Categorical(["a", "b", "c"]))
    own = plot.colours(bare, "kind")
    mixed = plot.colours(bare, "kind", palette={"b": own["a"], "elsewhere": "red"})
    assert mixed["b"] == own["a"]
    assert len(set(mixed.values())) == 3
    assert plot.colours(bare, "kind", palette=mixed) == mixed


@pytest.mark.parametrize(
    "palette", [["red"], ["red", "green", "nothing"], {"a": "nothing"}, "no map"]
)
def test_impossible_palettes(palette: Any) -> None:
    with pytest.raises(ConfigError, match="palette"):
        plot.colours(labelled(pd.Categorical(["a", "b", "c"])), "kind", palette=palette)


def test_numbers_have_no_colours() -> None:
    with pytest.raises(InputError, match="holds numbers"):
        plot.colours(labelled([1.0, 2.0]), "kind")


def test_order_is_the_chosen_one_or_the_natural_one() -> None:
    assert list(plot.colours(labelled(["10", "2", "1"]), "kind")) == ["1", "2", "10"]
    assert list(plot.colours(labelled(pd.Categorical(["10", "2"])), "kind")) == ["2", "10"]
    chosen = pd.Categorical(["a", "b", "c"], categories=["c", "a", "b"])
    assert list(plot.colours(labelled(chosen), "kind")) == ["c", "a", "b"]
    assert sorted(["L10", "l2", "L1a2", "L1", "a"], key=natural) == ["a", "L1", "L1a2", "l2", "L10"]
