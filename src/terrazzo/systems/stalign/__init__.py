"""ST-Align: histology and genes, spot and niche, contrastive (Lin et al. 2026)."""
