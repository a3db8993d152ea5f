"""Embed every real slice below a folder through the command line: cells, coverage, time, memory, finite vectors.

``python benchmarks/real.py DATA --model CHECKPOINT [--quick] [--out FILE]``; ``terrazzo convert`` makes a checkpoint.
``--quick`` takes the smallest slice of each folder.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import common


def embed(source: Path, model: Path, out: Path) -> dict:
    """Run ``terrazzo embed`` in a process of its own and check what it wrote."""
    import anndata

    start = time.perf_counter()
    command = [
        sys.executable,
        "-m",
        "terrazzo",
        "embed",
        str(source),
        "--model",
        str(model),
        "--out",
        str(out),
    ]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said)
        _, status, usage = os.wait4(
            process.pid, 0
        )  # this child's own peak memory, not the largest of all
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        errors = said.read()
    seconds = time.perf_counter() - start
    row = {"slice": f"{source.parent.name}/{source.stem}", "exit": process.returncode}
    if process.returncode:
        return row | {"error": errors.strip()[-200:]}
    written = anndata.read_h5ad(out / f"{source.stem}.h5ad")
    given = anndata.read_h5ad(source)
    record = written.uns["terrazzo"]["X_stofm"]
    coverage, details = json.loads(record["coverage"]), json.loads(record["details"])
    vectors = written.obsm["X_stofm"]
    return row | {
        "cells": written.n_obs,
        "same rows": bool((written.obs_names == given.obs_names).all()),
        "finite": bool(np.isfinite(vectors).all()),
        "genes matched": f"{coverage['n_matched']}/{coverage['n_genes']}",
        "counts covered": coverage["share_counts"],
        "unit": record["unit"],
        "empty": int(record["n_empty"]),
        "virtual cells": details["n_virtual_cells"],
        "sub-slices": details["n_subslices"],
        "seconds": seconds,
        "peak MB": usage.ru_maxrss / 1024,
    }


def main() -> None:
    """Embed all slices and print the table."""
    parser = common.parser(__doc__ or "")
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    options = parser.parse_args()
    sources = sorted(options.data.glob("*/*.h5ad"))
    if options.quick:
        folders = sorted({s.parent for s in sources})
        sources = [min(f.glob("*.h5ad"), key=lambda p: p.stat().st_size) for f in folders][:6]
    with tempfile.TemporaryDirectory() as out:
        rows = [embed(source, options.model, Path(out)) for source in sources]
    good = [r for r in rows if r["exit"] == 0 and r["finite"] and r["same rows"]]
    result = {
        "slices": float(len(rows)),
        "done": float(len(good)),
        "cells": float(sum(r["cells"] for r in good)),
        "least_counts_covered": min(r["counts covered"] for r in good),
    }
    notes = [
        "seconds and memory include the start of Python (about 5 s), reading and writing",
    ]
    common.finish("Every real slice through `terrazzo embed`", rows, notes, result, options.out)
    if len(good) < len(rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
