"""What embeddings are for: each task takes an embedding matrix, or what makes one, and labels."""

from terrazzo.tasks.deconvolution import deconvolve
from terrazzo.tasks.domains import domains
from terrazzo.tasks.gene_lists import read_gene_list
from terrazzo.tasks.image_to_gene import fit_image_to_gene, image_to_gene, measured
from terrazzo.tasks.imputation import Hidden, hide_genes, impute
from terrazzo.tasks.probes import Probe, fit_probe, probe
from terrazzo.tasks.reconstruction import reconstruct
from terrazzo.tasks.results import TaskResult
from terrazzo.tasks.retrieval import retrieval
from terrazzo.tasks.zero_shot import evaluate_domains

__all__ = [
    "Hidden",
    "Probe",
    "TaskResult",
    "deconvolve",
    "domains",
    "evaluate_domains",
    "fit_image_to_gene",
    "fit_probe",
    "hide_genes",
    "image_to_gene",
    "impute",
    "measured",
    "probe",
    "read_gene_list",
    "reconstruct",
    "retrieval",
]
