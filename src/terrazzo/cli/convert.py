"""The command line's verbs that turn published weights into checkpoints: convert stofm, geneformer, scgpt, uni."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from terrazzo.cli.options import OPTIONS, TRAINING, say, working


def register(app: App) -> None:
    """Add the verbs to the command line."""
    verbs = App(
        name="convert",
        group=TRAINING,
        group_arguments=OPTIONS,
        group_parameters=OPTIONS,
        help="Published weights to a checkpoint folder.\n\n"
        "Example: terrazzo convert stofm DOWNLOADED --gene-dictionaries GENEFORMER --out checkpoint",
    )
    for verb in (stofm, geneformer, scgpt, uni):
        verbs.command(verb)
    app.command(verbs)


def stofm(
    published: Annotated[
        Path, Parameter(help="Folder with config.json, se2transformer.pth, cell_encoder/.")
    ],
    /,
    *,
    gene_dictionaries: Annotated[
        Path, Parameter(help="Folder with Geneformer's dictionaries (.pkl).")
    ],
    out: Annotated[Path, Parameter(help="Checkpoint folder to write.")],
    overwrite: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Convert SToFM's published weights, for equal outputs.

    Example: terrazzo convert stofm DOWNLOADED --gene-dictionaries GENEFORMER --out checkpoint
    """
    import terrazzo as tz

    with working("convert SToFM"):
        target = tz.convert_stofm(published, gene_dictionaries).save_pretrained(
            out, overwrite=overwrite
        )
    say(f"Checkpoint written to {target}")


def geneformer(
    published: Annotated[Path, Parameter(help="Folder with config.json and the weights.")],
    /,
    *,
    gene_dictionaries: Annotated[
        Path, Parameter(help="Folder with Geneformer's dictionaries (.pkl).")
    ],
    out: Annotated[Path, Parameter(help="Checkpoint folder to write.")],
    overwrite: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Convert a Geneformer V1 checkpoint to a cell encoder on its own.

    Example: terrazzo convert geneformer DOWNLOADED --gene-dictionaries GENEFORMER --out checkpoint
    """
    import terrazzo as tz

    with working("convert Geneformer"):
        target = tz.convert_geneformer(published, gene_dictionaries).save_pretrained(
            out, overwrite=overwrite
        )
    say(f"Checkpoint written to {target}")


def scgpt(
    published: Annotated[Path, Parameter(help="Folder with vocab.json, args.json, best_model.pt.")],
    /,
    *,
    out: Annotated[Path, Parameter(help="Checkpoint folder to write.")],
    gene_dictionaries: Annotated[
        Path | None,
        Parameter(help="Folder with Geneformer's gene_name_id_dict.pkl: genes also by Ensembl id."),
    ] = None,
    overwrite: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Convert scGPT's published weights.

    Example: terrazzo convert scgpt DOWNLOADED --out checkpoint
    """
    import terrazzo as tz

    with working("convert scGPT"):
        target = tz.convert_scgpt(published, gene_dictionaries).save_pretrained(
            out, overwrite=overwrite
        )
    say(f"Checkpoint written to {target}")


def uni(
    published: Annotated[Path, Parameter(help="Folder with pytorch_model.bin.")],
    /,
    *,
    out: Annotated[Path, Parameter(help="Folder to write, as transformers has them.")],
    overwrite: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Convert UNI's published weights to an image encoder for ST-Align.

    Example: terrazzo convert uni DOWNLOADED --out uni
    """
    import terrazzo as tz

    with working("convert UNI"):
        target = tz.convert_uni(published, out, overwrite=overwrite)
    say(f"Image encoder written to {target}")
