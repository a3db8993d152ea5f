"""Train the weights that come with terrazzo and write them into the package: `make weights`.

``python benchmarks/ship.py [--recipes benchmarks/weights.yaml] [--data ../shared/data] [--only NAME]``

One corpus of all slices in DATA (no label is read), the runs that the YAML file lists, and for each of its names a
folder ``src/terrazzo/weights/NAME``: the checkpoint rounded to float16 or bfloat16, whichever changes vectors less, a
model card, and ``about.json`` with data, licenses, measured loss of rounding and checksums. A run that was stopped is
resumed.

``python benchmarks/ship.py --model RUN/model --only NAME --trained-by COMMAND`` writes one that is trained already.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

import terrazzo as tz
from terrazzo import datasets, simulate
from terrazzo.config import from_dict
from terrazzo.corpus.sources import clean_id
from terrazzo.files import hash_file
from terrazzo.models import checkpoint as ckpt
from terrazzo.models import shipped
from terrazzo.models.card import TRAINED_ON, card, name_hash

ROOT = Path(__file__).resolve().parents[1]
MAX_MB = 25  # all weights together
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
SIMULATED_SPOTS = 100
SIMULATED_GENES = 300
NOT_MEASURED = "not measured"

# a folder of this machine in front of a name, within the texts of a provenance
FOLDERS = re.compile(r"(?<![\w.:/])/(?:[\w.@+~-]+/)+")


@dataclass(frozen=True)
class CorpusPlan:
    """The corpus: organism of its genes, and slices (folder/name) that are held out to choose checkpoints by."""

    orthologs: str | None = "human"
    validation: list[str] = field(default_factory=list)
    min_genes: int | None = None


@dataclass(frozen=True)
class WeightsPlan:
    """One model: what it is for, its quality (numbers of ``results``, a file of benchmarks/results), and its runs.

    ``stages``: mappings with ``recipe``, and sections of it that differ; each run starts from the one before.
    ``datasets``: folders of DATA that a corpus of its own is made of; empty: all, in one corpus.
    """

    purpose: str
    stages: list[dict]
    quality: str = NOT_MEASURED
    results: str = ""
    datasets: list[str] = field(default_factory=list)


def read_plans(path: Path) -> tuple[CorpusPlan, dict[str, WeightsPlan]]:
    """Read the YAML file of recipes."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    corpus = from_dict(CorpusPlan, content["corpus"], f"{path.name}: corpus")
    plans = {}
    for name, fields in content["weights"].items():
        plan = from_dict(WeightsPlan, fields, f"{path.name}: {name}")
        if plan.results and not (ROOT / plan.results).is_file():
            raise SystemExit(f"{path.name}: {name}: there is no {plan.results}.")
        if plan.quality != NOT_MEASURED and not plan.results:
            raise SystemExit(f"{path.name}: {name}: quality has no results file.")
        plans[name] = plan
    return corpus, plans


# the corpus


def slices_of(data: Path, names: Sequence[str] = ()) -> list[Path]:
    """Return the slices of a folder of datasets, or of some of them."""
    paths = sorted(data.glob("*/*.h5ad"))
    if names:
        paths = [path for path in paths if path.parent.name in names]
    if not paths:
        raise SystemExit(f"{data} has no dataset: folders with .h5ad files.")
    return paths


def id_of(path: Path) -> str:
    """Return the name of a slice in the corpus."""
    return clean_id(f"{path.parent.name}-{path.stem}")


def source_row(path: Path, validation: Sequence[str]) -> dict[str, Any]:
    """Return the row of a slice in the corpus's table of sources."""
    folder = path.parent.name
    name = f"{folder}/{path.stem}"
    row: dict[str, Any] = {
        "path": str(path.resolve()),
        "id": id_of(path),
        "split": "validation" if name in validation else "train",
    }
    known = datasets.registry().get(folder)
    if known is not None:
        row["technology"] = known.technology
        row["organism"] = known.organism
        row["microns_per_unit"] = known.microns_per_unit
    sheet = path.with_suffix(".json")
    if sheet.is_file():
        facts = json.loads(sheet.read_text(encoding="utf-8"))
        row["image"] = str((path.parent / facts["image"]).resolve())
        row["image_scale"] = facts["scale"]
        row["image_scale_y"] = facts.get("scale_y", facts["scale"])
    return row


def make_corpus(data: Path, folder: Path, plan: CorpusPlan, names: Sequence[str] = ()) -> Path:
    """Build the corpus of all slices, or of some datasets, or finish one whose build was stopped."""
    import pandas as pd

    missing = [name for name in plan.validation if not (data / f"{name}.h5ad").is_file()]
    if missing:
        raise SystemExit(f"{data} lacks the validation slices {', '.join(missing)}.")
    rows = [source_row(path, plan.validation) for path in slices_of(data, names)]
    folder.parent.mkdir(parents=True, exist_ok=True)
    table = folder.with_suffix(".csv")
    pd.DataFrame(rows).to_csv(table, index=False)
    organisms = {row.get("organism") for row in rows}
    orthologs = plan.orthologs if len(organisms) > 1 else None
    tz.build_corpus(
        table,
        folder,
        orthologs=orthologs,
        min_genes=plan.min_genes,
        scheduler="synchronous",
    )
    return folder


