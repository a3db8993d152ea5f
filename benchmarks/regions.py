"""Regions of every annotated slice: ``tz.regions`` beside baselines and scanpy's Leiden, true and chosen number.

``python benchmarks/regions.py DATA [--runs 5] [--joint STUDY ...] [--cache FILE] [--quick] [--out FILE]``

A run takes five seeds of its own (0-4, 5-9 ...), so that runs are independent; what ``auto`` chooses by held-out counts
(its vectors, its number) does not depend on them. Labels are used for the score and the true number only. Baselines get
the same clustering as ``auto``: their first 20 principal components, ten voted partitions, the same smoothing; at the
chosen number they get the number that ``auto`` chose. Leiden: the default pipeline of scanpy (10,000 counts a cell,
log1p, 2,000 variable genes, 50 components, 15 neighbors), its resolution bisected for the true number, and 1 where none
is known. ``--cache`` keeps what is finished, a line a run.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parent))
import common

UNLABELLED = ("", "nan", "undetermined")
BASELINES = ("t1", "t2", "t3", "pca-nb1")
JOINT = ("dlpfc", "starmap_mpfc", "her2st")
SEEDS = 5
BASELINE_RUNS = 2  # their vectors have no seed
JOINT_RUNS = 2


def annotated(data: Path) -> Iterator[tuple[str, str, Any]]:
    """Yield study, name and slice of what has annotated regions."""
    import anndata

    for path in sorted(data.glob("*/*.h5ad")):
        adata = anndata.read_h5ad(path)
        if "region" in adata.obs:
            yield path.parent.name, path.stem, adata


def truth(adata: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels, and which of the cells have one."""
    column = adata.obs["region"]
    labels = column.astype(str).to_numpy()
    is_labelled = column.notna().to_numpy() & ~np.isin(labels, UNLABELLED)
    return labels, is_labelled


def n_labels(adatas: list) -> int:
    """Return the number of regions that were annotated."""
    names: set[str] = set()
    for adata in adatas:
        labels, is_labelled = truth(adata)
        names.update(labels[is_labelled])
    return len(names)


def agreement(adatas: list, found: list) -> dict[str, float]:
    """Return ARI and NMI: pooled over slices, and the mean of the slices' own."""
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    expected, given, alone = [], [], []
    for adata, labels in zip(adatas, found, strict=True):
        known, is_labelled = truth(adata)
        expected.append(known[is_labelled])
        given.append(labels[is_labelled])
        alone.append(adjusted_rand_score(expected[-1], given[-1]))
    pooled = np.concatenate(expected)
    predicted = np.concatenate(given)
    return {
        "ari": float(np.mean(alone)),
        "nmi": float(normalized_mutual_info_score(pooled, predicted)),
        "pooled": float(adjusted_rand_score(pooled, predicted)),
    }


def chosen(slices: list, k: int | None) -> dict[str, Any]:
    """Return what ``auto`` chooses, by the source's number among the candidates."""
    from terrazzo.answers.numbers import choose
    from terrazzo.answers.sources import Draw, candidates
    from terrazzo.expression import chosen_genes

    sources = candidates("region")
    genes = Draw(tuple(chosen_genes(slices, "autocorrelation")))
    result = choose(slices, sources, k, genes)
    return {"k": int(result.k), "source": sources.index(result.source)}


def voted(slices: list, adatas: list, source: Any, run: int, k: int) -> dict[str, Any]:
    """Return the scores of one run."""
    from terrazzo.answers.finding import Settings, find

    seeds = tuple(range(SEEDS * run, SEEDS * (run + 1)))
    found = find(slices, [source], Settings(k, seeds, bootstraps=0), False)
    return {
        **agreement(adatas, found.labels),
        "k": found.k,
        "source": source.name,
        "by itself": found.by_itself,
        "stability": found.similarity,
    }


