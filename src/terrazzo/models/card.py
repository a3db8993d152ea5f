"""Model card of a checkpoint: a README for readers and for the hub, filled from the provenance of a run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from terrazzo._version import __version__
from terrazzo.config import to_dict
from terrazzo.models import checkpoint as ckpt

__all__ = [
    "COUNTS_KNOWN",
    "LEAST_DEPTH",
    "LICENSE",
    "TRAINED_ON",
    "PartLoss",
    "card",
    "losses",
    "name_hash",
]

# keys of the provenance
LICENSE = "license"

COUNTS_KNOWN = "counts known"  # share of a training slice's counts on genes of the vocabulary

LEAST_DEPTH = "least depth"  # lowest of the training slices' median counts a cell or spot

TRAINED_ON = "train slices, hashed"  # see `name_hash`; a name may be a patient's

EVERY_MODEL = (
    "Vectors depend on the platform, the panel of genes and the tissue; check on labeled slices of your own, beside "
    "the baselines of `terrazzo.Baseline`, before you rely on them.",
    "Genes that the vocabulary does not know are not read; `terrazzo info SLICE --model ...` reports how many.",
    "For research; not a medical device.",
)


class PartLoss(NamedTuple):
    """One part of the loss at the end of training.

    Attributes
    ----------
    name
        Of the part.
    training, validation
        Its value on either split; None where it was not logged.
    trivial
        Validation loss of trivial predictions, by their names.
    """

    name: str
    training: float | None
    validation: float | None
    trivial: dict[str, float]


def name_hash(name: str) -> str:
    """Return a short hash of the name of a training slice, to find out later that a slice was trained on."""
    return hashlib.sha256(name.encode()).hexdigest()[:12]


def card(model: Any, name: str = "FOLDER") -> str:
    """Return the text of a checkpoint's ``README.md``.

    Parameters
    ----------
    model
        A :class:`~terrazzo.models.base.FoundationModel`.
    name
        What to load it by: its name on the hub, or a placeholder for its folder.
    """
    provenance: Mapping[str, Any] = model.provenance
    state = "" if model.trained else "\n**These weights are random: they were never trained.**\n"
    limits = [*model.limits, *EVERY_MODEL]
    sections = {
        "How to use": _use(model, name),
        "Data": _data(provenance),
        "Training": _training(provenance),
        "Losses": _losses(provenance),
        "Genes": _genes(model),
        "License": _license(provenance),
        "Limits": _bullets(limits),
        "Citation": model.citation,
        "Hyperparameters": f"```json\n{json.dumps(to_dict(model.config), indent=2)}\n```",
        "Where the weights come from": _table(("", ""), list(provenance.items())),
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items() if text)
    return (
        f"{_front_matter(model)}\n# {model.title}\n{state}\nA terrazzo {__version__} checkpoint: one "
        f"vector a cell of a slice of spatial transcriptomics.\n\n{body}\n"
    )


def _front_matter(model: Any) -> str:
    """Return the metadata that the hub indexes; values are quoted as JSON, which YAML reads."""
    metadata = {
        "library_name": "terrazzo",
        "tags": ["spatial-transcriptomics", "biology", "terrazzo", model.model_type],
    }
    license = model.provenance.get(LICENSE)
    if license:
        metadata["license"] = str(license).lower()
    lines = [f"{key}: {json.dumps(value)}" for key, value in metadata.items()]
    return "\n".join(["---", *lines, "---"])


def _use(model: Any, name: str) -> str:
    return (
        f'```python\nimport terrazzo as tz\n\nmodel = tz.load("{name}")\nmodel.embed(adata)  '
        f'# adata.obsm["{model.default_key}"], one row a cell\n```\n\n'
        f"```\nterrazzo embed slice.h5ad --model {name} --out embedded\n```\n\n"
        'A slice needs raw counts, gene names and two coordinates a cell in `obsm["spatial"]`.'
    )


def _data(provenance: Mapping[str, Any]) -> str:
    rows = []
    for split in ("train", "validation"):
        if f"{split} slices" in provenance:
            n_slices = provenance[f"{split} slices"]
            n_cells = provenance[f"{split} cells"]
            rows.append((split, f"{n_slices:,}", f"{n_cells:,}"))
    if not rows:
        if "source" not in provenance:
            return ""
        return f"Not recorded. Source: {provenance['source']}."
    lines = []
    for name in ("technology", "organism", "tissue"):
        if provenance.get(name):
            lines.append(f"{name}: {provenance[name]}")
    known = provenance.get(COUNTS_KNOWN)
    if known:
        lines.append(f"share of a training slice's counts on known genes: {known}")
    depth = provenance.get(LEAST_DEPTH)
    if depth is not None:
        lines.append(f"lowest median counts a cell or spot of a training slice: {depth:,.0f}")
    table = _table(("split", "slices", "cells"), rows)
    return f"{table}\n\n{_bullets(lines)}"


def _training(provenance: Mapping[str, Any]) -> str:
    names = (
        "stage",
        "objective",
        "started from",
        "epochs",
        "steps",
        "ended by",
        "weights of step",
        "held-out loss",
        "held-out loss at the start",
        "held-out loss at the end",
        "processes",
        "date",
        "git_revision",
    )
    lines = []
    for name in names:
        if name in provenance:
            lines.append(f"{name.replace('_', ' ')}: {provenance[name]}")
    return _bullets(lines)


def losses(provenance: Mapping[str, Any]) -> list[PartLoss]:
    """Return the parts of the loss that a run recorded.

    The loss of a trivial prediction is a validation column whose name begins with that of a trained part:
    ``val/masked_cells_zero``.
    """
    parts = []
    for column in provenance:
        if column.startswith("train/") and column != "train/gradient_norm":
            parts.append(column.removeprefix("train/"))
    recorded = []
    for part in parts:
        trivial = _trivial_losses(provenance, part, parts)
        training = provenance.get(f"train/{part}")
        validation = provenance.get(f"val/{part}")
        recorded.append(PartLoss(part, training, validation, trivial))
    return recorded


def _trivial_losses(
    provenance: Mapping[str, Any], part: str, parts: Sequence[str]
) -> dict[str, float]:
    """Return the losses of trivial predictions of a part; not those of a part whose longer name begins the same."""
    prefix = f"val/{part}_"
    longer = tuple(f"val/{other}" for other in parts if other.startswith(f"{part}_"))
    trivial = {}
    for column, value in provenance.items():
        if column.startswith(prefix) and not column.startswith(longer):
            name = column.removeprefix(prefix).replace("_", " ")
            trivial[name] = float(value)
    return trivial


def _losses(provenance: Mapping[str, Any]) -> str:
    rows = []
    for part in losses(provenance):
        trivial = [f"{name} {_number(value)}" for name, value in part.trivial.items()]
        rows.append(
            (
                part.name.replace("_", " "),
                _number(part.training),
                _number(part.validation),
                "; ".join(trivial),
            )
        )
    if not rows:
        return ""
    return _table(("part", "training", "validation", "trivial predictions, validation"), rows)


def _genes(model: Any) -> str:
    vocabulary = model.vocabulary
    return f"{len(vocabulary):,} genes ({vocabulary.organism}), listed in `{ckpt.VOCABULARY}`."


def _license(provenance: Mapping[str, Any]) -> str:
    license = provenance.get(LICENSE)
    if license:
        return f"{license}, as stated by the publishers of these weights."
    return "Not stated. The terms of the training data and of the initial weights may apply."


def _number(value: Any) -> str:
    return "" if value is None else f"{float(value):.4g}"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a Markdown table."""
    lines = [list(head), ["---"] * len(head)]
    for row in rows:
        lines.append([_cell(value) for value in row])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
