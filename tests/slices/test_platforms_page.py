"""The how-to page of vendors' platforms, followed on small folders in each vendor's layout."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import fenced
import pytest
from test_cosmx import write as write_cosmx
from test_merscope_slideseq import merscope, slideseq  # noqa: F401
from test_spaceranger import visium, visium_hd  # noqa: F401
from test_stereoseq import records, write_bins
from test_xenium import xenium  # noqa: F401

PAGE = fenced.DOCS / "howto" / "platforms.md"


@pytest.fixture
def vendors(tmp_path: Path, request: pytest.FixtureRequest, counts: Any) -> Path:
    """Lay out a folder for each platform by the names of the page."""
    folder = tmp_path / "page"
    for name in ("visium", "visium_hd", "xenium", "merscope"):
        place = folder / name / "outs" if name.startswith("visium") else folder / name
        shutil.copytree(request.getfixturevalue(name), place)
    for name in ("slideseq", "stereoseq"):
        (folder / name).mkdir()
    for path in request.getfixturevalue("slideseq").glob(
        "Puck_*"
    ):  # it fills the test's own folder
        shutil.copy(path, folder / "slideseq")
    write_cosmx(folder / "cosmx", counts(8, 6))
    write_bins(folder / "stereoseq" / "sample.tissue.gef", records())
    return folder


def test_the_page_can_be_followed(vendors: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(vendors)
    reader = fenced.Reader(vendors)
    reader.follow(PAGE)
    assert reader.namespace["tissue"].unit == "um"
    assert reader.namespace["chip"].spacing == pytest.approx(10.0)