def trained_on(provenance: dict[str, Any]) -> set[str]:
    """Return the hashed names of the training slices of a model and of those that it started from."""
    hashes = set(str(provenance.get(TRAINED_ON, "")).split())
    if "before" in provenance:
        hashes |= trained_on(json.loads(provenance["before"]))
    return hashes


def data_sources(data: Path, provenance: dict[str, Any]) -> list[shipped.DataSource]:
    """Return the datasets of a folder that a model was trained on, with sources and licenses where they are known."""
    hashes = trained_on(provenance)
    names: dict[str, None] = {}
    for path in slices_of(data):
        if name_hash(id_of(path)) in hashes:
            names[path.parent.name] = None
    if not names:
        raise SystemExit(f"none of the slices in {data} is one that the model was trained on.")
    sources = []
    for name in names:
        known = datasets.registry().get(name)
        if known is None:
            sources.append(shipped.DataSource(name, "not stated", "not stated"))
        else:
            sources.append(shipped.DataSource(known.title, known.citation, known.license))
    return sources


# training


def train(name: str, plan: WeightsPlan, corpus: Path, work: Path, max_steps: int | None) -> Path:
    """Run the stages of one model, one after the other; return the last one's model."""
    model: Path | None = None
    for number, stage in enumerate(plan.stages, 1):
        sections = {key: value for key, value in stage.items() if key != "recipe"}
        if model is not None:
            sections["model"] = {**sections.get("model", {}), "checkpoint": str(model)}
        if max_steps is not None:
            sections["optim"] = {**sections.get("optim", {}), "max_steps": max_steps}
        out = work / f"{name}-{number}"
        recipe = tz.load_recipe(stage["recipe"], corpus=corpus, out=out, **sections)
        print(f"{name}: {stage['recipe']} in {out}", flush=True)
        model = tz.pretrain(recipe, resume=(out / "run.json").is_file())
    if model is None:
        raise SystemExit(f"{name} has no stage.")
    return model


# rounding


def simulated_slice(model: Any) -> Any:
    """Return simulated Visium spots with histology, of genes that a model knows."""
    vocabulary = model.vocabulary
    known = np.flatnonzero(vocabulary.ensembl_id != "")
    if len(known) == 0:
        raise SystemExit("the vocabulary has no Ensembl ids: measure the rounding on slices.")
    rows = known[np.linspace(0, len(known) - 1, min(SIMULATED_GENES, len(known))).astype(int)]
    return simulate.tissue(
        SIMULATED_SPOTS,
        layout="visium",
        image=True,
        image_px=600,
        organism="mouse" if vocabulary.organism == "mouse" else "human",
        gene_ids=vocabulary.ensembl_id[rows].tolist(),
    )


