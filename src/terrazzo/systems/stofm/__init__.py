"""SToFM: ranked genes, virtual cells, sub-slices, SE(2) Transformer (Zhao et al., ICML 2025)."""
