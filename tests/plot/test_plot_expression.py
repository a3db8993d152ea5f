"""Predicted genes: which panel holds which numbers, and what stands over it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from anndata import AnnData

import terrazzo as tz
from terrazzo import plot
from terrazzo.errors import InputError
from terrazzo.expression import expression
from terrazzo.plot.palettes import MISSING
from terrazzo.slices.panel import Panel

pytestmark = pytest.mark.usefixtures("quiet_figures")


@pytest.fixture
def annotated(simulated: Any) -> tuple[AnnData, list[str]]:
    slices = [
        simulated(80, 30, layout="visium", n_regions=3, seed=i, image=True, image_px=200)
        for i in range(2)
    ]
    for one in slices:
        one.obsm["X_img"] = one.obsm["proportions"]
    probe = tz.tasks.fit_image_to_gene(slices[0], use_rep="X_img", genes=6)
    return probe.annotate(slices[1]), list(probe.names)


def panels(figure: Any) -> dict[str, dict[str, Any]]:
    """Return the numbers of each panel by its title, its blank spots, its scale, and whether there is an image."""
    out = {}
    for axes in figure.axes:
        cells = {c.get_label(): c for c in axes.collections}
        blank = cells.pop(MISSING, None)
        shown = next(iter(cells.values()), None)
        out[axes.get_title()] = {
            "values": None if shown is None else np.asarray(shown.get_array()),
            "scale": None if shown is None else (shown.norm.vmin, shown.norm.vmax),
            "blank": 0 if blank is None else len(blank.get_offsets()),
            "images": len(axes.images),
        }
    return out


def test_measured_beside_predicted_over_the_histology(annotated: tuple[AnnData, list[str]]) -> None:
    adata, names = annotated
    before = list(adata.obsm)
    shown = panels(plot.predicted_genes(adata, names[2:4]))
    true = expression(Panel.read(adata), names[2:4])
    predicted = adata.obsm["expression_predicted"][:, 2:4]
    assert {title.split(" (")[0] for title in shown} == {
        "histology",
        *(f"{name}, {what}" for name in names[2:4] for what in ("measured", "predicted")),
    }
    assert all(panel["images"] == 1 for panel in shown.values())
    assert shown["histology"]["values"] is None
    for i, name in enumerate(names[2:4]):
        r = np.corrcoef(true[name], predicted[:, i])[0, 1]
        np.testing.assert_allclose(shown[f"{name}, measured"]["values"], true[name], rtol=1e-6)
        np.testing.assert_allclose(
            shown[f"{name}, predicted (r = {r:.2f})"]["values"], predicted[:, i], rtol=1e-6
        )
    assert list(adata.obsm) == before


def test_one_scale_for_both(annotated: tuple[AnnData, list[str]]) -> None:
    adata, names = annotated
    own = panels(plot.predicted_genes(adata, names[0], shared=False))
    one = panels(plot.predicted_genes(adata, names[0]))
    assert len({panel["scale"] for panel in own.values() if panel["scale"]}) == 2
    assert len({panel["scale"] for panel in one.values() if panel["scale"]}) == 1


def test_what_was_not_measured_is_gray_and_four_genes_are_drawn(
    annotated: tuple[AnnData, list[str]],
) -> None:
    adata, names = annotated
    fewer = adata[:, [name for name in adata.var_names if name not in names[:2]]].copy()
    del fewer.uns["spatial"]
    shown = panels(plot.predicted_genes(fewer))
    assert "histology" not in shown
    assert [title.split(",")[0] for title in shown][::2] == names[2:6]  # those that are measured
    shown = panels(plot.predicted_genes(fewer, names[0]))
    assert set(shown) == {f"{names[0]}, not measured", f"{names[0]}, predicted"}
    assert shown[f"{names[0]}, not measured"]["blank"] == 80


def test_the_scale_that_was_learned_is_the_one_that_is_drawn(simulated: Any) -> None:
    adata = simulated(80, 30, layout="visium", seed=0)
    adata.obsm["X_img"] = adata.obsm["proportions"]
    probe = tz.tasks.fit_image_to_gene(adata, use_rep="X_img", genes=1, scale="median")
    shown = panels(plot.predicted_genes(probe.annotate(adata)))
    true = expression(Panel.read(adata), probe.names, "median").to_numpy().ravel()
    np.testing.assert_allclose(shown[f"{probe.names[0]}, measured"]["values"], true, rtol=1e-6)


def test_bad_input(annotated: tuple[AnnData, list[str]]) -> None:
    adata, names = annotated
    with pytest.raises(InputError, match=f"holds no 'SIM99'; it holds: {names[0]}"):
        plot.predicted_genes(adata, "SIM99")
    with pytest.raises(InputError, match="obsm holds no 'gone' with names of genes"):
        plot.predicted_genes(adata, key="gone")
    del adata.uns["spatial"]
    with pytest.raises(InputError, match="there is no image"):
        plot.predicted_genes(adata, image=True)
