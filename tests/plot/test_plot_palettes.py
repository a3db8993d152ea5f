"""A category has its color by its name: in every call, subset and slice, unless somebody chose another."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from terrazzo import plot
from terrazzo.errors import ConfigError, InputError
from terrazzo.plot.palettes import COLORS, MISSING_COLOR, by_name, in_order, natural, pattern_of

NAMES = ["L1", "L2", "L3", "L4", "L5", "L6", "WM"]


def labeled(values: Any, **uns: Any) -> AnnData:
    obs = pd.DataFrame({"kind": values}, index=[f"c{i}" for i in range(len(values))])
    return AnnData(np.ones((len(obs), 1), np.float32), obs=obs, uns=uns)


def test_colors_are_the_same_in_subsets_and_in_any_order(simulated: Any) -> None:
    adata = simulated()
    whole = plot.colors(adata, "region")
    assert plot.colors(adata, "region") == whole
    assert len(set(whole.values())) == 5
    for region in whole:
        part = adata[adata.obs["region"] == region].copy()
        assert plot.colors(part, "region") == {region: whole[region]}
    assert plot.colors(adata[::-1].copy(), "region") == whole


def test_colors_do_not_depend_on_the_process() -> None:
    assert by_name(["0", "1", "2"], {}) == dict(zip("012", COLORS, strict=False))
    assert [COLORS.index(c) for c in by_name(NAMES, {}).values()] == [2, 3, 4, 5, 6, 7, 8]


def test_names_that_meet_move_on_and_move_no_other() -> None:
    names = [f"type {chr(97 + i)}" for i in range(26)] + [f"kind {chr(97 + i)}" for i in range(14)]
    together = by_name(names, {})
    assert len(set(together.values())) == len(names) == len(COLORS)
    alone = {name: by_name([name], {})[name] for name in names}
    unmoved = [name for name in names if together[name] == alone[name]]
    assert {alone[name] for name in unmoved} == set(
        alone.values()
    )  # each color stays with one that it belongs to


def test_there_is_a_color_for_everybody() -> None:
    assert len(set(by_name([str(i) for i in range(120)], {}).values())) == 120
    assert MISSING_COLOR not in COLORS


def test_scanpys_colors_go_first_where_they_fit() -> None:
    kinds = pd.Categorical(["b", "a", "b"], categories=["b", "a", "unused"])
    chosen = np.array(["#FF0000", "#00ff00", "#0000ff"])
    assert plot.colors(labeled(kinds, kind_colors=chosen), "kind") == {
        "b": "#ff0000",
        "a": "#00ff00",
    }
    own = plot.colors(labeled(kinds), "kind")
    for stored in (chosen[:2], np.array(["red", "green", "no color"]), "red", np.zeros((3, 3))):
        assert plot.colors(labeled(kinds, kind_colors=stored), "kind") == own


def test_scanpys_colors_survive_a_subset() -> None:
    adata = labeled(pd.Categorical(["a", "b", "c"]), kind_colors=["red", "lime", "blue"])
    assert plot.colors(adata[[0, 2]].copy(), "kind") == {"a": "#ff0000", "c": "#0000ff"}


def test_palettes() -> None:
    adata = labeled(pd.Categorical(["a", "b", "c"]), kind_colors=["red", "lime", "blue"])
    assert plot.colors(adata, "kind", palette=["k", "w", "red"]) == {
        "a": "#000000",
        "b": "#ffffff",
        "c": "#ff0000",
    }
    assert plot.colors(adata, "kind", palette="tab10") == dict(
        zip("abc", ["#1f77b4", "#ff7f0e", "#2ca02c"], strict=True)
    )
    assert plot.colors(adata, "kind", palette="gray")["a"] == "#000000"
    bare = labeled(pd.Categorical(["a", "b", "c"]))
    own = plot.colors(bare, "kind")
    mixed = plot.colors(bare, "kind", palette={"b": own["a"], "elsewhere": "red"})
    assert mixed["b"] == own["a"]
    assert len(set(mixed.values())) == 3
    assert plot.colors(bare, "kind", palette=mixed) == mixed


@pytest.mark.parametrize(
    "palette", [["red"], ["red", "green", "nothing"], {"a": "nothing"}, "no map"]
)
def test_impossible_palettes(palette: Any) -> None:
    with pytest.raises(ConfigError, match="palette"):
        plot.colors(labeled(pd.Categorical(["a", "b", "c"])), "kind", palette=palette)


def test_numbers_have_no_colors() -> None:
    with pytest.raises(InputError, match="holds numbers"):
        plot.colors(labeled([1.0, 2.0]), "kind")


def test_order_is_the_chosen_one_or_the_natural_one() -> None:
    assert list(plot.colors(labeled(["10", "2", "1"]), "kind")) == ["1", "2", "10"]
    assert list(plot.colors(labeled(pd.Categorical(["10", "2"])), "kind")) == ["2", "10"]
    chosen = pd.Categorical(["a", "b", "c"], categories=["c", "a", "b"])
    assert list(plot.colors(labeled(chosen), "kind")) == ["c", "a", "b"]
    assert sorted(["L10", "l2", "L1a2", "L1", "a"], key=natural) == ["a", "L1", "L1a2", "l2", "L10"]


# Machado, Oliveira and Fernandes 2009, severity 1: what linear red, green and blue look like without one kind of cone
SIGHT = {
    "all cones": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritanopia": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}
TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
WHITE = np.array([0.95047, 1.0, 1.08883])


def least_distance(hexes: list[str], sight: np.ndarray) -> float:
    """Return the least distance in CIELAB between two of some colors, as somebody sees them; 2.3 is just seen."""
    parts = [[int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)] for color in hexes]
    rgb = np.array(parts)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ sight.T, 0, 1)
    xyz = seen @ TO_XYZ.T / WHITE
    root = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    x, y, z = root.T
    lab = np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)
    distances = np.linalg.norm(lab[:, None] - lab[None], axis=2)
    return float(distances[np.triu_indices(len(hexes), 1)].min())


@pytest.mark.parametrize("sight", SIGHT)
def test_ten_colors_that_everybody_tells_apart(sight: str) -> None:
    for ground in ("#ffffff", MISSING_COLOR):
        assert least_distance([*COLORS[:10], ground], SIGHT[sight]) > 14
    assert least_distance(list(COLORS[:20]), SIGHT[sight]) > 5
    tableau = ["#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2"]
    red_and_green = ("protanopia", "deuteranopia")
    if sight in red_and_green:  # the simulation tells what is known to be hard
        assert least_distance([*tableau, "#bcbd22", "#17becf"], SIGHT[sight]) < 8


def test_shades_have_patterns() -> None:
    kinds = [pattern_of(color) for color in COLORS]
    assert kinds[:10] == [0] * 10
    assert kinds[10:] == [1] * 10 + [2] * 10 + [3] * 10
    assert pattern_of("#123456") == 0


def test_numbered_labels_have_the_first_colors() -> None:
    assert in_order(3) == list(COLORS[:3])
    assert len(set(in_order(60))) == 60
