"""What the benchmark scripts share: workers in fresh processes, peak memory, and the results file."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("numpy", "scipy", "torch", "transformers", "scanpy", "scikit-learn", "igraph", "numba")


def parser(description: str) -> argparse.ArgumentParser:
    """Return the options that every benchmark takes."""
    out = argparse.ArgumentParser(description=description)
    out.add_argument(
        "--quick", action="store_true", help="the same table on small sizes, under 50 s on 2 cores"
    )
    out.add_argument("--out", type=Path, help="write FILE.json and FILE.md")
    return out


def peak_mb() -> float:
    """Return the largest resident size of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def timed(run: Callable[[], Any], warm_up: Callable[[], Any] | None = None) -> dict[str, float]:
    """Time one call after a warm-up on less; memory is what the call added to the process's peak."""
    if warm_up is not None:
        warm_up()
    before = peak_mb()
    start = time.perf_counter()
    run()
    return {
        "seconds": time.perf_counter() - start,
        "added_mb": peak_mb() - before,
        "peak_mb": peak_mb(),
    }


def in_fresh_process(script: str, *arguments: str) -> dict[str, Any]:
    """Run ``python script --worker ARGUMENTS`` and return the JSON of its last line."""
    command = [sys.executable, script, "--worker", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def machine() -> dict[str, Any]:
    """Describe the machine: processor, instruction sets that matter, cores, memory, versions."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    name = next(
        (line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")),
        "?",
    )
    flags = next(
        (line.split(":")[1].split() for line in text.splitlines() if line.startswith("flags")), []
    )
    return {
        "processor": name or platform.processor(),
        "cores": os.cpu_count(),
        "has": [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f in flags],
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def without_home(argument: str) -> str:
    """Keep a file's own name only: where it lies on this machine is nobody's business."""
    return Path(argument).name if Path(argument).is_absolute() else argument


def markdown(rows: list[dict[str, Any]]) -> str:
    """Render rows of one shape as a table."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(show(row.get(c, "")) for c in columns) + " |" for row in rows]
    return "\n".join(lines)


def show(value: Any) -> str:
    """Round numbers for people."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def finish(
    title: str,
    rows: list[dict[str, Any]],
    notes: list[str],
    result: dict[str, float],
    out: Path | None,
) -> None:
    """Print the table and the result line; write both, with command, date and machine, where asked."""
    table = markdown(rows)
    line = "result: " + " ".join(f"{k}={v:.3g}" for k, v in result.items())
    print(table, *(f"- {n}" for n in notes), line, sep="\n")
    if out is None:
        return
    about = {
        "command": " ".join(
            ["python", f"benchmarks/{Path(sys.argv[0]).name}", *map(without_home, sys.argv[1:])]
        ),
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
    }
    base = out.with_suffix("")
    base.parent.mkdir(parents=True, exist_ok=True)
    data = {"title": title, **about, "rows": rows, "notes": notes, "result": result}
    base.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n")
    head = "\n".join(f"- {k}: {v}" for k, v in about.items())
    body = "\n".join(f"- {n}" for n in notes)
    base.with_suffix(".md").write_text(f"# {title}\n\n{head}\n\n{table}\n\n{body}\n\n`{line}`\n")