def worth(slices: list, adatas: list, source: Any, k: int) -> dict[str, Any]:
    """Return how well reproducibility tells right from wrong cells (AUROC), and how much of both there is.

    A cell is right where its region's commonest label is its own.
    """
    from sklearn.metrics import roc_auc_score

    from terrazzo.answers.finding import Settings, find

    found = find(slices, [source], Settings(k, tuple(range(SEEDS)), bootstraps=0), False)
    right, sure = [], []
    for adata, labels, reproducibility in zip(
        adatas, found.labels, found.reproducibility, strict=True
    ):
        known, is_labelled = truth(adata)
        table = pd.crosstab(labels[is_labelled], known[is_labelled])
        commonest = table.idxmax(axis=1)
        right.append(commonest.loc[labels[is_labelled]].to_numpy() == known[is_labelled])
        sure.append(reproducibility[is_labelled])
    is_right = np.concatenate(right)
    values = np.concatenate(sure)
    auroc = float(roc_auc_score(is_right, values)) if 0 < is_right.mean() < 1 else float("nan")
    return {
        "auroc": auroc,
        "right": float(is_right.mean()),
        "reproducibility": float(values.mean()),
    }


def source_of(entry: str, slices: list) -> Any:
    """Return where the vectors of a baseline come from."""
    import terrazzo as tz
    from terrazzo.answers.sources import Embedded

    baseline = tz.Baseline(entry)
    baseline.fit(slices)
    return Embedded(baseline.title, lambda _, tissue: baseline.transform(tissue), refits=True)


def leiden(adata: Any, run: int, k: int | None) -> dict[str, Any]:
    """Return the scores of scanpy's default pipeline."""
    import scanpy as sc

    copy = adata.copy()
    sc.pp.normalize_total(copy, target_sum=1e4)
    sc.pp.log1p(copy)
    if copy.n_vars > 2000:
        sc.pp.highly_variable_genes(copy, n_top_genes=2000)
    sc.pp.pca(copy, n_comps=min(50, min(copy.shape) - 1))
    sc.pp.neighbors(copy)

    def cut(resolution: float) -> np.ndarray:
        sc.tl.leiden(
            copy,
            resolution=resolution,
            random_state=run,
            flavor="igraph",
            n_iterations=2,
            directed=False,
        )
        return copy.obs["leiden"].astype(int).to_numpy()

    labels = cut(1.0)
    low, high = 0.02, 3.0
    for _ in range(12 if k is not None else 0):
        n_found = int(labels.max()) + 1
        if n_found == k:
            break
        middle = (low + high) / 2
        labels = cut(middle)
        if labels.max() + 1 > k:
            high = middle
        else:
            low = middle
    return {**agreement([adata], [labels]), "k": int(labels.max()) + 1}


