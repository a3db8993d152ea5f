"""The how-to pages, followed: every command and every block of Python runs, and prints what the page shows."""

from __future__ import annotations

import warnings
from pathlib import Path

import fenced
import pytest

OTHERS = {"own-slice.md", "platforms.md"}  # with tests of their own
PAGES = [path for path in sorted((fenced.DOCS / "howto").glob("*.md")) if path.name not in OTHERS]
PAGES.append(fenced.DOCS / "start.md")


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_a_page_can_be_followed(page: Path, reader: fenced.Reader) -> None:
    from terrazzo.errors import TerrazzoWarning

    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", TerrazzoWarning
        )  # what is said of random or hardly trained weights
        for kind in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
            warnings.simplefilter(
                "ignore", kind
            )  # scanpy's, of its own calls of matplotlib and pandas
        reader.follow(page, numbers=False)
