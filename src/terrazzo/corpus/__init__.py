"""The library's stacks: many slices on disk, checked, in spatial order, ready to be streamed."""

from terrazzo.corpus.build import build
from terrazzo.corpus.recipes import Plan, Recipe, load_recipe, plan
from terrazzo.corpus.sources import QualityControl
from terrazzo.corpus.splits import Splits
from terrazzo.corpus.store import Corpus
from terrazzo.corpus.verify import info, verify

__all__ = [
    "Corpus",
    "Plan",
    "QualityControl",
    "Recipe",
    "Splits",
    "build",
    "info",
    "load_recipe",
    "plan",
    "verify",
]
