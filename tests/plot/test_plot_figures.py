"""Figures go to files whole, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from terrazzo import plot
from terrazzo.errors import OutputError

pytestmark = pytest.mark.usefixtures("quiet_figures")


def test_save(simulated: Any, tmp_path: Path) -> None:
    import matplotlib.pyplot as plt

    figure = plot.spatial(simulated(), color="region").figure
    path = plot.save(figure, tmp_path / "figure.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert not plt.fignum_exists(figure.number)
    for wrong in (tmp_path / "nowhere" / "figure.png", tmp_path / "figure.xyz"):
        figure = plot.spatial(simulated(), color="region").figure
        with pytest.raises(OutputError, match="could not be written"):
            plot.save(figure, wrong)
        assert not plt.fignum_exists(figure.number)


def test_a_legend_beside_given_axes_is_not_cut_off(simulated: Any, tmp_path: Path) -> None:
    import matplotlib.pyplot as plt
    from PIL import Image

    figure, axes = plt.subplots(figsize=(3, 3))  # without a layout that makes room
    adata = simulated()
    adata.obs["long"] = "a name that is far longer than there is room for"
    plot.spatial(adata, color="long", ax=axes)
    with Image.open(plot.save(figure, tmp_path / "figure.png")) as picture:
        assert picture.width > 3.5 * 150
