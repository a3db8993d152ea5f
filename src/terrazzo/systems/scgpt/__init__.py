"""scGPT: published checkpoints as a cell encoder (Cui et al. 2024)."""
