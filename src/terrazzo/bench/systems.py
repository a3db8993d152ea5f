"""Who takes part in a table: baselines, checkpoints, embeddings that are there already, and those that are missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from anndata import AnnData

from terrazzo.bench.protocols import Part
from terrazzo.bench.samples import KEY, record_of, set_record
from terrazzo.config import to_dict
from terrazzo.errors import CheckpointError, ConfigError, TerrazzoError
from terrazzo.files import hash_json
from terrazzo.models.base import FoundationModel
from terrazzo.models.baselines import KINDS, fit_baselines
from terrazzo.models.checkpoint import VOCABULARY
from terrazzo.models.hub import is_hub_name
from terrazzo.models.loading import load
from terrazzo.records import blocks, vectors
from terrazzo.systems.stalign.features import Modality
from terrazzo.systems.stalign.image_baselines import ImageBaseline
from terrazzo.systems.stofm.model import SToFM

ALWAYS = ("pca", "pca-nb1", "pca-nb3", "z50", "t1", "t2", "t3")  # in every table
WEIGHTS = {
    "stofm": "SToFM",
    "cell-encoder": "Cell encoder alone",
    "geneformer": "Geneformer",
    "scgpt": "scGPT",
    "stimage": "ST as images",
    "stalign": "ST-Align",
}
FOREIGN = {
    "nicheformer": "Nicheformer",
    "cellplm": "CellPLM",
    "scgpt-spatial": "scGPT-spatial",
    "novae": "novae",
    "scfoundation": "scFoundation",
}
EYES = {  # vision models: any folder in the layout of transformers is a frozen encoder of niches
    "clip": "CLIP",
    "plip": "PLIP",
    "uni": "UNI",
    "conch": "CONCH",
    "ctranspath": "CTransPath",
    "gigapath": "Prov-GigaPath",
    "hibou": "Hibou",
}
MODALITIES: dict[Modality, str] = {"both": "", "image": ", image only", "genes": ", genes only"}
Fitted = Callable[[AnnData], None]  # writes obsm[KEY]


@dataclass(frozen=True)
class System:
    """One competitor.

    Attributes
    ----------
    title
        Its row; several systems of one title are seeds of the same thing.
    fit
        Takes the slices that may be learned from, without labels, and returns a function that writes ``obsm[KEY]``.
    missing
        Why it cannot take part; empty where it can.
    model
        With weights; SToFM can also be fine-tuned, ST as images can also fill in hidden tissue.
    fixed
        Its vectors of a slice do not depend on ``fit``.
    stored
        Its vectors were made elsewhere, of all genes.
    part
        Part of the table, or patient, that its weights were given for; "": all.
    reads
        ``"image"``: its vectors come from histology alone; ``"both"``: from genes too. Without a picture it fails.
    mark
        With the title, what its finished rows are recognized by: a hash of its weights, or where it came from; "":
        they are not kept.
    """

    title: str
    fit: Callable[[Sequence[AnnData]], Fitted] | None = None
    missing: str = ""
    model: FoundationModel | None = None
    fixed: bool = False
    stored: bool = False
    part: str = ""
    reads: Modality = "genes"
    mark: str = ""

    def serves(self, part: Part) -> bool:
        """Say whether its weights are for this part."""
        return self.part in ("", part.name, part.patient)


def resolve(names: Sequence[str], given: Sequence[str] = ()) -> list[System]:
    """Return the systems of a table.

    Parameters
    ----------
    names
        What the table asks for; the baselines of :data:`ALWAYS` are added.
    given
        What the user passes: ``stofm=FOLDER`` (again for another seed), ``cell-encoder=FOLDER``, ``LABEL=FOLDER`` for
        any checkpoint or the folder of a transformers vision model, ``LABEL=obsm:KEY`` for an embedding that the
        slices hold already, or the name of a baseline. ``LABEL@PART=...``: weights for one part of the table, or for
        all parts of one patient. Where a table asks for the cell encoder and none is passed, it is that of the SToFM
        checkpoints.

    Raises
    ------
    ConfigError
        A name that means nothing.
    CheckpointError
        A folder that is not a checkpoint.
    """
    asked = {*ALWAYS, *names, *given}
    out = _baselines([n for n in KINDS if n in asked])
    supplied: dict[str, list[str]] = {}
    for word in given:
        label, sign, source = word.partition("=")
        if label and sign and source:
            supplied.setdefault(label, []).append(source)
        elif word not in KINDS:
            raise ConfigError(
                f"--models {word}: pass a baseline ({', '.join(KINDS)}), NAME=CHECKPOINT or NAME=obsm:KEY, "
                "e.g. stofm=run/model."
            )
    if "cell-encoder" in names and "cell-encoder" not in supplied:
        inside = [s for s in supplied.get("stofm", ()) if not s.startswith("obsm:")]
        supplied |= {"cell-encoder": inside} if inside else {}
    for label, sources in supplied.items():
        out += _seeds(label, sources)
    there = {label.partition("@")[0] for label in supplied}
    out += [
        _missing(name) for name in dict.fromkeys(names) if name not in KINDS and name not in there
    ]
    return out


def _seeds(given: str, sources: list[str]) -> list[System]:
    """Return the systems of each source; rows of one title are pooled, so that it must be these and no other."""
    label, at, part = given.partition("@")
    if not label or (at and not part):
        raise ConfigError(f"--models {given}=...: write NAME=..., or NAME@PART=....")
    if label in KINDS or label in {kind.title for kind in KINDS.values()}:
        raise ConfigError(
            f"--models {label}=...: {label} is the name of a baseline; choose another."
        )
    found = [_supplied(label, source) for source in sources]
    firsts = [systems[0].model for systems in found]
    made = [
        model.fingerprint() if model else source
        for model, source in zip(firsts, sources, strict=True)
    ]
    if len(set(made)) < len(made):
        raise ConfigError(
            f"--models {given}=... was given twice with the same weights; two seeds are two checkpoints."
        )
    return [replace(system, part=part) for systems in found for system in systems]


def _baselines(names: list[str]) -> list[System]:
    last: dict[str, Any] = {
        "slices": None,
        "fitted": {},
    }  # they are asked one after the other for the same slices

    def fit_one(name: str) -> Callable[[Sequence[AnnData]], Fitted]:
        def fit(slices: Sequence[AnnData]) -> Fitted:
            if last["slices"] is not slices:
                last.update(slices=slices, fitted=_fit_all(names, slices))
            baseline = last["fitted"].get(name) or fit_baselines([name], slices)[name]

            def write(adata: AnnData) -> None:
                baseline.embed(adata, key_added=KEY)

            return write

        return fit

    return [System(KINDS[name].title, fit_one(name), mark="baseline") for name in names]


def _fit_all(names: list[str], slices: Sequence[AnnData]) -> dict[str, Any]:
    try:
        return fit_baselines(names, slices)
    except TerrazzoError:  # one of them cannot be fitted: each for itself, so that the others can
        return {}


def _supplied(label: str, source: str) -> list[System]:
    title = {**WEIGHTS, **FOREIGN, **EYES}.get(label, label)
    if source.startswith("obsm:"):
        key = source.removeprefix("obsm:")

        def copied(adata: AnnData) -> None:
            adata.obsm[KEY] = vectors(adata, key)
            set_record(adata, record_of(adata, key))  # with the names of its blocks

        return [System(title, _without_fit(copied), fixed=True, stored=True, mark=source)]
    if not Path(source).is_dir() and not is_hub_name(source):
        raise CheckpointError(f"{label}={source}: there is no such folder.")
    if Path(source).is_dir() and label not in WEIGHTS and not (Path(source) / VOCABULARY).is_file():
        return [of_images(title, ImageBaseline("encoder", encoder=source))]
    model = load(source)
    if label == "cell-encoder" and isinstance(model, SToFM):
        model = model.cell_model()
    if not model.trained:
        title = f"{title} (untrained)"
    return trained(title, model)


def trained(
    title: str, model: FoundationModel, modalities: Sequence[Modality] = tuple(MODALITIES)
) -> list[System]:
    """Return a model with weights as systems: one, or of ST-Align one for each of these modalities."""
    mark = model.fingerprint()
    if "modality" not in model.options_class.names():
        return [System(title, _without_fit(embedder(model)), model=model, fixed=True, mark=mark)]
    return [
        System(
            title + MODALITIES[one],
            _without_fit(embedder(model, modality=one)),
            model=model,
            fixed=True,
            reads=one,
            mark=mark,
        )
        for one in modalities
    ]


def of_images(title: str, baseline: ImageBaseline) -> System:
    """Return what reads histology without training as a system."""
    seen = baseline.encoder.fingerprint() if baseline.encoder else ""
    config = hash_json(to_dict(baseline.config))
    return System(
        title,
        _without_fit(embedder(baseline)),
        fixed=True,
        reads="image",
        mark=f"{baseline.name} {seen} {config}",
    )


def _without_fit(write: Fitted) -> Callable[[Sequence[AnnData]], Fitted]:
    return lambda slices: write


def embedder(model: FoundationModel | ImageBaseline, **options: Any) -> Fitted:
    """Return what writes a model's vectors under the table's key."""

    def write(adata: AnnData) -> None:
        model.embed(adata, key_added=KEY, progress=False, **options)

    return write


def _missing(name: str) -> System:
    if name in WEIGHTS:
        return System(WEIGHTS[name], missing=f"no weights were given (--models {name}=FOLDER)")
    if name in EYES:
        return System(
            EYES[name],
            missing=f"no weights were given (--models {name}=FOLDER of a transformers model)",
        )
    if name in FOREIGN:
        return System(
            FOREIGN[name],
            missing=f"not part of terrazzo (--models {name}=obsm:KEY takes its vectors)",
        )
    raise ConfigError(f"the table names the system {name!r}, which is not known.")


def representations(adata: AnnData) -> dict[str, str]:
    """Return what is scored of ``obsm[KEY]``: the whole, and each named block where there are some."""
    found = blocks(adata, KEY)
    whole = f" [{' ; '.join(found)}]" if found else ""
    return {whole: f"{KEY}:all" if found else KEY} | {
        f", {name} block": f"{KEY}:{name}" for name in found
    }
