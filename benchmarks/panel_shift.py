"""Labels from one DLPFC slice to another with fewer genes and counts: common genes and copies, or neither.

``python benchmarks/panel_shift.py DATA [--quick] [--out FILE]``; DATA holds ``dlpfc/151673.h5ad`` and ``151676.h5ad``.
T1 and T3 are fitted on 151673 without labels; logistic regression from 151673 to 151676, whose genes and counts are
drawn at random, three times. ``tz.annotate`` between the same slices.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anndata
import numpy as np
from anndata import AnnData

sys.path.insert(0, str(Path(__file__).parent))
import common

from terrazzo import tasks
from terrazzo.answers import annotating as answers
from terrazzo.errors import TerrazzoWarning
from terrazzo.models.baselines import Baseline, fit_baselines
from terrazzo.models.shift import Shift, compare
from terrazzo.slices import Slice
from terrazzo.splitting import thin_counts
from terrazzo.tasks import metrics
from terrazzo.tasks.labels import UNSCORED, column
from terrazzo.tasks.targets import read_target
from terrazzo.tasks.transfer import Embedded, Embedder, transfer

LABELED = "151673"
TARGET = "151676"
BASELINES = ("t1", "t3")
SETTINGS = (("half the genes", 0.5, 1.0), ("10 % of the counts", 1.0, 0.1), ("both", 0.5, 0.1))
WAYS: tuple[tuple[str, Any, bool], ...] = (
    ("neither", False, False),
    ("copies", False, True),
    ("common genes", True, False),
    ("both", True, True),
    ("as terrazzo chooses", "auto", True),
)
SHARES = (1.0, 0.9, 0.8, 0.65, 0.5, 0.35, 0.2)  # of genes, or of counts: from where on it matters
DRAWS = 3


class Cached:
    """T1 and T3, fitted and applied once for each list of slices."""

    def __init__(self) -> None:
        self.fitted: dict[tuple[int, ...], dict[str, Baseline]] = {}
        self.vectors: dict[tuple[int, int], Any] = {}
        self.alive: list[Any] = []  # so that no number is used twice

    def embedder(self, name: str) -> Embedder:
        """Return a baseline."""

        def fit(slices: Sequence[Slice]) -> Callable[[Slice], Embedded]:
            key = tuple(map(id, slices))
            if key not in self.fitted:
                self.alive.append(slices)
                self.fitted[key] = fit_baselines(BASELINES, slices)
            baseline = self.fitted[key][name]

            def embed(tissue: Slice) -> Embedded:
                place = (id(baseline), id(tissue))
                if place not in self.vectors:
                    self.alive.append(tissue)
                    self.vectors[place] = baseline.transform(tissue)
                return Embedded(self.vectors[place])

            return embed

        return fit


def degraded(adata: AnnData, genes: float, counts: float, draw: int) -> AnnData:
    """Return a slice with some of its genes and counts."""
    rng = np.random.default_rng(draw)
    n_genes = round(genes * adata.n_vars)
    columns = np.sort(rng.choice(adata.n_vars, n_genes, replace=False))
    out = adata[:, columns].copy()
    out.X, _ = thin_counts(out.X.tocsr(), counts, rng)
    return out


def scores(
    cached: Cached, name: str, labeled: AnnData, target: AnnData, shift: Shift, way: tuple
) -> tuple[float, float, bool]:
    """Return accuracy and macro-F1 of one way, and whether common genes were used."""
    _, common_genes, copies = way
    learned = read_target(labeled, "region", None, None, 0.01)
    moved = transfer(
        cached.embedder(name), shift, learned, common_genes=common_genes, copies=copies
    )
    result = tasks.probe([labeled], test=target, model=moved, label="region", head="linear", runs=1)
    return result.score("accuracy"), result.score("macro_f1"), moved.record["common_genes"]


def annotated(labeled: AnnData, target: AnnData, way: tuple) -> tuple[float, float, bool]:
    """Return the same of ``tz.annotate``, every spot with a label."""
    _, common_genes, copies = way
    options = {"common_genes": common_genes, "copies": copies, "threshold": 0}
    answers.annotate(target, labeled.copy(), "region", **options)
    true = column(target, "region")
    is_known = true.notna() & ~true.astype(str).str.lower().isin(UNSCORED)
    record = json.loads(target.uns["terrazzo"]["terrazzo_label"]["transfer"])
    found = metrics.classification(
        true[is_known].astype(str).to_numpy(),
        target.obs["terrazzo_label"][is_known].astype(str).to_numpy(),
    )
    return found["accuracy"], found["macro_f1"], record["common_genes"]


def rows_of(
    cached: Cached, labeled: AnnData, tissue: Slice, full: AnnData, setting: tuple, ways: tuple
) -> list[dict[str, Any]]:
    """Return a row for each baseline and way: means and sd over the draws."""
    label, genes, counts = setting
    collected: dict[tuple[str, str], list[tuple[float, float, bool]]] = {}
    for draw in range(1 if genes == counts == 1 else DRAWS):
        target = degraded(full, genes, counts, draw)
        shift = compare([tissue], [Slice.from_anndata(target)])
        for name in BASELINES:
            for way in ways:
                found = scores(cached, name, labeled, target, shift, way)
                collected.setdefault((name.upper(), way[0]), []).append(found)
        for way in ways if len(ways) > 1 else ():
            found = annotated(labeled, target.copy(), way)
            collected.setdefault(("annotate", way[0]), []).append(found)
    rows = []
    for (name, way), values in collected.items():
        accuracy = np.array([value[0] for value in values])
        row = {
            "target": label,
            "vectors": name,
            "way": way,
            "accuracy": float(accuracy.mean()),
            "sd": float(accuracy.std()),
            "macro-F1": float(np.mean([value[1] for value in values])),
            "common genes used": f"{sum(value[2] for value in values)} of {len(values)}",
        }
        rows.append(row)
    return rows


def main() -> None:
    """Measure and print the table."""
    parser = common.parser(__doc__ or "")
    parser.add_argument("data", type=Path)
    options = parser.parse_args()
    labeled = anndata.read_h5ad(options.data / "dlpfc" / f"{LABELED}.h5ad")
    full = anndata.read_h5ad(options.data / "dlpfc" / f"{TARGET}.h5ad")
    warnings.simplefilter("ignore", TerrazzoWarning)
    tissue = Slice.from_anndata(labeled)
    cached = Cached()
    rows = []
    settings = SETTINGS[-1:] if options.quick else SETTINGS
    for setting in settings:
        rows += rows_of(cached, labeled, tissue, full, setting, WAYS)
    if not options.quick:
        for share in SHARES:
            one = (f"{share:.0%} of the genes", share, 1.0)
            rows += rows_of(cached, labeled, tissue, full, one, WAYS[:1])
        for share in SHARES[1:]:
            one = (f"{share:.0%} of the counts", 1.0, share)
            rows += rows_of(cached, labeled, tissue, full, one, WAYS[:1])
    result = {}
    for row in rows:
        if row["target"] == "both":
            result[f"{row['vectors']}_{row['way'].replace(' ', '_')}"] = row["accuracy"]
    notes = [
        f"regions of {LABELED}, logistic regression, scored on {TARGET}; three draws of genes and counts; sd over them",
        "neither: the labeled slice as it is, embedded from all its genes; common genes: both slices cut to the shared "
        "ones before the baseline is fitted and applied; copies: the probe also learns from the labeled slice cut to "
        "the target's genes, thinned to its depth, and both",
        "as terrazzo chooses: common genes where they win on held-out blocks of the labeled slice, with copies; no "
        "label of the target is read before the score",
        "annotate: tz.annotate, which takes the genes in common in every row; common genes: totals too are over these",
        "rows of a share of genes or counts, neither way: where the thresholds of the warning come from",
    ]
    title = f"Other panels and depth: DLPFC {LABELED} to {TARGET}"
    common.finish(title, rows, notes, result, options.out)


if __name__ == "__main__":
    main()
