"""Every stage of SToFM's embedding beside the published way of working: time, memory, and the physical limit.

Both sides run on the same simulated slices, in fresh processes, one after the other, a few rounds; the ratio of a stage
is the median over the rounds. ``python benchmarks/embed.py [--quick] [--out FILE]``
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import baseline
import common

SHAPES = {
    "panel": 377,
    "seq": 18_000,
}  # genes: imaging panel (~110 tokens a cell), sequencing (~740)
FULL = {
    "tokenize": 10_000,
    "encode_panel": 256,
    "encode_seq": 32,
    "encode_bf16": 4,
    "graph": 10_000,
    "se2": 4_000,
    "after_encoder": 10_000,
}
QUICK = {
    "tokenize": 1_000,
    "encode_panel": 32,
    "encode_seq": 4,
    "encode_bf16": 1,
    "graph": 2_000,
    "se2": 700,
    "after_encoder": 1_200,
}
TARGETS = {
    "tokenize": 10,
    "encode_seq": 5,
    "encode_panel": 1.8,
    "encode_bf16": 10,
    "graph": 10,
    "se2": 20,
    "se2_memory": 10,
    "after_encoder": 20,
}
WIDTH = 256


def slice_and_genes(shape: str, cells: int):
    """Simulate a slice and a vocabulary for it."""
    import terrazzo as tz

    adata = tz.simulate.tissue(cells, n_genes=SHAPES[shape], seed=1)
    tissue = tz.Slice.from_anndata(adata)
    vocabulary = tz.Vocabulary.from_slices([tissue])
    return tissue, vocabulary.match(tissue)


def embeddings(cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Return smooth random unit vectors on a simulated tissue, and its positions: the input of what follows."""
    from scipy.spatial import cKDTree

    import terrazzo as tz

    xy = tz.simulate.tissue(cells, n_genes=50, seed=1).obsm["spatial"]
    noise = np.random.default_rng(0).standard_normal((cells, WIDTH)).astype(np.float32)
    smooth = noise[cKDTree(xy).query(xy, k=20)[1]].mean(axis=1) * 3 + noise
    return (smooth / np.linalg.norm(smooth, axis=1, keepdims=True)).astype(np.float32), xy


def published_config():
    """Return SToFM's published way of cutting a slice."""
    from terrazzo.systems.stofm.convert import PUBLISHED

    return PUBLISHED


# ------------------------------------------------------------------------------------------------------------- workers
def tokenize(side: str, cells: int) -> dict:
    """Tokenize a sequencing slice."""
    from terrazzo.systems.stofm.tokens import rank_tokens

    tissue, match = slice_and_genes("seq", cells)
    few = tissue.counts[:50]
    if side == "ours":
        arguments = (match.column_token, match.column_median)
        return common.timed(
            lambda: rank_tokens(tissue.counts, *arguments), lambda: rank_tokens(few, *arguments)
        ) | {
            "nbytes": tissue.counts.data.nbytes
            + tissue.counts.indices.nbytes
            + 4 * tissue.counts.nnz
        }
    arguments = (match.column_token, match.column_median)
    return common.timed(
        lambda: baseline.tokenize(tissue.counts, *arguments),
        lambda: baseline.tokenize(few, *arguments),
    )


def encode(side: str, cells: int, shape: str, precision: str = "float32") -> dict:
    """Encode cells with a cell encoder of the published size."""
    import torch

    from terrazzo.systems.stofm.cell_encoder import CellEncoder, CellEncoderConfig
    from terrazzo.systems.stofm.tokens import rank_tokens

    tissue, match = slice_and_genes(shape, max(cells, 200))
    tokens = rank_tokens(tissue.counts, match.column_token, match.column_median).take(
        np.arange(cells)
    )
    torch.manual_seed(0)
    encoder = CellEncoder(CellEncoderConfig()).eval()
    flops = encoder.flops(tokens.lengths + 1)
    if side == "ours":
        few = tokens.take(np.arange(1))

        def run(t):
            return encoder.encode(t.flat, t.offsets, cls_token=25_426, precision=precision)

        out = common.timed(lambda: run(tokens), lambda: run(few))
        if precision == "bfloat16":
            exact = encoder.encode(tokens.flat, tokens.offsets, cls_token=25_426)
            out["min_cosine"] = float((exact * run(tokens)).sum(axis=1).min())
        return out | {"flops": flops}
    bert, proj = baseline.random_bert()
    lists = [tokens[i] for i in range(cells)]
    return common.timed(
        lambda: baseline.encode(bert, proj, lists), lambda: baseline.encode(bert, proj, lists[:1])
    )


