"""ST as images: croppable multi-channel windows, masked autoencoder (Zhu et al. 2026)."""