class Cache:
    """Finished runs, a line of JSON each."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.rows: dict[tuple, dict] = {}
        if path is not None and path.exists():
            for line in path.read_text().splitlines():
                row = json.loads(line)
                self.rows[tuple(row["what"])] = row

    def __call__(self, what: tuple, compute: Any) -> dict[str, Any]:
        """Return a finished run, or do it."""
        if what not in self.rows:
            start = time.process_time()
            row = {"what": what, **compute(), "seconds": time.process_time() - start}
            self.rows[what] = row
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a") as file:
                    file.write(json.dumps(row) + "\n")
            print(*what, {k: v for k, v in row.items() if k != "what"}, flush=True)
        return self.rows[what]


def runs_of(adatas: list, name: str, entries: tuple[str, ...], n_runs: int, cache: Cache) -> list:
    """Return a row for each entry and run of one slice, or of several together.

    At the chosen number a baseline is run once, with the first seeds.
    """
    import terrazzo as tz
    from terrazzo.answers.sources import candidates

    k = n_labels(adatas)
    slices = [tz.Slice.from_anndata(adata) for adata in adatas]
    at_true = cache((name, "choice", k), partial(chosen, slices, k))
    free = cache((name, "choice", "free"), partial(chosen, slices, None))
    best = candidates("region")[at_true["source"]]
    worth_it = cache((name, "worth", k), partial(worth, slices, adatas, best, k))
    rows = []
    for entry in entries:
        source = None if entry in ("auto", "leiden") else source_of(entry, slices)
        n_own = n_runs if source is None else min(n_runs, BASELINE_RUNS)
        for run in range(n_own):
            if entry == "leiden":
                first = cache((name, entry, run, k), partial(leiden, adatas[0], run, k))
                second = cache((name, entry, run, "free"), partial(leiden, adatas[0], run, None))
            elif entry == "auto":
                sources = candidates("region")
                of_true = sources[at_true["source"]]
                of_free = sources[free["source"]]
                first = cache(
                    (name, entry, run, k), partial(voted, slices, adatas, of_true, run, k)
                )
                key = (name, entry, run, "free")
                second = cache(key, partial(voted, slices, adatas, of_free, run, free["k"]))
            else:
                first = cache((name, entry, run, k), partial(voted, slices, adatas, source, run, k))
                key = (name, entry, 0, free["k"])
                second = cache(key, partial(voted, slices, adatas, source, 0, free["k"]))
            row = {"entry": entry, "run": run, "k": k, "true": first, "chosen": second}
            if entry == "auto":
                row["worth"] = worth_it
            rows.append(row)
    return rows


def row_of(study: str, name: str, entry: str, runs: list) -> dict[str, Any]:
    """Return a row of the table: means over runs."""
    of_entry = [row for row in runs if row["entry"] == entry]

    def mean(which: str, metric: str) -> float:
        return float(np.mean([row[which][metric] for row in of_entry]))

    numbers = sorted({str(row["chosen"]["k"]) for row in of_entry})
    return {
        "study": study,
        "slice": name,
        "entry": entry,
        "K": of_entry[0]["k"],
        "ARI": mean("true", "ari"),
        "sd": float(np.std([row["true"]["ari"] for row in of_entry])),
        "NMI": mean("true", "nmi"),
        "chosen K": " ".join(numbers),
        "ARI, chosen": mean("chosen", "ari"),
        "NMI, chosen": mean("chosen", "nmi"),
        "pooled ARI": mean("true", "pooled"),
        "AUROC": mean("worth", "auroc") if entry == "auto" else "",
        "reproducibility": mean("worth", "reproducibility") if entry == "auto" else "",
        "right": mean("worth", "right") if entry == "auto" else "",
    }


def summary(rows: list[dict], entries: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return the mean over studies of each entry, a study counting once."""
    table = pd.DataFrame([row for row in rows if row["slice"] != "all, jointly"])
    means = table.groupby(["entry", "study"])[["ARI", "NMI", "ARI, chosen", "NMI, chosen"]].mean()
    out = []
    for entry in entries:
        mean = means.loc[entry].mean()
        out.append({"study": "mean over studies", "slice": "", "entry": entry, **mean.to_dict()})
    return out


def main() -> None:
    """Score all slices and print the table."""
    parser = common.parser(__doc__ or "")
    parser.add_argument("data", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--joint", nargs="*", default=list(JOINT))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    entries = ("auto", *BASELINES, "leiden")
    n_runs = options.runs
    cache = Cache(options.cache)
    studies: dict[str, list] = {}
    for study, name, adata in annotated(options.data):
        studies.setdefault(study, []).append((name, adata))
    if options.quick:
        studies = {"st_mob": studies["st_mob"]}
        n_runs = 1
    rows = []
    for study, slices in studies.items():
        for name, adata in slices:
            runs = runs_of([adata], f"{study}/{name}", entries, n_runs, cache)
            rows += [row_of(study, name, entry, runs) for entry in entries]
    for study in options.joint:
        if study in studies:
            adatas = [adata for _, adata in studies[study]]
            n_joint = min(n_runs, JOINT_RUNS)
            runs = runs_of(adatas, f"{study}/jointly", ("auto",), n_joint, cache)
            rows.append(row_of(study, "all, jointly", "auto", runs))
    means = summary(rows, entries)
    result = {f"{row['entry']}_ari": row["ARI"] for row in means}
    result |= {f"{row['entry']}_chosen_ari": row["ARI, chosen"] for row in means}
    notes = [
        "AUROC: how well reproducibility tells the cells whose region's commonest label is theirs (right) from others",
        f"baselines: {BASELINE_RUNS} runs (their vectors have no seed), at the number that `auto` chose one",
        f"slices taken jointly: {JOINT_RUNS} runs",
        f"{n_runs} runs of {SEEDS} seeds; ARI of slices taken jointly is the mean of the slices' own, pooled ARI that "
        "of all cells together",
    ]
    title = "Regions of annotated slices, found without labels"
    common.finish(title, means + rows, notes, result, options.out)


if __name__ == "__main__":
    main()
