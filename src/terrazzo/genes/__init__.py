"""Genes: the vocabulary of a model, how the genes of a slice are matched to it, and what is lost."""

from terrazzo.genes.matching import Coverage, GeneMatch, load_orthologs
from terrazzo.genes.vocabulary import Vocabulary

__all__ = ["Coverage", "GeneMatch", "Vocabulary", "load_orthologs"]
