"""What embeddings are for: each task takes an embedding matrix and labels, and knows no model."""

from terrazzo.tasks.domains import domains
from terrazzo.tasks.zero_shot import evaluate_domains

__all__ = ["domains", "evaluate_domains"]
