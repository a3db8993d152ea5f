"""The model card of a checkpoint: a README that the hub reads too, filled from what the run recorded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from terrazzo._version import __version__
from terrazzo.config import to_dict
from terrazzo.models import checkpoint as ckpt

LICENSE = "license"  # in the provenance
COUNTS_KNOWN = "counts known"  # in the provenance: share of a training slice's counts on genes of the vocabulary
TRAINED_ON = "train slices, hashed"  # in the provenance: see `name_hash`; a name may be a patient's
EVERY_MODEL = (
    "Vectors depend on the platform, the panel of genes and the tissue; check on labeled slices of your own, beside "
    "the baselines of `terrazzo.Baseline`, before you rely on them.",
    "Genes that the vocabulary does not know are not seen; `terrazzo info SLICE --model ...` says how many.",
    "For research; not a medical device.",
)


def name_hash(name: str) -> str:
    """Return what is kept of the name of a training slice: enough to find out that a slice was trained on."""
    return hashlib.sha256(name.encode()).hexdigest()[:12]


def card(model: Any, name: str = "FOLDER") -> str:
    """Return the text of a checkpoint's ``README.md``.

    Parameters
    ----------
    model
        A :class:`~terrazzo.models.base.FoundationModel`.
    name
        What to load it by: its name on the hub, or a word for its folder.
    """
    held: Mapping[str, Any] = model.provenance
    state = "" if model.trained else "\n**These weights are random: they were never trained.**\n"
    parts = {
        "How to use": _use(model, name),
        "Data": _data(held),
        "Training": _training(held),
        "Losses": _losses(held),
        "Genes": _genes(model),
        "License": _license(held),
        "Limits": "\n".join(f"- {line}" for line in (*model.limits, *EVERY_MODEL)),
        "Citation": model.citation,
        "Hyperparameters": f"```json\n{json.dumps(to_dict(model.config), indent=2)}\n```",
        "Where the weights come from": _table(("", ""), [(k, v) for k, v in held.items()]),
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in parts.items() if text)
    return (
        f"{_front_matter(model)}\n# {model.title}\n{state}\nA terrazzo {__version__} checkpoint: one "
        f" vector a cell of a slice of spatial transcriptomics.\n\n{body}\n"
    )


def _front_matter(model: Any) -> str:
    """Return what the hub files a model by; values are quoted as JSON, which YAML reads."""
    lines = {
        "library_name": "terrazzo",
        "tags": ["spatial-transcriptomics", "biology", "terrazzo", model.model_type],
    }
    if stated := model.provenance.get(LICENSE):
        lines["license"] = str(stated).lower()
    return "\n".join(
        ["---", *(f"{key}: {json.dumps(value)}" for key, value in lines.items()), "---"]
    )


def _use(model: Any, name: str) -> str:
    return (
        f'```python\nimport terrazzo as tz\n\nmodel = tz.load("{name}")\nmodel.embed(adata)  '
        f'# adata.obsm["{model.default_key}"], one row a cell\n```\n\n'
        f"```\nterrazzo embed slice.h5ad --model {name} --out embedded\n```\n\n"
        'A slice needs raw counts, gene names and two coordinates a cell in `obsm["spatial"]`.'
    )


def _data(held: Mapping[str, Any]) -> str:
    rows = [
        (split, f"{held[f'{split} slices']:,}", f"{held[f'{split} cells']:,}")
        for split in ("train", "validation")
        if f"{split} slices" in held
    ]
    if not rows:
        return f"Not known here: {held['source']}." if "source" in held else ""
    told = [f"{k}: {held[k]}" for k in ("technology", "organism", "tissue") if held.get(k)]
    known = held.get(COUNTS_KNOWN)
    told += [f"share of a training slice's counts on known genes: {known}"] if known else []
    return (
        _table(("split", "slices", "cells"), rows)
        + "\n\n"
        + "\n".join(f"- {line}" for line in told)
    )


def _training(held: Mapping[str, Any]) -> str:
    named = (
        "stage",
        "objective",
        "started from",
        "epochs",
        "steps",
        "processes",
        "date",
        "git_revision",
    )
    return "\n".join(f"- {name.replace('_', ' ')}: {held[name]}" for name in named if name in held)


def losses(
    held: Mapping[str, Any],
) -> list[tuple[str, float | None, float | None, dict[str, float]]]:
    """Return each part of the loss: its name, training, held out, and what trivial answers cost on the held-out slices.

    A trivial answer is a validation column that begins with a trained part's name: ``val/masked_cells_zero``.
    """
    parts = [
        k.removeprefix("train/")
        for k in held
        if k.startswith("train/") and k != "train/gradient_norm"
    ]
    out = []
    for part in parts:
        longer = [p for p in parts if p.startswith(f"{part}_")]
        trivial = {
            k.removeprefix(f"val/{part}_").replace("_", " "): float(v)
            for k, v in held.items()
            if k.startswith(f"val/{part}_") and not any(k.startswith(f"val/{p}") for p in longer)
        }
        out.append((part, held.get(f"train/{part}"), held.get(f"val/{part}"), trivial))
    return out


def _losses(held: Mapping[str, Any]) -> str:
    rows = [
        (
            part.replace("_", " "),
            _number(train),
            _number(val),
            "; ".join(f"{k} {_number(v)}" for k, v in trivial.items()),
        )
        for part, train, val, trivial in losses(held)
    ]
    return (
        _table(("part", "training", "held out", "trivial answers, held out"), rows) if rows else ""
    )


def _genes(model: Any) -> str:
    vocabulary = model.vocabulary
    return f"{len(vocabulary):,} genes ({vocabulary.organism}), kept in `{ckpt.VOCABULARY}`."


def _license(held: Mapping[str, Any]) -> str:
    if stated := held.get(LICENSE):
        return f"{stated}, as stated by who published these weights."
    return "Not stated. Weights may be bound by the terms of the data and of the weights that they were made from."


def _number(value: Any) -> str:
    return "" if value is None else f"{float(value):.4g}"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    cells = [[str(v).replace("|", "\\|").replace("\n", " ") for v in row] for row in rows]
    return "\n".join(
        "| " + " | ".join(row) + " |" for row in [list(head), ["---"] * len(head), *cells]
    )
