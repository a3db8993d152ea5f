"""Write docs/benchmarks.md from the tables in benchmarks/results/tables: one line a part and split, published beside.

``python benchmarks/summary.py``
"""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS, TARGET = ROOT / "benchmarks" / "results" / "tables", ROOT / "docs" / "benchmarks.md"
LOWER = {"rmse", "mae", "mse"}
# trained systems; the rest is trivial
OURS = (
    "SToFM",
    "ST as images",
    "ST-Align",
    "Cell encoder",
    "w/o",
    "Encoder",
    "patch,",
    "spot,",
    "multi-spot,",
    "slice,",
    "AE + ",
    "ABFN + ",
    "image only,",
    "genes only,",
)
SHOWN = ("SToFM", "ST as images", "ST-Align")
HEAD = """# Benchmarks

Every table is one command, `terrazzo bench NAME --data DATA --models stofm=CHECKPOINT --out TABLES`; `terrazzo bench`
lists them. What is measured stands in `src/terrazzo/bench/tables/NAME.yaml`, with the published numbers; what was
measured here, by command, date and machine, in `benchmarks/results/tables/`. This page is made from those by
`python benchmarks/summary.py`.

How to read it
- *random* and *few-shot* splits leak space: test cells have neighbors in training. *blocked* does not. *cross*: heads
  learn from other slices. *whole*: clusters without labels, the true number of them.
- *best trivial*: the best of PCA, PCA + neighbor means, Z50, T1, T2, T3, Pearson-residual PCA and expression, **chosen
  by this very score**, which favors it; nothing of it was tuned. T4, half-shrunk T1 and clean loadings are in every
  table that is run now; those shown were run before. Of hidden squares: the best of the mean, the nearest
  cells' means and linear interpolation. Of expression from histology (*named genes*, *50 variable genes*: learned from
  other patients): the best of the gene mean, color statistics, and what a frozen encoder says before anything is
  trained; *before training* is ST-Align with the same frozen parts and random weights elsewhere.
- *trained here*: SToFM, ST as images and ST-Align, on the other slices of the data, without labels, for minutes on one
  core; where patients are held out, never on a slice of the patient that is scored.
  Best of their blocks is not taken: the whole vector is shown.
- *published*: the paper's own number for its system (the best of its windows), on its own data, genes and split, which
  differ; the table's file says how.
"""


def number(row: dict) -> str:
    """Return mean and spread."""
    return f"{row['mean']:.3f}" + (f" ± {row['sd']:.3f}" if row["n"] > 1 else "")


def lines(record: dict) -> list[str]:
    """Return the lines of one table: its first head and metric, each part and split."""
    protocol = record["protocol"]
    metric, head = protocol["metrics"][0], protocol["heads"][0]
    rows = [
        r for r in record["summary"] if r["metric"] == metric and r["head"] in (head, "fine-tuning")
    ]
    own = protocol["source"].split(" (")[0]
    better = min if metric in LOWER else max
    published: dict = {}  # by part; where the paper has several windows, the best of them
    for r in protocol["published"]["rows"]:
        if metric in r and (r["model"] == own or r["model"].startswith(f"{own} (")):
            part = str(r.get("part", ""))
            published[part] = better(r[metric], published.get(part, r[metric]))
    names = {p["name"]: p["published_name"] or p["name"] for p in protocol["parts"]}
    out = []
    for part in dict.fromkeys(r["part"] for r in rows):
        for split in dict.fromkeys(r["split"] for r in rows if r["part"] == part):
            here = [r for r in rows if r["part"] == part and r["split"] == split]
            trivial = [r for r in here if not r["system"].startswith(OURS)]
            # without labels a task takes the niche block by itself, so it is shown too
            unwanted = "own block" if split in ("whole", "refined") else "block"
            trained = [
                r for r in here if r["system"].startswith(SHOWN) and unwanted not in r["system"]
            ]
            best = better(trivial, key=lambda r: r["mean"], default=None)
            shown = "; ".join(f"{r['system']} {number(r)}" for r in trained)
            comparable = split in ("random", "few-shot", "whole", "cross")
            beside = (
                published.get(names.get(part, part), "") if comparable else published.get(split, "")
            )
            link = f"[{record['table']}](../benchmarks/results/tables/{record['table']}.md)"
            out.append(
                f"| {link} | {part} | {split} | {metric} | "
                f"{best['system'] + ' ' + number(best) if best else ''} | {shown} | {beside} |"
            )
    return out


def main() -> None:
    """Collect and write."""
    records = [json.loads(p.read_text()) for p in sorted(RESULTS.glob("*.json"))]
    table = [
        "| table | part | split | metric | best trivial | trained here | published |",
        "|" + "---|" * 7,
    ]
    for record in records:
        table += lines(record)
    gone = sorted(
        {
            f"- {r['table']}: {a['system']}, {a['reason']}"
            for r in records
            for a in r["not_available"]
        }
    )
    text = HEAD + "\n" + "\n".join(table) + "\n"
    if gone:
        text += "\n## Not available\n\n" + "\n".join(gone) + "\n"
    TARGET.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
