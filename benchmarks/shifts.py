"""Labels of slices, scored on another one as it is, with half of its genes, and with a tenth of its counts.

``python benchmarks/shifts.py DATA [--study dlpfc --labelled 151673... --test 151676 --label region]``

A logistic regression is fitted on the vectors of the labelled slices as they are, and scored on the test slice.
Baselines are fitted on the labelled slices alone (``labelled``), or without labels on them and on the test slice as a
setting has it (``both``). ``--strength``: C of the regression, the inverse of its penalty. ``--model``: checkpoints,
best trained without this study; those of one title are seeds and are averaged. ``--baselines``: which.
``--quick``: one draw of genes and counts, the 400 cells nearest to the middle.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import common

from terrazzo.bench.entries import ALWAYS

BASELINES = tuple(name for name in ALWAYS if not name.startswith("pca"))
AS_IT_IS = "as it is"
HALF_OF_GENES = "half of the genes"
TENTH_OF_COUNTS = "a tenth of the counts"
SETTINGS = (AS_IT_IS, HALF_OF_GENES, TENTH_OF_COUNTS)
DRAWS = 3
QUICK_CELLS = 400
UNLABELLED = ("", "nan", "undetermined")

Scores = dict[
    tuple[str, str], dict[str, list[tuple[float, float]]]
]  # by row and setting, of every draw


def shifted(adata: Any, setting: str, seed: int) -> Any:
    """Return a slice as a setting has it."""
    from scipy import sparse

    from terrazzo.splitting import thin_counts

    rng = np.random.default_rng(seed)
    out = adata.copy()
    if setting == HALF_OF_GENES:
        n_kept = out.n_vars // 2
        columns = np.sort(rng.choice(out.n_vars, n_kept, replace=False))
        out = out[:, columns].copy()
    elif setting == TENTH_OF_COUNTS:
        out.X, _ = thin_counts(sparse.csr_matrix(out.X), 0.1, rng)
    return out


def labels_of(adata: Any, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Return labels, and which cells have one."""
    values = adata.obs[column]
    names = values.astype(str).to_numpy()
    return names, values.notna().to_numpy() & ~np.isin(names, UNLABELLED)


def probe(
    train: np.ndarray, known: np.ndarray, test: np.ndarray, expected: np.ndarray, strength: float
) -> tuple[float, float]:
    """Return accuracy and macro-F1 of a logistic regression on vectors, standardized by those that are learned from."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(train)
    head = LogisticRegression(max_iter=500, C=strength).fit(scaler.transform(train), known)
    predicted = head.predict(scaler.transform(test))
    accuracy = float((predicted == expected).mean())
    return accuracy, float(f1_score(expected, predicted, average="macro", zero_division=0))


def vectors(
    labelled: list[Any], test: Any, fitted: dict[str, Any], models: list[Any]
) -> Iterator[tuple[tuple[str, str], np.ndarray, np.ndarray]]:
    """Yield row, and vectors of the labelled slices and of the test slice."""
    from terrazzo.models.baselines import fit_baselines

    for model in models:
        found = [model.prepare(tissue).embed() for tissue in (*labelled, test)]
        columns = {"": slice(None)}
        for block, (start, stop) in found[-1].details.get("blocks", {}).items():
            columns[f", {block}"] = slice(start, stop)
        for block, part in columns.items():
            parts = [embedding.vectors[:, part] for embedding in found]
            yield (f"{model.title}{block}", "not fitted"), np.concatenate(parts[:-1]), parts[-1]
    refitted = fit_baselines(list(fitted), [*labelled, test])
    for fitted_on, baselines in (("labelled", fitted), ("both", refitted)):
        for baseline in baselines.values():
            parts = [baseline.transform(tissue) for tissue in (*labelled, test)]
            yield (baseline.title, fitted_on), np.concatenate(parts[:-1]), parts[-1]


def tabulate(scores: Scores) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Return the rows of the table, and the best accuracy in each setting."""
    rows = []
    best: dict[str, float] = {}
    for (title, fitted_on), by_setting in scores.items():
        row: dict[str, Any] = {"vectors": title, "fitted on": fitted_on}
        for setting, values in by_setting.items():
            accuracy, f1 = np.mean(values, axis=0)
            row[setting] = f"{accuracy:.3f}/{f1:.3f}"
            name = f"best_{setting}".replace(" ", "_")
            best[name] = max(best.get(name, 0.0), float(accuracy))
        rows.append(row)
    return rows, best


def read(path: Path, quick: bool) -> Any:
    """Return a slice, or with --quick the middle of it."""
    import anndata

    adata = anndata.read_h5ad(path)
    if not quick:
        return adata
    xy = adata.obsm["spatial"]
    distance = ((xy - xy.mean(axis=0)) ** 2).sum(axis=1)
    return adata[distance.argsort()[:QUICK_CELLS]].copy()


def main() -> None:
    """Score all rows in all settings."""
    parser = common.parser(__doc__ or "")
    parser.add_argument("data", type=Path)
    parser.add_argument("--study", default="dlpfc")
    parser.add_argument("--labelled", nargs="+", default=["151673"])
    parser.add_argument("--test", default="151676")
    parser.add_argument("--label", default="region")
    parser.add_argument("--strength", type=float, default=0.1)
    parser.add_argument("--baselines", nargs="+", default=BASELINES)
    parser.add_argument("--model", type=Path, nargs="+", default=[])
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    import terrazzo as tz
    from terrazzo.models.baselines import fit_baselines

    folder = options.data / options.study
    labelled = [read(folder / f"{name}.h5ad", options.quick) for name in options.labelled]
    test = read(folder / f"{options.test}.h5ad", options.quick)
    labels = [labels_of(adata, options.label) for adata in labelled]
    known = np.concatenate([names for names, _ in labels])
    is_known = np.concatenate([is_labelled for _, is_labelled in labels])
    expected, is_expected = labels_of(test, options.label)
    learned = [tz.Slice.from_anndata(adata) for adata in labelled]
    fitted = fit_baselines(options.baselines, learned)
    models = [tz.load(path) for path in options.model]
    n_draws = 1 if options.quick else DRAWS
    scores: Scores = {}
    for setting in SETTINGS:
        for draw in range(1 if setting == AS_IT_IS else n_draws):
            other = tz.Slice.from_anndata(shifted(test, setting, draw))
            for row, train, found in vectors(learned, other, fitted, models):
                score = probe(
                    train[is_known],
                    known[is_known],
                    found[is_expected],
                    expected[is_expected],
                    options.strength,
                )
                scores.setdefault(row, {}).setdefault(setting, []).append(score)
                print(setting, draw, *row, *score, flush=True)
    rows, result = tabulate(scores)
    commonest = max(float((expected[is_expected] == name).mean()) for name in set(expected))
    title = f"{options.study}: labels of {', '.join(options.labelled)}, scored on {options.test}"
    notes = [
        f"accuracy / macro-F1 of a logistic regression (C {options.strength}), mean of {n_draws} draws of genes and of "
        f"counts; the commonest label: {commonest:.3f}",
        "fitted on: the labelled slices, or them and the test slice as the setting has it (both), without labels",
    ]
    common.finish(title, rows, notes, result, options.out)


if __name__ == "__main__":
    main()
