"""Spots over the histology: rings of the spots' size, where they are, and what the title says."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from matplotlib.collections import EllipseCollection

from terrazzo import Slice, plot
from terrazzo.errors import ConfigError, InputError
from terrazzo.images import TissueImage

pytestmark = pytest.mark.usefixtures("quiet_figures")


def rings(ax):
    return [one for one in ax.collections if isinstance(one, EllipseCollection)]


@pytest.mark.parametrize(("layout", "diameter"), [("visium", 55.0), ("st", 100.0)])
def test_every_spot_has_its_ring(simulated, layout, diameter):
    adata = simulated(150, 20, layout=layout, image=True, image_px=400)
    figure = plot.overlay(adata)
    whole, *near = figure.axes
    tissue = Slice.from_anndata(adata)
    np.testing.assert_allclose(rings(whole)[0].get_offsets(), tissue.coords)
    assert {float(one.get_widths()[0]) for ax in figure.axes for one in rings(ax)} == {diameter}
    assert len(near) == 2
    for ax in near:
        niche = ax.lines[0].get_xydata()
        assert np.ptp(niche, axis=0).min() >= diameter
        assert len(ax.images) == 1
    title = figure.get_suptitle()
    assert "150 spots" in title
    assert "on tissue" in title
    shown = whole.images[0].get_extent()
    image = tissue.image
    np.testing.assert_allclose(
        shown, [0, image.width * image.microns_per_pixel, image.height * image.microns_per_pixel, 0]
    )


def test_misplaced_spots_are_drawn_in_red(simulated):
    tissue = Slice.from_anndata(simulated(150, 20, layout="visium", image=True, image_px=400))
    image = dataclasses.replace(tissue.image, offset=(tissue.image.width / 2, 0.0))
    figure = plot.overlay(dataclasses.replace(tissue, image=image))
    inside, outside = rings(figure.axes[0])
    assert len(inside.get_offsets()) + len(outside.get_offsets()) == 150
    assert len(outside.get_offsets()) > 20
    assert tuple(outside.get_edgecolor()[0]) != tuple(inside.get_edgecolor()[0])


def test_what_cannot_be_drawn_is_refused(simulated):
    adata = simulated(150, 20, layout="visium", image=True, image_px=400)
    with pytest.raises(InputError, match="no histology"):
        plot.overlay(simulated(150, 20, layout="visium"))
    cells = simulated(150, 20)
    image = TissueImage(np.zeros((900, 900, 3), np.uint8))
    with pytest.raises(ConfigError, match="spot_um"):
        plot.overlay(cells, image=image)
    assert plot.overlay(cells, image=image, spot_um=12.0)
    with pytest.raises(InputError, match="micrometers per pixel"):
        plot.overlay(adata, unit="pixel")