def rounded(checkpoint: ckpt.Checkpoint, dtype: torch.dtype) -> ckpt.Checkpoint:
    """Return a checkpoint whose real numbers are of a smaller type."""
    state = {}
    for name, tensor in checkpoint.state.items():
        state[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return replace(checkpoint, state=state)


def vectors_of(model: Any, slices: Sequence[Any]) -> list[np.ndarray]:
    """Return the vectors of slices, which stay as they are."""
    vectors = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for adata in slices:
            embedded = model.embed(adata.copy(), progress=False)
            vectors.append(np.asarray(embedded.obsm[model.default_key], dtype=np.float64))
    return vectors


def relative_difference(exact: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> float:
    """Return the largest of the slices' relative differences of vectors."""
    differences = []
    for vectors, changed in zip(exact, other, strict=True):
        differences.append(np.linalg.norm(changed - vectors) / np.linalg.norm(vectors))
    return float(max(differences))


def loss_of(checkpoint: ckpt.Checkpoint, exact: Sequence[np.ndarray], slices: Any) -> float:
    """Return how much vectors change by a checkpoint that was rounded; infinite where it cannot be read."""
    with tempfile.TemporaryDirectory() as folder:
        target = ckpt.write(checkpoint, Path(folder) / "model", card="")
        try:
            model = tz.load(target)
        except tz.errors.CheckpointError:  # float16 holds nothing above 65,504
            return float("inf")
        return relative_difference(exact, vectors_of(model, slices))


# the folder that ships


def without_folders(text: str) -> str:
    """Return a text of a provenance without the folders of this machine in it."""
    return FOLDERS.sub("", text)


def public_provenance(provenance: dict[str, Any]) -> dict[str, Any]:
    """Return a provenance without the folders of this machine in it."""
    cleaned = {}
    for key, value in provenance.items():
        cleaned[key] = without_folders(value) if isinstance(value, str) else value
    return cleaned


def total_steps(provenance: dict[str, Any]) -> int:
    """Return the training steps of a model and of those that it started from."""
    steps = int(provenance.get("steps", 0))
    if "before" in provenance:
        steps += total_steps(json.loads(provenance["before"]))
    return steps


def shipped_card(model: Any, name: str, about: shipped.About) -> str:
    """Return the model card: the checkpoint's own, and how it was rounded, on what data."""
    lines = ["| data | source | license |", "| --- | --- | --- |"]
    for one in about.data:
        cells = [text.replace("|", "\\|") for text in (one.name, one.source, one.license)]
        lines.append(f"| {' | '.join(cells)} |")
    table = "\n".join(lines)
    return (
        f"{card(model, name)}\n## As it ships\n\n- What for: {about.purpose}\n- How good: {about.quality}\n"
        f"- Made by `{about.trained_by}`, {about.steps:,} steps in all. No label was read.\n"
        f"- Rounded to {about.dtype}: vectors change by {about.loss_of_rounding:.2g} of their length "
        f"(float32 at load).\n\n{table}\n"
    )


def ship(
    trained: Path,
    name: str,
    into: Path,
    *,
    purpose: str,
    quality: str,
    data: list[shipped.DataSource],
    trained_by: str,
    slices: Sequence[Any] = (),
) -> shipped.About:
    """Write a trained model as weights that ship.

    Parameters
    ----------
    trained
        Checkpoint folder.
    name, into
        The folder ``into / name`` is written, in place of an earlier one.
    purpose, quality, data, trained_by
        Of ``about.json``.
    slices
        On which the loss of rounding is measured; empty: a simulated one.
    """
    checkpoint = ckpt.read(trained)
    checkpoint = replace(checkpoint, provenance=public_provenance(checkpoint.provenance))
    model = tz.load(trained)
    measured_on = list(slices) or [simulated_slice(model)]
    exact = vectors_of(model, measured_on)
    losses = {}
    for dtype, kind in DTYPES.items():
        losses[dtype] = loss_of(rounded(checkpoint, kind), exact, measured_on)
    best = min(losses, key=lambda dtype: losses[dtype])
    if not np.isfinite(losses[best]):
        raise SystemExit(f"{name} cannot be rounded: {losses}")
    about = shipped.About(
        system=model.title,
        purpose=purpose,
        quality=quality,
        parameters=model.n_parameters,
        genes=len(model.vocabulary),
        organism=model.vocabulary.organism,
        data=data,
        trained_by=trained_by,
        steps=total_steps(checkpoint.provenance),
        dtype=best,
        loss_of_rounding=float(f"{losses[best]:.3g}"),
        sha256={},
    )
    model.provenance = checkpoint.provenance
    text = shipped_card(model, f"{shipped.ORGANIZATION}{name}", about)
    target = into / name
    if target.exists():
        shutil.rmtree(target)
    ckpt.write(rounded(checkpoint, DTYPES[best]), target, card=text)
    sums = {file: hash_file(target / file) for file in shipped.CHECKED}
    content = json.dumps(asdict(replace(about, sha256=sums)), indent=2)
    (target / shipped.ABOUT).write_text(f"{content}\n", encoding="utf-8")
    print(f"{target}: {losses}", flush=True)
    return about


def check_size(into: Path) -> None:
    """Refuse weights that are too large for the package."""
    n_bytes = sum(path.stat().st_size for path in into.rglob("*") if path.is_file())
    print(f"{into}: {n_bytes / 1e6:.1f} MB of {MAX_MB}")
    if n_bytes > MAX_MB * 1e6:
        raise SystemExit(f"{into} holds {n_bytes / 1e6:.1f} MB; at most {MAX_MB} ship.")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and ship."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipes", type=Path, default=ROOT / "benchmarks" / "weights.yaml")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--work", type=Path, default=Path("build/weights"))
    parser.add_argument("--into", type=Path, default=shipped.root())
    parser.add_argument("--only", help="the name of one of them")
    parser.add_argument("--model", type=Path, help="that one, trained already on slices of DATA")
    parser.add_argument("--trained-by", default="make weights", help="the command")
    parser.add_argument("--max-steps", type=int, help="of each run, to see that it works")
    options = parser.parse_args(arguments)
    corpus_plan, plans = read_plans(options.recipes)
    if options.only is not None:
        if options.only not in plans:
            parser.error(f"--only: one of {', '.join(plans)}")
        plans = {options.only: plans[options.only]}
    if options.model is not None and options.only is None:
        parser.error("--model needs --only NAME")
    for name, plan in plans.items():
        trained = options.model
        if trained is None:
            corpus = options.work / (f"corpus-{name}" if plan.datasets else "corpus")
            make_corpus(options.data, corpus, corpus_plan, plan.datasets)
            trained = train(name, plan, corpus, options.work, options.max_steps)
        data = data_sources(options.data, ckpt.read(trained).provenance)
        quality = NOT_MEASURED if options.max_steps is not None else plan.quality
        ship(
            trained,
            name,
            options.into,
            purpose=plan.purpose,
            quality=quality,
            data=data,
            trained_by=options.trained_by,
        )
    check_size(options.into)


if __name__ == "__main__":
    main()