def ours_graph(features: np.ndarray, xy: np.ndarray) -> tuple:
    """Cluster, make virtual cells, split, and list the pairs of every sub-slice."""
    from terrazzo.systems.stofm import subslices

    config = published_config()
    positions = subslices.model_positions(xy, config)
    macro = subslices.macro_scale(features, positions, config)
    parts = subslices.split_cells(positions, config)
    return macro, list(subslices.iterate(positions, macro.positions, parts, config))


def baseline_graph(features: np.ndarray, xy: np.ndarray, search: str = "scanpy") -> tuple:
    """The same, the published way."""
    positions = baseline.normalize_positions(xy)
    _, virtual, places, _ = baseline.virtual_cells(features, positions)
    parts = baseline.split_grid(positions)
    return virtual, baseline.subslice_inputs(positions, places, parts, search=search)


def graph(side: str, cells: int) -> dict:
    """Virtual cells and sub-slice inputs."""
    features, xy = embeddings(cells)
    small = (features[:300], xy[:300])
    if side == "ours":
        return common.timed(lambda: ours_graph(features, xy), lambda: ours_graph(*small))
    search = "sklearn" if side == "baseline_sklearn" else "scanpy"
    return common.timed(
        lambda: baseline_graph(features, xy, search), lambda: baseline_graph(*small, search)
    )


def ours_se2(model, features: np.ndarray, macro, subs: list) -> np.ndarray:
    """Stream the sub-slices through the fast SE(2) Transformer."""
    import torch

    from terrazzo.systems.stofm.model import subslice_tensors
    from terrazzo.systems.stofm.se2 import Workspace

    out = np.empty((len(features), WIDTH), dtype=np.float32)
    workspace = Workspace()
    with torch.inference_mode():
        for sub in subs:
            tensors = subslice_tensors([sub], features, macro.features, torch.device("cpu"))
            hidden = model(*tensors, workspace=workspace).hidden
            out[sub.cells] = hidden[1 + sub.n_virtual :].numpy()
    return out


def se2_flops(model, subs: list) -> float:
    """Operations of all sub-slices."""
    return sum(model.flops(s.n_tokens) for s in subs)


def se2(side: str, cells: int) -> dict:
    """SE(2) forward of the published size."""
    import torch

    from terrazzo.systems.stofm.se2 import SE2Config, SE2Transformer

    features, xy = embeddings(cells)
    if side == "ours":
        torch.manual_seed(0)
        model = SE2Transformer(SE2Config()).eval()
        macro, subs = ours_graph(features, xy)
        few = ours_graph(features[:100], xy[:100])
        out = common.timed(
            lambda: ours_se2(model, features, macro, subs),
            lambda: ours_se2(model, features[:100], *few),
        )
        return out | {"flops": se2_flops(model, subs), "tokens": max(s.n_tokens for s in subs)}
    model = baseline.random_se2()
    virtual, items = baseline_graph(features, xy)
    few = baseline_graph(features[:100], xy[:100])
    return common.timed(
        lambda: baseline.se2_embed(model, features, virtual, items),
        lambda: baseline.se2_embed(model, features[:100], *few),
    )


def after_encoder(side: str, cells: int) -> dict:
    """Everything after the cell encoder."""
    import torch

    from terrazzo.systems.stofm.se2 import SE2Config, SE2Transformer

    features, xy = embeddings(cells)
    if side == "ours":
        torch.manual_seed(0)
        model = SE2Transformer(SE2Config()).eval()

        def run(f, p):
            macro, subs = ours_graph(f, p)
            return ours_se2(model, f, macro, subs)

    else:
        model = baseline.random_se2()

        def run(f, p):
            virtual, items = baseline_graph(f, p)
            return baseline.se2_embed(model, f, virtual, items)

    return common.timed(lambda: run(features, xy), lambda: run(features[:100], xy[:100]))


def rates(side: str, cells: int) -> dict:
    """Measure the machine: matrix products a second in both precisions, bytes copied a second."""
    import time

    from terrazzo.models.estimate import matmul_rate

    block = np.zeros(2**27, dtype=np.uint8)
    start = time.perf_counter()
    block.copy()
    bandwidth = 2 * block.nbytes / (time.perf_counter() - start)
    best = {p: max(matmul_rate(p) for _ in range(5)) for p in ("float32", "bfloat16")}
    return {"float32": best["float32"], "bfloat16": best["bfloat16"], "bytes": bandwidth}


