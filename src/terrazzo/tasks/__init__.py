"""What embeddings are for: each task takes an embedding matrix and labels, and knows no model."""

from terrazzo.tasks.domains import domains

__all__ = ["domains"]
