"""terrazzo: import, run and compare foundation models for spatial transcriptomics.

The names below are the public ones; each is imported when it is first used, so that ``import terrazzo`` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from terrazzo._version import __version__

if TYPE_CHECKING:
    from terrazzo import plot, simulate, tasks
    from terrazzo.genes import Coverage, Vocabulary
    from terrazzo.images import TissueImage
    from terrazzo.models.baselines import PCANeighbours
    from terrazzo.models.cells import CellModel
    from terrazzo.models.convert import convert_geneformer, convert_stofm, load
    from terrazzo.models.files import embed_files
    from terrazzo.models.stofm import SToFM
    from terrazzo.models.stofm_config import SToFMConfig, preset
    from terrazzo.slices import Slice, read

_WHERE = {
    "CellModel": "models.cells",
    "Coverage": "genes",
    "PCANeighbours": "models.baselines",
    "SToFM": "models.stofm",
    "SToFMConfig": "models.stofm_config",
    "Slice": "slices",
    "TissueImage": "images",
    "Vocabulary": "genes",
    "convert_geneformer": "models.convert",
    "convert_stofm": "models.convert",
    "embed_files": "models.files",
    "load": "models.convert",
    "preset": "models.stofm_config",
    "read": "slices",
}
_ROOMS = ("errors", "keys", "plot", "simulate", "tasks")

__all__ = [
    "CellModel",
    "Coverage",
    "PCANeighbours",
    "SToFM",
    "SToFMConfig",
    "Slice",
    "TissueImage",
    "Vocabulary",
    "__version__",
    "convert_geneformer",
    "convert_stofm",
    "embed_files",
    "load",
    "plot",
    "preset",
    "read",
    "simulate",
    "tasks",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        value = getattr(importlib.import_module(f"terrazzo.{_WHERE[name]}"), name)
    elif name in _ROOMS:
        value = importlib.import_module(f"terrazzo.{name}")
    else:
        raise AttributeError(f"module 'terrazzo' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE, *_ROOMS})
