"""``terrazzo regions`` beside novae, trained from scratch on the same slice: lines of code, time, memory, ARI.

``python benchmarks/regions_novae.py DATA --python PYTHON [--longest SECONDS] [--slices FOLDER/NAME ...] [--quick]
[--out FILE]``

novae needs an environment of its own (``pip install novae``), whose Python ``--python`` names. It is run twice by its
documented steps (``spatial_neighbors`` of coordinates in micrometers, up to 80 um between cells and along the array of
Visium, ``Novae``, ``fit``, ``compute_representations``, ``assign_domains``): to its own early stopping or for
``--longest`` seconds of processor time, and within the processor time that ``terrazzo regions`` took for the same slice
(training is stopped at that time). Both get the annotated number of regions, one thread, one seed. The strength of
novae are its published weights, which cannot be had here: this compares what both do without any.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

SLICES = (
    "dlpfc/151673",
    "starmap_mpfc/BZ5",
    "osmfish_ssctx/SScortex",
    "xenium_breast_idc/IDC_subregion",
)
UNLABELLED = ("", "nan", "undetermined")
LINES = {"terrazzo regions": 1, "novae": 5}
LONGEST_EDGE = 80  # um, as in novae's first page
NEAREST = 15.0  # um between neighboring cells, where a file does not say what its unit is


def worker(path: str, technology: str, k: int, seconds: float) -> dict[str, Any]:
    """Train novae on a slice in its own environment, and return what it took and the domains."""
    import anndata
    import novae
    import torch
    from lightning.pytorch.callbacks import Callback

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    adata = anndata.read_h5ad(path)

    class Stop(Callback):
        def on_train_batch_end(self, trainer: Any, *arguments: Any) -> None:
            if seconds and time.process_time() > seconds:
                trainer.should_stop = True

    if technology == "visium":
        novae.spatial_neighbors(adata, technology="visium")
    else:
        novae.spatial_neighbors(adata, radius=LONGEST_EDGE)
    model = novae.Novae(adata)
    model.fit(callbacks=[Stop()], accelerator="cpu", num_workers=0, enable_progress_bar=False)
    model.compute_representations(accelerator="cpu", num_workers=0)
    # where no level of its tree has so many domains, the nearest number that one has
    for n_domains in sorted(range(1, 40), key=lambda number: abs(number - k)):
        try:
            key = model.assign_domains(n_domains=n_domains)
        except ValueError:
            continue
        return {"labels": adata.obs[key].astype(str).tolist()}
    raise SystemExit("novae found no domains")


def run(command: list[str]) -> dict[str, Any]:
    """Run a command with one thread; return its output, seconds, processor seconds and peak memory."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=output, stderr=errors, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - start
        output.seek(0)
        errors.seek(0)
        if process.returncode:
            raise SystemExit(f"{' '.join(command[:4])} failed:\n{errors.read()[-3000:]}")
        text = output.read()
    return {
        "text": text,
        "seconds": seconds,
        "processor seconds": usage.ru_utime + usage.ru_stime,
        "peak MB": usage.ru_maxrss / 1024,
    }


def score(path: Path, labels: list[str]) -> float:
    """Return the ARI of labels on the annotated cells."""
    import anndata
    import numpy as np
    from sklearn.metrics import adjusted_rand_score

    column = anndata.read_h5ad(path, backed="r").obs["region"]
    known = column.astype(str).to_numpy()
    is_labelled = column.notna().to_numpy() & ~np.isin(known, UNLABELLED)
    return float(adjusted_rand_score(known[is_labelled], np.array(labels)[is_labelled]))


def n_regions(path: Path) -> int:
    """Return the annotated number of regions."""
    import anndata

    names = anndata.read_h5ad(path, backed="r").obs["region"].dropna().astype(str)
    return len(set(names) - set(UNLABELLED))


def in_micrometers(path: Path, out: Path) -> str:
    """Write the slice with coordinates in micrometers, as novae takes them, and return its technology."""
    import anndata

    import terrazzo as tz

    tissue = tz.read(path)
    adata = anndata.read_h5ad(path)
    is_known = (
        tissue.unit == "um" or tissue.spacing < NEAREST
    )  # Xenium's file has micrometers without saying so
    scale = 1.0 if is_known else NEAREST / tissue.spacing
    adata.obsm["spatial"] = tissue.coords * scale
    adata.write_h5ad(out)
    return str(tissue.technology or "").lower()


def rows_of(path: Path, python: str, longest: float) -> list[dict[str, Any]]:
    """Return the rows of one slice."""
    import anndata

    k = n_regions(path)
    name = f"{path.parent.name}/{path.stem}"
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "terrazzo", "regions", str(path), "-k", str(k)]
        ours = run([*command, "--out", folder])
        written = anndata.read_h5ad(Path(folder) / path.name, backed="r")
        labels = written.obs["terrazzo_region"].astype(str).tolist()
    runs = [("terrazzo regions", ours, labels)]
    budget = ours["processor seconds"]
    here = str(Path(__file__).resolve())
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder) / path.name
        technology = in_micrometers(path, given)
        for title, seconds in (
            ("novae, same processor time", budget),
            ("novae, to its end", longest),
        ):
            done = run([python, here, "--worker", str(given), technology, str(k), str(seconds)])
            result = json.loads(done["text"].strip().splitlines()[-1])
            runs.append((title, done, result["labels"]))
    for title, done, found in runs:
        rows.append(
            {
                "slice": name,
                "what": title,
                "lines of code": LINES[title.partition(",")[0]],
                "K": k,
                "found": len(set(found) - {"nan"}),
                "ARI": score(path, found),
                "seconds": done["seconds"],
                "processor seconds": done["processor seconds"],
                "peak MB": done["peak MB"],
            }
        )
    return rows


def main() -> None:
    """Run both on every slice."""
    import common

    parser = common.parser(__doc__ or "")
    parser.add_argument("data", type=Path)
    parser.add_argument("--python", required=True)
    parser.add_argument("--longest", type=float, default=1200, metavar="SECONDS")
    parser.add_argument("--slices", nargs="+", default=list(SLICES))
    options = parser.parse_args()
    names = options.slices[1:2] if options.quick else options.slices
    rows = []
    for name in names:
        rows += rows_of(options.data / f"{name}.h5ad", options.python, options.longest)
        print(*rows[-3:], sep="\n", flush=True)
    result = {}
    for title in ("terrazzo regions", "novae, same processor time", "novae, to its end"):
        some = [row["ARI"] for row in rows if row["what"] == title]
        result[title.replace(", ", "_").replace(" ", "_")] = sum(some) / len(some)
    notes = [
        f"novae gets micrometers; where a file does not tell them, neighbors are taken to lie {NEAREST:g} um apart",
        "`terrazzo regions` writes slices, markers, shares, figures and a report in that time; novae labels only",
        "novae is trained from scratch: its published weights, which are its strength, cannot be had here",
    ]
    common.finish("Regions beside novae, without weights", rows, notes, result, options.out)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        outcome = worker(sys.argv[2], sys.argv[3], int(sys.argv[4]), float(sys.argv[5]))
        print(json.dumps(outcome))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
    else:
        main()
