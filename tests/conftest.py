"""What several test files share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder with the real slices and reference files: TERRAZZO_SHARED, else ``../shared``; skips where absent.

    TERRAZZO_SHARED may name the folder itself or its ``data`` folder.
    """
    stated = os.environ.get("TERRAZZO_SHARED")
    folder = Path(stated) if stated else REPOSITORY.parent / "shared"
    if folder.name == "data" and not (folder / "data").is_dir():
        folder = folder.parent
    if not (folder / "data").is_dir():
        pytest.skip("no shared data: set TERRAZZO_SHARED to the folder that holds data/ and reference/")
    return folder
