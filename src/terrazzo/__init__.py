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
    from terrazzo.models.cells import CellModel
    from terrazzo.models.convert import convert_geneformer, convert_stofm, load
    from terrazzo.models.convert_scgpt import convert_scgpt
    from terrazzo.models.convert_uni import convert_uni
    from terrazzo.models.files import embed_files
    from terrazzo.models.image_baselines import ImageBaseline
    from terrazzo.models.scgpt import ScGPT, ScGPTConfig
    from terrazzo.models.stalign import STAlign
    from terrazzo.models.stalign_config import STAlignConfig
    from terrazzo.models.stimage import STImage
    from terrazzo.models.stimage_config import STImageConfig
    from terrazzo.models.stofm import SToFM
    from terrazzo.models.stofm_config import SToFMConfig, preset
    from terrazzo.representation import block
    from terrazzo.sdata.writing import write_table
    from terrazzo.slices import Slice, read
    from terrazzo.training.finetune import FineTuneConfig, finetune
    from terrazzo.training.finetune_scores import evaluate_finetuning
    from terrazzo.training.run import pretrain
    from terrazzo.units.patches import PatchConfig

_WHERE = {
    "Baseline": "models.baselines",
    "CellModel": "models.cells",
    "Corpus": "corpus.store",
    "Coverage": "genes",
    "FineTuneConfig": "training.finetune",
    "PatchConfig": "units.patches",
    "ImageBaseline": "models.image_baselines",
    "STAlign": "models.stalign",
    "STAlignConfig": "models.stalign_config",
    "STImage": "models.stimage",
    "STImageConfig": "models.stimage_config",
    "ScGPT": "models.scgpt",
    "ScGPTConfig": "models.scgpt",
    "SToFM": "models.stofm",
    "SToFMConfig": "models.stofm_config",
    "Slice": "slices",
    "TissueImage": "images",
    "Vocabulary": "genes",
    "block": "representation",
    "build_corpus": "corpus.build:build",
    "convert_geneformer": "models.convert",
    "convert_scgpt": "models.convert_scgpt",
    "convert_stofm": "models.convert",
    "convert_uni": "models.convert_uni",
    "embed_files": "models.files",
    "evaluate_finetuning": "training.finetune_scores",
    "finetune": "training.finetune",
    "fit_baselines": "models.baselines",
    "load": "models.convert",
    "preset": "models.stofm_config",
    "pretrain": "training.run",
    "read": "slices",
    "write_table": "sdata.writing",
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