WORKERS = {
    "tokenize": tokenize,
    "encode_seq": lambda side, n: encode(side, n, "seq"),
    "encode_panel": lambda side, n: encode(side, n, "panel"),
    "encode_bf16": lambda side, n: encode(
        side, n, "seq", "bfloat16" if side == "ours" else "float32"
    ),
    "graph": graph,
    "se2": se2,
    "after_encoder": after_encoder,
    "rates": rates,
}


# ---------------------------------------------------------------------------------------------------------------- main
def measure(stage: str, cells: int, rounds: int, speed: dict) -> dict:
    """Measure one stage on both sides, in turn."""
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(common.in_fresh_process(__file__, stage, "ours", str(cells)))
        theirs.append(common.in_fresh_process(__file__, stage, "baseline", str(cells)))
    mine = min(ours, key=lambda r: r["seconds"])
    other = min(theirs, key=lambda r: r["seconds"])
    row = {
        "stage": stage,
        "cells": cells,
        "ours s": mine["seconds"],
        "baseline s": other["seconds"],
        "ratio": statistics.median(
            b["seconds"] / a["seconds"] for a, b in zip(ours, theirs, strict=True)
        ),
        "target": TARGETS[stage],
        "ours MB": mine["added_mb"],
        "baseline MB": other["added_mb"],
    }
    if "flops" in mine:
        limit = mine["flops"] / speed["bfloat16" if stage == "encode_bf16" else "float32"]
        row |= {"limit s": limit, "share of limit": limit / mine["seconds"]}
    elif "nbytes" in mine:
        limit = mine["nbytes"] / speed["bytes"]
        row |= {"limit s": limit, "share of limit": limit / mine["seconds"]}
    if "min_cosine" in mine:
        row["min cosine"] = mine["min_cosine"]
    print({k: common.show(v) for k, v in row.items()}, file=sys.stderr, flush=True)
    return row


def main() -> None:
    """Measure all stages and print them."""
    options = common.parser(__doc__ or "").parse_args()
    sizes, rounds = (QUICK, 1) if options.quick else (FULL, 2)
    speed = common.in_fresh_process(__file__, "rates", "ours", "0")
    heavy = (
        "encode_seq",
        "encode_panel",
        "encode_bf16",
        "se2",
        "after_encoder",
    )  # a minute or more a round
    rows = [measure(s, n, 1 if s in heavy else rounds, speed) for s, n in sizes.items()]
    by_stage = {row["stage"]: row for row in rows}
    memory = by_stage["se2"]["baseline MB"] / max(by_stage["se2"]["ours MB"], 1.0)
    alone = common.in_fresh_process(__file__, "graph", "baseline_sklearn", str(sizes["graph"]))[
        "seconds"
    ]
    result = {
        "tokenize": by_stage["tokenize"]["ratio"],
        "encode_seq": by_stage["encode_seq"]["ratio"],
        "encode_panel": by_stage["encode_panel"]["ratio"],
        "encode_bf16": by_stage["encode_bf16"]["ratio"],
        "graph": by_stage["graph"]["ratio"],
        "se2": by_stage["se2"]["ratio"],
        "se2_memory": memory,
        "after_encoder": by_stage["after_encoder"]["ratio"],
    }
    notes = [
        f"matrix-product rate {speed['float32'] / 1e9:.0f} GFLOP/s float32, {speed['bfloat16'] / 1e9:.0f} bfloat16; "
        f"memory {speed['bytes'] / 1e9:.1f} GB/s; both sides on all cores",
        f"graph against a baseline that only searches neighbors (no fuzzy weights): "
        f"ratio {alone / by_stage['graph']['ours s']:.3g}",
        *(f"MISSED: {k} {v:.3g}, target {TARGETS[k]}" for k, v in result.items() if v < TARGETS[k]),
        *(
            ["encode_bf16: this processor has no bfloat16 instructions (avx512_bf16, amx_bf16)"]
            if not {"avx512_bf16", "amx_bf16"} & set(common.machine()["has"])
            else []
        ),
        *(["quick sizes: ratios are not those of the full run"] if options.quick else []),
    ]
    common.finish(
        "Embedding: ours beside the published way of working", rows, notes, result, options.out
    )


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] == "--worker":
        stage, side, cells = sys.argv[2:5]
        print(json.dumps(WORKERS[stage](side, int(cells))))
    else:
        main()
