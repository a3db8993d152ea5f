"""terrazzo: pretrain, run and compare foundation models for spatial transcriptomics.

The names below are the public ones; each is imported when it is first used, so that ``import terrazzo`` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from terrazzo._version import __version__

if TYPE_CHECKING:
    from terrazzo import datasets, plot, report, simulate, tasks
    from terrazzo.answers.annotating import annotate
    from terrazzo.answers.run import regions, types
    from terrazzo.corpus.build import build as build_corpus
    from terrazzo.corpus.store import Corpus
    from terrazzo.genes import Vocabulary
    from terrazzo.images import TissueImage
    from terrazzo.models.baselines import Baseline
    from terrazzo.models.embed_files import embed_files
    from terrazzo.models.loading import convert, load
    from terrazzo.models.shipped import list_models
    from terrazzo.records import vectors as get
    from terrazzo.slices import Slice, read, write_table
    from terrazzo.systems.stalign.model import STAlign
    from terrazzo.systems.stimage.model import STImage
    from terrazzo.systems.stofm.finetune import finetune
    from terrazzo.systems.stofm.model import SToFM
    from terrazzo.training.adapting import adapt
    from terrazzo.training.recipe import load_recipe
    from terrazzo.training.run import pretrain

_NAMES = {  # public name: where it is
    "adapt": "terrazzo.training.adapting:adapt",
    "Baseline": "terrazzo.models.baselines:Baseline",
    "Corpus": "terrazzo.corpus.store:Corpus",
    "STAlign": "terrazzo.systems.stalign.model:STAlign",
    "STImage": "terrazzo.systems.stimage.model:STImage",
    "SToFM": "terrazzo.systems.stofm.model:SToFM",
    "Slice": "terrazzo.slices:Slice",
    "TissueImage": "terrazzo.images:TissueImage",
    "Vocabulary": "terrazzo.genes:Vocabulary",
    "annotate": "terrazzo.answers.annotating:annotate",
    "build_corpus": "terrazzo.corpus.build:build",
    "convert": "terrazzo.models.loading:convert",
    "embed_files": "terrazzo.models.embed_files:embed_files",
    "finetune": "terrazzo.systems.stofm.finetune:finetune",
    "get": "terrazzo.records:vectors",
    "list_models": "terrazzo.models.shipped:list_models",
    "load": "terrazzo.models.loading:load",
    "load_recipe": "terrazzo.training.recipe:load_recipe",
    "pretrain": "terrazzo.training.run:pretrain",
    "read": "terrazzo.slices:read",
    "regions": "terrazzo.answers.run:regions",
    "types": "terrazzo.answers.run:types",
    "write_table": "terrazzo.slices:write_table",
}
_MODULES = ("datasets", "plot", "report", "simulate", "tasks")

__all__ = [
    "Baseline",
    "Corpus",
    "STAlign",
    "STImage",
    "SToFM",
    "Slice",
    "TissueImage",
    "Vocabulary",
    "__version__",
    "adapt",
    "annotate",
    "build_corpus",
    "convert",
    "datasets",
    "embed_files",
    "finetune",
    "get",
    "list_models",
    "load",
    "load_recipe",
    "plot",
    "pretrain",
    "read",
    "regions",
    "report",
    "simulate",
    "tasks",
    "types",
    "write_table",
]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        module, _, attribute = _NAMES[name].partition(":")
        value = getattr(importlib.import_module(module), attribute)
    elif name in _MODULES:
        value = importlib.import_module(f"terrazzo.{name}")
    else:
        raise AttributeError(f"module 'terrazzo' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
