"""How ``terrazzo regions`` scales: from a file of single cells to the folder with report, time and memory by stage.

Simulated Xenium cells, 300 genes. ``python benchmarks/answers_scale.py [--quick] [--cells N ...] [--no-report]
[--task types] [--out FILE]``
"""

from __future__ import annotations

import json
import re
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import common

CELLS, QUICK_CELLS = (150_000,), (2_000,)

N_GENES = 300

RESET_PEAK = Path("/proc/self/clear_refs")

STATUS = Path("/proc/self/status")


def processor_seconds() -> float:
    """Return the processor time of this process so far, all threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def stage_peak_mb() -> float:
    """Return the largest resident size since the last call, in MB (Linux; elsewhere since the start)."""
    if not RESET_PEAK.exists():
        return common.peak_mb()
    match = re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text())
    RESET_PEAK.write_text("5")
    return int(match.group(1)) / 1024 if match else common.peak_mb()


class Stages:
    """Wall time, processor time and peak memory of each stage, in the order of their ends."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.depth = 0
        self.mark()

    def mark(self) -> None:
        """Begin to measure what follows."""
        self.seconds = time.perf_counter()
        self.processor = processor_seconds()

    def end(self, name: str) -> None:
        """Note what was used since the last mark."""
        row = {
            "stage": name,
            "seconds": time.perf_counter() - self.seconds,
            "processor s": processor_seconds() - self.processor,
            "peak MB": stage_peak_mb(),
        }
        self.rows.append(row)
        self.mark()

    def watch(self) -> None:
        """Measure the outermost stages of the library's progress bars, and what is between them."""
        from terrazzo.progress import Progress

        whole = Progress.stage
        stages = self

        @contextmanager
        def stage(bars: Progress, name: str, total: int | None, unit: str = "cells") -> Iterator:
            if stages.depth == 0:
                stages.end("between")
            stages.depth += 1
            try:
                with whole(bars, name, total, unit) as advance:
                    yield advance
            finally:
                stages.depth -= 1
                if stages.depth == 0:
                    stages.end(name)

        Progress.stage = stage  # type: ignore[method-assign]


def run(cells: int, task: str, report: bool) -> dict[str, Any]:
    """Find regions or types of a file in this process."""
    from terrazzo import simulate
    from terrazzo.answers import files

    find = {"regions": files.regions_files, "types": files.types_files}[task]
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        tiny = Path(folder) / "tiny.h5ad"
        simulate.tissue(400, n_genes=N_GENES).write_h5ad(tiny)
        find([tiny], Path(folder) / "tiny", report=report, n_seeds=1, bootstraps=1, k=3)
        source = Path(folder) / "tissue.h5ad"
        common.in_fresh_process(__file__, "simulate", str(cells), str(source))
        stages = Stages()
        stages.watch()
        stage_peak_mb()
        start = time.perf_counter()
        processor = processor_seconds()
        written = find([source], Path(folder) / "out", report=report, progress=False)
        stages.end("between")
        seconds = time.perf_counter() - start
        size = sum(path.stat().st_size for path in written.files if path.is_file())
        ari = _ari(written.answer, task)
    return {
        "cells": cells,
        "task": task,
        "report": report,
        "seconds": seconds,
        "processor s": processor_seconds() - processor,
        "peak MB": max(row["peak MB"] for row in stages.rows),
        "k": written.answer.k,
        "ARI": ari,
        "vectors": written.answer.vectors,
        "written MB": size / 2**20,
        "stages": _merged(stages.rows),
    }


def _ari(answer: Any, task: str) -> float:
    """Return the adjusted Rand index against the simulator's truth."""
    from sklearn.metrics import adjusted_rand_score

    obs = answer.slices[0].obs
    truth = obs["region" if task == "regions" else "cell_type"]
    return float(adjusted_rand_score(truth, obs[answer.key]))


def _merged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row for each name: what is between stages is taken together."""
    merged: dict[str, dict[str, Any]] = {}
    for row in rows:
        before = merged.setdefault(row["stage"], {**row, "seconds": 0.0, "processor s": 0.0})
        before["seconds"] += row["seconds"]
        before["processor s"] += row["processor s"]
        before["peak MB"] = max(before["peak MB"], row["peak MB"])
    return list(merged.values())


def write_tissue(cells: int, path: str) -> dict[str, Any]:
    """Simulate a slice in this process, and write it."""
    from terrazzo import simulate

    adata = simulate.tissue(cells, n_genes=N_GENES, technology="Xenium")
    adata.write_h5ad(path)
    return {"cells": cells}


def main() -> None:
    """Measure each number of cells in a process of its own."""
    parser = common.parser(__doc__ or "")
    parser.add_argument("--cells", type=int, nargs="+", help="numbers of cells")
    parser.add_argument("--no-report", action="store_true", help="leave the report out")
    parser.add_argument("--task", choices=("regions", "types"), default="regions")
    options = parser.parse_args()
    numbers = options.cells or (QUICK_CELLS if options.quick else CELLS)
    rows = []
    for cells in numbers:
        report = "" if options.no_report else "report"
        done = common.in_fresh_process(__file__, "run", str(cells), options.task, report)
        stages = done.pop("stages")
        rows.append({"stage": "all", **done})
        for stage in stages:
            rows.append({"cells": cells, "task": options.task, **stage})
    last = [row for row in rows if row["stage"] == "all"][-1]
    result = {
        "cells": float(last["cells"]),
        "minutes": last["seconds"] / 60,
        "processor_minutes": last["processor s"] / 60,
        "peak_gb": last["peak MB"] / 1024,
    }
    notes = [
        "from the file to the finished folder; the simulation and the loading of libraries are left out",
        "seconds: by the clock, other processes included; processor s: of this process alone, all threads",
        "peak MB: resident size of the process, libraries included; 'between': all that has no stage of its own",
    ]
    common.finish("Regions from file to report", rows, notes, result, options.out)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        if sys.argv[2] == "simulate":
            print(json.dumps(write_tissue(int(sys.argv[3]), sys.argv[4])))
        else:
            print(json.dumps(run(int(sys.argv[3]), sys.argv[4], bool(sys.argv[5]))))
    else:
        main()
