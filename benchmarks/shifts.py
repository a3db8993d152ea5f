"""Labels of one slice, scored on another as it is, with half of its genes, and with a tenth of its counts.

``python benchmarks/shifts.py DATA [--study dlpfc --labelled 151673 --test 151676 --label region] [--model MODEL...]``

A logistic regression is fitted on the vectors of the labelled slice as it is, and scored on the test slice. Baselines
are fitted on the labelled slice alone (``labelled``), or without labels on it and on the test slice as a setting has it
(``both``). ``--model``: checkpoints, best trained without this study; those of one title are seeds and are averaged.
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

BASELINES = (
    "z50",
    "t1",
    "t2",
    "t3",
    "t4",
    "t1-half",
    "t1-clean",
    "t3-clean",
    "t1-clean-z",
    "t3-clean-z",
)
AS_IT_IS = "as it is"
HALF_OF_GENES = "half of the genes"
TENTH_OF_COUNTS = "a tenth of the counts"
SETTINGS = (AS_IT_IS, HALF_OF_GENES, TENTH_OF_COUNTS)
DRAWS = 3
QUICK_CELLS = 400
UNLABELLED = ("", "nan", "undetermined")


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
    train: np.ndarray, known: np.ndarray, test: np.ndarray, expected: np.ndarray
) -> tuple[float, float]:
    """Return accuracy and macro-F1 of a logistic regression on vectors, standardized by those that are learned from."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(train)
    head = LogisticRegression(max_iter=500, C=0.1).fit(scaler.transform(train), known)
    predicted = head.predict(scaler.transform(test))
    accuracy = float((predicted == expected).mean())
    return accuracy, float(f1_score(expected, predicted, average="macro", zero_division=0))


def vectors(
    one: Any, other: Any, fitted: dict[str, Any], models: list[Any]
) -> Iterator[tuple[tuple[str, str], Any, Any]]:
    """Yield row, and vectors of the labelled and of the test slice."""
    from terrazzo.models.baselines import fit_baselines

    for model in models:
        both = [model.prepare(tissue).embed().vectors for tissue in (one, other)]
        yield (model.title, "not fitted"), *both
    for baseline in fitted.values():
        row = (baseline.title, "labelled")
        yield row, baseline.transform(one), baseline.transform(other)
    for baseline in fit_baselines(BASELINES, [one, other]).values():
        row = (baseline.title, "both")
        yield row, baseline.transform(one), baseline.transform(other)


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
    parser.add_argument("--labelled", default="151673")
    parser.add_argument("--test", default="151676")
    parser.add_argument("--label", default="region")
    parser.add_argument("--model", type=Path, nargs="+", default=[])
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    import terrazzo as tz
    from terrazzo.models.baselines import fit_baselines

    folder = options.data / options.study
    labelled = read(folder / f"{options.labelled}.h5ad", options.quick)
    test = read(folder / f"{options.test}.h5ad", options.quick)
    known, is_known = labels_of(labelled, options.label)
    expected, is_expected = labels_of(test, options.label)
    one = tz.Slice.from_anndata(labelled)
    fitted = fit_baselines(BASELINES, [one])
    models = [tz.load(path) for path in options.model]
    n_draws = 1 if options.quick else DRAWS
    scores: dict[tuple[str, str], dict[str, list[tuple[float, float]]]] = {}
    for setting in SETTINGS:
        for draw in range(1 if setting == AS_IT_IS else n_draws):
            other = tz.Slice.from_anndata(shifted(test, setting, draw))
            for row, train, found in vectors(one, other, fitted, models):
                score = probe(
                    train[is_known], known[is_known], found[is_expected], expected[is_expected]
                )
                scores.setdefault(row, {}).setdefault(setting, []).append(score)
                print(setting, draw, *row, *score, flush=True)
    rows = []
    result = {}
    for (title, fitted_on), by_setting in scores.items():
        row_of_table: dict[str, Any] = {"vectors": title, "fitted on": fitted_on}
        for setting, values in by_setting.items():
            accuracy, f1 = np.mean(values, axis=0)
            row_of_table[setting] = f"{accuracy:.3f}/{f1:.3f}"
            name = f"{title} {fitted_on} {setting}"
            result["".join(c if c.isalnum() else "_" for c in name)] = float(accuracy)
        rows.append(row_of_table)
    commonest = max(float((expected[is_expected] == name).mean()) for name in set(expected))
    title = f"{options.study}: labels of {options.labelled}, scored on {options.test}"
    notes = [
        f"accuracy / macro-F1, mean of {n_draws} draws of genes and of counts; the commonest label: {commonest:.3f}",
        "fitted on: the labelled slice, or it and the test slice as the setting has it (both), without labels",
    ]
    common.finish(title, rows, notes, result, options.out)


if __name__ == "__main__":
    main()
