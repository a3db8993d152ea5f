"""Corpora: many slices on disk, checked, in spatial order, ready to be streamed."""

from terrazzo.corpus.build import build
from terrazzo.corpus.published import (
    CorpusPlan,
    PublishedCorpus,
    load_published,
    plan_corpus,
    published_names,
)
from terrazzo.corpus.quality import QualityControl
from terrazzo.corpus.splits import Splits
from terrazzo.corpus.store import Corpus
from terrazzo.corpus.verify import info, verify

__all__ = [
    "Corpus",
    "CorpusPlan",
    "PublishedCorpus",
    "QualityControl",
    "Splits",
    "build",
    "info",
    "load_published",
    "plan_corpus",
    "published_names",
    "verify",
]
