"""Genes: the vocabulary that a model knows, how a slice's genes meet it, and what is lost."""

from terrazzo.genes.matching import Coverage, GeneMatch, load_orthologs
from terrazzo.genes.vocabulary import Vocabulary

__all__ = ["Coverage", "GeneMatch", "Vocabulary", "load_orthologs"]
