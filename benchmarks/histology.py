"""Expression from histology on patients that nothing was learned from: EfficientNet-Lite, colors and the gene mean.

``python benchmarks/histology.py DATA [--cache FOLDER] [--out FILE]``

``DATA/her2st``: A1, B4, C2, C3, C4, of three patients; A2 is left out, as in the table st-align-2, for its picture is
two spots off. A patient's slices are scored by ridge regressions that learned from the two others'. Error: squared, of
log1p of counts scaled to 10,000, mean over spots and genes: those that the table names and every training slice has,
and the 50 that vary most within the training slices. The gene mean is that of the training spots.

Part one: what the library does, for each model. Part two: EfficientNet-Lite0 with other rules that choose the penalty.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import common

SLICES = ("A1", "B4", "C2", "C3", "C4")
READERS = ("efficientnet-lite0-own", "efficientnet-lite0", "colors-own", "colors", "random-own")
N_VARIABLE = 50
RULES = {
    "worst ratio of a held-out patient (the library's)": "worst",
    "sum over held-out patients": "sum",
    "mean ratio of held-out patients": "mean",
    "one tenth of random training spots (before)": "random",
    "worst ratio, the constant left out": "no constant",
}


def read(data: Path, reader: str, cache: Path | None) -> dict:
    """Return the slices with the vectors of a model that reads histology."""
    from terrazzo.systems.stalign.image_baselines import image_model

    model = image_model(reader, cache=cache)
    return {name: model.read(data / "her2st" / f"{name}.h5ad")[0] for name in SLICES}


def learned_genes(slices: dict, training: list[str], genes: str):
    """Return what is learned from some slices: the named genes that all of them have, or a number of variable ones."""
    import terrazzo as tz
    from terrazzo.bench import protocols

    if genes == "variable":
        return N_VARIABLE
    named = protocols.load("st-align-2").gene_names
    measured = [set(tz.tasks.measured(slices[name], named)) for name in training]
    return [gene for gene in named if all(gene in some for some in measured)]


def score(slices: dict, test: str, genes: str) -> dict:
    """Return the scores of one slice, as the library has them, and what was chosen."""
    import terrazzo as tz

    training = [name for name in SLICES if name[0] != test[0]]
    result = tz.tasks.image_to_gene(
        [slices[name] for name in training],
        test=slices[test],
        use_rep="X_image",
        genes=learned_genes(slices, training, genes),
        donors=[name[0] for name in training],
        names=[test],
        runs=1,
        progress=False,
    )
    whole = result.metrics[result.metrics["part"] == ""]
    found = dict(zip(whole["metric"], whole["value"], strict=True))
    chosen = [note for note in result.notes if "held-out" in note]
    found["chosen"] = "gene mean" if "no ridge" in chosen[-1] else chosen[-1].split(" a column")[0]
    return found


def first_part(data: Path, cache: Path | None) -> list[dict]:
    """Return a row for each model, slice and set of genes."""
    rows = []
    for reader in READERS:
        slices = read(data, reader, cache)
        for genes in ("named", "variable"):
            for test in SLICES:
                found = score(slices, test, genes)
                rows.append(
                    {
                        "model": reader,
                        "genes": genes,
                        "slice": test,
                        "MSE": round(found["mse"], 4),
                        "gene mean": round(found["mse_mean"], 4),
                        "difference": round(found["mse"] - found["mse_mean"], 4),
                        "level": round(found["mse_level"], 3),
                        "level of the gene mean": round(found["mse_level_mean"], 3),
                        "pattern": round(found["mse_pattern"], 3),
                        "pattern of the gene mean": round(found["mse_pattern_mean"], 3),
                        "Pearson": round(found["pearson"], 3),
                        "chosen": found["chosen"].rpartition(": ")[2],
                    }
                )
    return rows


def arrays(slices: dict, names: list[str], genes: list[str]):
    """Return vectors, expression and patients of some slices, stacked."""
    from terrazzo.expression import expression
    from terrazzo.slices.panel import Panel

    x = np.concatenate([np.asarray(slices[n].obsm["X_image"], dtype=float) for n in names])
    y = np.concatenate([expression(Panel.read(slices[n]), genes).to_numpy(float) for n in names])
    patients = np.repeat([ord(n[0]) for n in names], [slices[n].n_obs for n in names])
    known = np.isfinite(y).all(axis=1)
    return x[known], y[known], patients[known]


def candidates(x, y, penalties) -> list:
    """Return weights and intercept of the constant and of each penalty."""
    from terrazzo.tasks.penalty import ridge_weights

    center = x.mean(axis=0)
    mean = y.mean(axis=0)
    weights = [np.zeros((x.shape[1], y.shape[1])), *ridge_weights(x - center, y - mean, penalties)]
    return [(weight, mean - center @ weight) for weight in weights]


def errors(models: list, x, y):
    """Return the mean squared error of each model."""
    return np.array([np.mean((x @ weight + bias - y) ** 2) for weight, bias in models])


def second_part(slices: dict) -> list[dict]:
    """Return a row for each rule that chooses a penalty, from differences to the gene mean."""
    from terrazzo.slices.panel import Panel
    from terrazzo.tasks.image_to_gene import choose_genes
    from terrazzo.tasks.penalty import PENALTIES

    differences: dict = {}
    for genes in ("named", "variable"):
        for test in SLICES:
            training = [name for name in SLICES if name[0] != test[0]]
            panels = [Panel.read(slices[name]) for name in training]
            wanted = learned_genes(slices, training, genes)
            chosen, _ = choose_genes(panels, wanted, 1e4)
            x, y, patients = arrays(slices, training, chosen)
            held_out = []
            for patient in np.unique(patients):
                out = patients == patient
                held_out.append(errors(candidates(x[~out], y[~out], PENALTIES), x[out], y[out]))
            ratios = np.array([one / one[0] for one in held_out])
            spots = np.random.default_rng(0).random(len(x)) < 0.1
            of_spots = errors(candidates(x[~spots], y[~spots], PENALTIES), x[spots], y[spots])
            picks = {
                "worst": ratios.max(axis=0).argmin(),
                "sum": np.sum(held_out, axis=0).argmin(),
                "mean": ratios.mean(axis=0).argmin(),
                "random": of_spots.argmin(),
                "no constant": 1 + ratios.max(axis=0)[1:].argmin(),
            }
            scored = [gene for gene in chosen if gene in Panel.read(slices[test]).place]
            columns = [chosen.index(gene) for gene in scored]
            test_x, test_y, _ = arrays(slices, [test], scored)
            models = [(w[:, columns], b[columns]) for w, b in candidates(x, y, PENALTIES)]
            on_test = errors(models, test_x, test_y)
            for rule, pick in picks.items():
                differences.setdefault((rule, genes), []).append(on_test[pick] - on_test[0])
    rows = []
    for title, rule in RULES.items():
        for genes in ("named", "variable"):
            values = differences[rule, genes]
            row = {"rule": title, "genes": genes}
            row |= {name: round(v, 4) for name, v in zip(SLICES, values, strict=True)}
            rows.append(row | {"worst": round(max(values), 4), "mean": round(np.mean(values), 4)})
    return rows


def main() -> None:
    """Run both parts."""
    parser = common.parser(__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--cache", type=Path, help="features of frozen encoders are stored there")
    options = parser.parse_args()
    rows = first_part(options.data, options.cache)
    rules = second_part(read(options.data, READERS[0], options.cache))
    result = {}
    for reader in READERS:
        values = [row["difference"] for row in rows if row["model"] == reader]
        result[f"{reader}_worst"] = max(values)
        result[f"{reader}_mean"] = float(np.mean(values))
    notes = [
        "MSE is the sum of level (of the slice's mean) and pattern (within the slice); chosen: the penalty a column.",
        "the rule and the features were chosen with these scores in sight, among those below and some of other scales "
        "and neighbors; the differences between them are small, and there are three patients.",
    ]
    common.finish("Expression from histology, patients held out", rows, notes, result, options.out)
    if options.out is not None:
        beside = options.out.with_suffix("")
        beside = beside.with_name(f"{beside.name}-rules")
        worst: dict[str, float] = {}
        for row in rules:
            rule = RULES[row["rule"]].replace(" ", "_")
            worst[rule] = max(row["worst"], worst.get(rule, -np.inf))
        common.finish(
            "Expression from histology: rules that choose the penalty, error beyond the gene mean's",
            rules,
            [
                "EfficientNet-Lite0, standardized by slice; a negative number is below the gene mean."
            ],
            worst,
            beside,
        )


if __name__ == "__main__":
    main()
