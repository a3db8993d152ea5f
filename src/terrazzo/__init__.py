"""terrazzo: import, run and compare foundation models for spatial transcriptomics.

The names below are the public ones; each is imported when it is first used, so that ``import terrazzo`` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from terrazzo._version import __version__

if TYPE_CHECKING:
    from terrazzo import datasets, plot, report, simulate, tasks
    from terrazzo.corpus.build import build as build_corpus
    from terrazzo.corpus.store import Corpus
    from terrazzo.genes import Coverage, Vocabulary
    from terrazzo.images import TissueImage
    from terrazzo.models.baselines import Baseline, fit_baselines
    from terrazzo.models.embed_files import embed_files
    from terrazzo.models.loading import load
    from terrazzo.records import block
    from terrazzo.slices import Slice, read
    from terrazzo.slices.spatialdata_writing import write_table
    from terrazzo.systems.scgpt.convert import convert_scgpt
    from terrazzo.systems.scgpt.model import ScGPT, ScGPTConfig
    from terrazzo.systems.stalign.config import STAlignConfig
    from terrazzo.systems.stalign.convert import convert_uni
    from terrazzo.systems.stalign.image_baselines import ImageBaseline
    from terrazzo.systems.stalign.model import STAlign
    from terrazzo.systems.stimage.config import STImageConfig
    from terrazzo.systems.stimage.model import STImage
    from terrazzo.systems.stimage.windows import PatchConfig
    from terrazzo.systems.stofm.cell_model import CellModel
    from terrazzo.systems.stofm.config import SToFMConfig, preset
    from terrazzo.systems.stofm.convert import convert_geneformer, convert_stofm
    from terrazzo.systems.stofm.finetune import FineTuneConfig, finetune
    from terrazzo.systems.stofm.finetune_scores import evaluate_finetuning
    from terrazzo.systems.stofm.model import SToFM
    from terrazzo.training.run import pretrain

_WHERE = {
    "Baseline": "models.baselines",
    "CellModel": "systems.stofm.cell_model",
    "Corpus": "corpus.store",
    "Coverage": "genes",
    "FineTuneConfig": "systems.stofm.finetune",
    "PatchConfig": "systems.stimage.windows",
    "ImageBaseline": "systems.stalign.image_baselines",
    "STAlign": "systems.stalign.model",
    "STAlignConfig": "systems.stalign.config",
    "STImage": "systems.stimage.model",
    "STImageConfig": "systems.stimage.config",
    "ScGPT": "systems.scgpt.model",
    "ScGPTConfig": "systems.scgpt.model",
    "SToFM": "systems.stofm.model",
    "SToFMConfig": "systems.stofm.config",
    "Slice": "slices",
    "TissueImage": "images",
    "Vocabulary": "genes",
    "block": "records",
    "build_corpus": "corpus.build:build",
    "convert_geneformer": "systems.stofm.convert",
    "convert_scgpt": "systems.scgpt.convert",
    "convert_stofm": "systems.stofm.convert",
    "convert_uni": "systems.stalign.convert",
    "embed_files": "models.embed_files",
    "evaluate_finetuning": "systems.stofm.finetune_scores",
    "finetune": "systems.stofm.finetune",
    "fit_baselines": "models.baselines",
    "load": "models.loading",
    "preset": "systems.stofm.config",
    "pretrain": "training.run",
    "read": "slices",
    "write_table": "slices.spatialdata_writing",
}
_ROOMS = ("datasets", "errors", "keys", "plot", "report", "simulate", "tasks")

__all__ = [
    "Baseline",
    "CellModel",
    "Corpus",
    "Coverage",
    "FineTuneConfig",
    "ImageBaseline",
    "PatchConfig",
    "STAlign",
    "STAlignConfig",
    "STImage",
    "STImageConfig",
    "SToFM",
    "SToFMConfig",
    "ScGPT",
    "ScGPTConfig",
    "Slice",
    "TissueImage",
    "Vocabulary",
    "__version__",
    "block",
    "build_corpus",
    "convert_geneformer",
    "convert_scgpt",
    "convert_stofm",
    "convert_uni",
    "datasets",
    "embed_files",
    "evaluate_finetuning",
    "finetune",
    "fit_baselines",
    "load",
    "plot",
    "preset",
    "pretrain",
    "read",
    "report",
    "simulate",
    "tasks",
    "write_table",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        room, _, home_name = _WHERE[name].partition(":")
        value = getattr(importlib.import_module(f"terrazzo.{room}"), home_name or name)
    elif name in _ROOMS:
        value = importlib.import_module(f"terrazzo.{name}")
    else:
        raise AttributeError(f"module 'terrazzo' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE, *_ROOMS})
