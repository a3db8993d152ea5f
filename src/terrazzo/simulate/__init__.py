"""Simulated tissue with known truth, for tests, documentation and the demo.

An *atlas* (from ``atlas_seed``) holds what slices share: genes, cell types with markers, the mixture of types in each
region, region programs and gradients. A slice (from ``seed``) draws the geometry - curved bands, as in cortex -
the cells, and their counts, negative binomial. Counts are drawn by blocks of rows: memory grows with the non-zeros.

Medians at the default depth, and of real slices: total counts | genes detected | share of zeros.

========  ==============================  =========================================================================
layout    simulated                       real
========  ==============================  =========================================================================
cells     143 | 67 of 300 | 0.77          Xenium breast 145 | 63 of 380 | 0.84; seqFISH 209 | 102 of 351 | 0.70
cells     1,062 | 724 of 18,000 | 0.96    none at hand: set to 700-800 genes, as in sequencing
visium    5,048 | 1,147 of 3,000 | 0.62   none at hand; at the depth of DLPFC 151673 (1,449 | 831 of 8,513 | 0.90)
                                          8,500 genes give 1,466 | 837 | 0.90
st        6,023 | 2,575 of 15,000 | 0.82  HER2 A1 4,291 | 2,345 of 15,045 | 0.85
========  ==============================  =========================================================================
"""

from terrazzo.simulate.atlas import Layout
from terrazzo.simulate.slices import corpus, tissue

__all__ = ["Layout", "corpus", "tissue"]
