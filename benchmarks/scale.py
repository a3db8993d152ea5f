"""How SToFM scales after the cell encoder: one large context, and slices of up to a million cells.

Published sizes, random weights and vectors. ``python benchmarks/scale.py [--quick] [--out FILE]``
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import common
from embed import WIDTH, ours_se2

CONTEXTS, QUICK_CONTEXTS = (1_000, 5_000, 20_000), (500, 2_000)
SLICES, QUICK_SLICES = (50_000, 200_000, 1_000_000), (2_000, 8_000)


def random_slice(cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Return unit vectors of 20 noisy kinds and positions on a jittered lattice, float32 and float64."""
    rng = np.random.default_rng(0)
    side = int(np.ceil(np.sqrt(cells)))
    place = np.stack(np.divmod(np.arange(cells), side), axis=1) * 10.0 + rng.uniform(
        -3, 3, (cells, 2)
    )
    kinds = rng.standard_normal((20, WIDTH)).astype(np.float32)
    kind = (place[:, 0] // (side * 10 / 5)).astype(int) * 4 + rng.integers(0, 4, cells)
    out = np.empty((cells, WIDTH), dtype=np.float32)
    for start in range(0, cells, 50_000):
        part = kinds[kind[start : start + 50_000] % 20] + rng.standard_normal(
            (len(out[start : start + 50_000]), WIDTH), dtype=np.float32
        )
        out[start : start + 50_000] = part / np.linalg.norm(part, axis=1, keepdims=True)
    return out, place


def run(cells: int, one_context: bool) -> dict:
    """Embed from cell vectors on; memory counts what is added to the stored arrays."""
    import torch

    from terrazzo.systems.stofm import subslices
    from terrazzo.systems.stofm.se2 import SE2Config, SE2Transformer

    torch.manual_seed(0)
    model = SE2Transformer(SE2Config()).eval()
    features, place = random_slice(cells)
    config = subslices.SubSliceConfig(length_scale=10.0)
    stored = (
        2 * features.nbytes + 2 * place.nbytes
    ) / 2**20  # vectors in and out, coordinates, positions
    if one_context:
        config = replace(config, subslice_size=cells)
    tiny = (features[:300], place[:300])
    for f, p in (tiny, (features, place)):
        before, start = common.peak_mb(), time.perf_counter()
        positions = subslices.model_positions(p, config, config.length_scale)
        macro = subslices.macro_scale(f, positions, config)
        clustered = time.perf_counter()
        parts = subslices.split_cells(positions, config)
        stream = subslices.iterate(positions, macro.positions, parts, config)
        ours_se2(model, f, macro, stream)
    seconds = time.perf_counter() - start
    return {
        "cells": cells,
        "sub-slices": len(parts),
        "virtual cells": len(macro.features),
        "tokens a context": max(map(len, parts)) + len(macro.features) + 1,
        "seconds": seconds,
        "macro s": clustered - start,
        "ms a cell": 1000 * seconds / cells,
        "stored MB": stored,
        "added MB": common.peak_mb() - before,
        "process peak MB": common.peak_mb(),
    }


def main() -> None:
    """Measure contexts, then slices."""
    parser = common.parser(__doc__ or "")
    parser.add_argument(
        "--largest", type=int, default=max(SLICES), help="leave out slices of more cells than this"
    )
    options = parser.parse_args()
    contexts, slices = (QUICK_CONTEXTS, QUICK_SLICES) if options.quick else (CONTEXTS, SLICES)
    slices = tuple(n for n in slices if n <= options.largest)
    one = [common.in_fresh_process(__file__, str(n), "context") for n in contexts]
    many = [common.in_fresh_process(__file__, str(n), "slice") for n in slices]
    for row, kind in ((r, k) for rows, k in ((one, "one context"), (many, "slice")) for r in rows):
        row["what"] = kind
    result = {
        "context_tokens": float(one[-1]["tokens a context"]),
        "context_peak_gb": one[-1]["process peak MB"] / 1024,
        "slice_cells": float(many[-1]["cells"]),
        "slice_added_over_stored": many[-1]["added MB"] / many[-1]["stored MB"],
        "time_per_cell_growth": many[-1]["ms a cell"] / many[0]["ms a cell"],
    }
    notes = [
        "time_per_cell_growth 1 means linear time",
        "stored: cell vectors in, vectors out, coordinates and positions; added: what the run put on top",
    ]
    common.finish(
        "SToFM after the cell encoder: contexts and slices", one + many, notes, result, options.out
    )


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] == "--worker":
        print(json.dumps(run(int(sys.argv[2]), sys.argv[3] == "context")))
    else:
        main()
