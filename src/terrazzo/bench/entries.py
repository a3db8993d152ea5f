"""Entries of a table: baselines, checkpoints, embeddings that the slices hold already, and those that are missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from anndata import AnnData

from terrazzo import records
from terrazzo.bench.protocols import Part
from terrazzo.bench.samples import KEY, record_of, set_record
from terrazzo.config import to_dict
from terrazzo.errors import CheckpointError, ConfigError, TerrazzoError
from terrazzo.files import hash_json
from terrazzo.models.base import FoundationModel
from terrazzo.models.baselines import KINDS, Baseline, fit_baselines
from terrazzo.models.checkpoint import VOCABULARY
from terrazzo.models.hub import is_hub_name
from terrazzo.models.loading import load
from terrazzo.slices import Slice
from terrazzo.systems import registry
from terrazzo.systems.stalign.features import Modality
from terrazzo.systems.stalign.image_baselines import ImageBaseline
from terrazzo.systems.stofm.model import SToFM
from terrazzo.tasks.transfer import Embed, Embedder, embedder_of

__all__ = [
    "ALWAYS",
    "OTHER_MODELS",
    "VISION_MODELS",
    "Entry",
    "Fit",
    "Write",
    "of_images",
    "of_model",
    "representations",
    "resolve",
    "takes_modality",
]

MOST_FITS = 3  # lists of slices of a part: with all genes, and with common ones
ALWAYS = (  # in every table
    "pca",
    "pca-nb1",
    "pca-nb3",
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
    "t4-clean",
    "t4-clean-z",
)
CELL_ENCODER = "cell-encoder"
CELL_ENCODERS = {CELL_ENCODER: "Cell encoder alone", "geneformer": "Geneformer"}
OTHER_MODELS = {  # not run by terrazzo; their vectors can take part
    "nicheformer": "Nicheformer",
    "cellplm": "CellPLM",
    "scgpt-spatial": "scGPT-spatial",
    "novae": "novae",
    "scfoundation": "scFoundation",
}
VISION_MODELS = {  # any folder in the layout of transformers is a frozen encoder of niches
    "clip": "CLIP",
    "plip": "PLIP",
    "uni": "UNI",
    "conch": "CONCH",
    "ctranspath": "CTransPath",
    "gigapath": "Prov-GigaPath",
    "hibou": "Hibou",
}
MODALITIES: dict[Modality, str] = {"both": "", "image": ", image only", "genes": ", genes only"}
STORED = "obsm:"  # before the key of an embedding that the slices hold

Write = Callable[[AnnData], None]  # writes obsm[KEY]
Fit = Callable[[Sequence[AnnData]], Write]


@dataclass(frozen=True)
class Entry:
    """One competitor of a table.

    Attributes
    ----------
    title
        Its row; several entries of one title are seeds of the same thing.
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
    joint
        It is fitted on the slice that is scored, too, without labels.
    part
        Part of the table, or patient, that its weights were given for; "": all.
    reads
        ``"image"``: its vectors come from histology alone; ``"both"``: from genes too. Without a picture it fails.
    mark
        With the title, what its finished rows are recognized by: a hash of its weights, or where it came from; "":
        its rows are not stored.
    embedder
        Embeds any slice from its genes: for probes that learn from copies of slices. None: of vectors that are there
        already, or that come from histology.
    """

    title: str
    fit: Fit | None = None
    missing: str = ""
    model: FoundationModel | None = None
    fixed: bool = False
    stored: bool = False
    joint: bool = False
    part: str = ""
    reads: Modality = "genes"
    mark: str = ""
    embedder: Embedder | None = None

    def serves(self, part: Part) -> bool:
        """Return whether its weights are for this part."""
        return self.part in ("", part.name, part.patient)


def resolve(names: Sequence[str], supplied: Sequence[str] = ()) -> list[Entry]:
    """Return the entries of a table.

    Parameters
    ----------
    names
        What the table names; the baselines of :data:`ALWAYS` are added.
    supplied
        What the user passes: ``stofm=FOLDER`` (again for another seed), ``cell-encoder=FOLDER``, ``LABEL=FOLDER`` for
        a checkpoint of any system or the folder of a transformers vision model, ``LABEL=obsm:KEY`` for an embedding
        that the slices hold already, or the name of a baseline. ``LABEL@PART=...``: weights for one part of the table,
        or for all parts of one patient. Where a table names the cell encoder and none is passed, it is that of the
        SToFM checkpoints.

    Raises
    ------
    ConfigError
        An unknown name.
    CheckpointError
        A folder that is not a checkpoint.
    """
    wanted = {*ALWAYS, *names, *supplied}
    entries = _baselines([name for name in KINDS if name in wanted])
    sources = _sources_by_label(supplied)
    if CELL_ENCODER in names and CELL_ENCODER not in sources:
        checkpoints = [one for one in sources.get("stofm", []) if not one.startswith(STORED)]
        if checkpoints:
            sources[CELL_ENCODER] = checkpoints
    for label, of_label in sources.items():
        entries += _seeds(label, of_label)
    resolved = {label.partition("@")[0] for label in sources}
    for name in dict.fromkeys(names):
        if name not in KINDS and name not in resolved:
            entries.append(_missing(name))
    return entries


def _sources_by_label(supplied: Sequence[str]) -> dict[str, list[str]]:
    """Return the sources of each label, ``LABEL=SOURCE``; names of baselines are passed over."""
    out: dict[str, list[str]] = {}
    for word in supplied:
        label, _, source = word.partition("=")
        if label and source:
            out.setdefault(label, []).append(source)
        elif word not in KINDS:
            raise ConfigError(
                f"--models {word}: pass a baseline ({', '.join(KINDS)}), NAME=CHECKPOINT or NAME=obsm:KEY, "
                "e.g. stofm=run/model."
            )
    return out


def _seeds(label_and_part: str, sources: list[str]) -> list[Entry]:
    """Return the entries of each source; rows of one title are pooled, so no title may stand for two things."""
    label, at, part = label_and_part.partition("@")
    if not label or (at and not part):
        raise ConfigError(f"--models {label_and_part}=...: write NAME=..., or NAME@PART=....")
    if label in KINDS or label in {kind.title for kind in KINDS.values()}:
        raise ConfigError(
            f"--models {label}=...: {label} is the name of a baseline; choose another."
        )
    out: list[Entry] = []
    identities = set()
    for source in sources:
        entries = _from_source(label, source)
        model = entries[0].model
        identities.add(source if model is None else model.fingerprint())
        out += [replace(entry, part=part) for entry in entries]
    if len(identities) < len(sources):
        raise ConfigError(
            f"--models {label_and_part}=... was given twice with the same weights; two seeds are two checkpoints."
        )
    return out


@dataclass(frozen=True)
class _Fitted:
    """Baselines that were fitted on the same slices."""

    slices: Sequence[AnnData | Slice]
    baselines: dict[str, Baseline]


class _SharedFit:
    """Baselines fitted together: they are asked for one after the other, with the same few lists of slices."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self._fits: list[_Fitted] = []

    def baseline(self, name: str, slices: Sequence[AnnData | Slice]) -> Baseline:
        """Return a baseline fitted on these slices."""
        known = [one for one in self._fits if one.slices is slices]
        if not known:
            known = [_Fitted(slices, self._fit_all(slices))]
            self._fits = [*self._fits[1 - MOST_FITS :], *known]
        fitted = known[0].baselines
        if name in fitted:
            return fitted[name]
        return fit_baselines([name], slices)[name]

    def _fit_all(self, slices: Sequence[AnnData | Slice]) -> dict[str, Baseline]:
        try:
            return fit_baselines(self.names, slices)
        except (
            TerrazzoError
        ):  # one of them cannot be fitted: each for itself, so that the others can
            return {}


def _baselines(names: list[str]) -> list[Entry]:
    shared = {}
    for joint in (False, True):  # on the training slices, or on the scored one as well
        together = [name for name in names if KINDS[name].joint == joint]
        shared[joint] = _SharedFit(together)

    def fit_of(name: str) -> Fit:
        def fit(slices: Sequence[AnnData]) -> Write:
            return _writer(shared[KINDS[name].joint].baseline(name, slices))

        return fit

    def embedder(name: str) -> Embedder:
        def fit(slices: Sequence[Slice]) -> Embed:
            return embedder_of(shared[False].baseline(name, slices))(slices)

        return fit

    entries = []
    for name in names:
        kind = KINDS[name]
        entry = Entry(
            kind.title,
            fit_of(name),
            joint=kind.joint,
            mark="baseline",
            embedder=None if kind.joint else embedder(name),
        )
        entries.append(entry)
    return entries


def _from_source(label: str, source: str) -> list[Entry]:
    """Return the entries of ``LABEL=SOURCE``."""
    checkpoints = _checkpoint_titles()
    title = {**checkpoints, **OTHER_MODELS, **VISION_MODELS}.get(label, label)
    if source.startswith(STORED):
        return [_stored(title, source.removeprefix(STORED))]
    folder = Path(source)
    if folder.is_dir():
        is_checkpoint = label in checkpoints or (folder / VOCABULARY).is_file()
        if not is_checkpoint:
            return [of_images(title, ImageBaseline("encoder", encoder=source))]
    elif not is_hub_name(source):
        raise CheckpointError(f"{label}={source}: there is no such folder.")
    model = load(source)
    if label == CELL_ENCODER and isinstance(model, SToFM):
        model = model.cell_model()
    if not model.trained:
        title = f"{title} (untrained)"
    return of_model(title, model)


def _checkpoint_titles() -> dict[str, str]:
    """Return the labels that stand for a checkpoint, with the titles of their rows."""
    titles = {system.name: system.title for system in registry.systems().values()}
    return {**titles, **CELL_ENCODERS}


def _stored(title: str, key: str) -> Entry:
    """Return an embedding that the slices hold as an entry, with the names of its blocks."""

    def write(adata: AnnData) -> None:
        adata.obsm[KEY] = records.vectors(adata, key)
        set_record(adata, record_of(adata, key))

    return Entry(title, _without_fit(write), fixed=True, stored=True, mark=f"{STORED}{key}")


def of_model(
    title: str, model: FoundationModel, modalities: Sequence[Modality] = tuple(MODALITIES)
) -> list[Entry]:
    """Return the entries of a model with weights: one, or one for each modality where ``embed`` takes a modality."""
    mark = model.fingerprint()
    if not takes_modality(model):
        write = _writer(model, progress=False)
        entry = Entry(
            title,
            _without_fit(write),
            model=model,
            fixed=True,
            mark=mark,
            embedder=_embedder(model),
        )
        return [entry]
    entries = []
    for modality in modalities:
        write = _writer(model, progress=False, modality=modality)
        entry = Entry(
            title + MODALITIES[modality],
            _without_fit(write),
            model=model,
            fixed=True,
            reads=modality,
            mark=mark,
            embedder=None if modality == "image" else _embedder(model, modality=modality),
        )
        entries.append(entry)
    return entries


def takes_modality(model: FoundationModel | None) -> bool:
    """Return whether a model's ``embed`` can read histology or genes alone."""
    return model is not None and "modality" in model.options_class.names()


def of_images(title: str, baseline: ImageBaseline) -> Entry:
    """Return a baseline that reads histology as an entry."""
    encoder = baseline.encoder.fingerprint() if baseline.encoder else ""
    config = hash_json(to_dict(baseline.config))
    return Entry(
        title,
        _without_fit(_writer(baseline, progress=False)),
        fixed=True,
        reads="image",
        mark=f"{baseline.name} {encoder} {config}",
    )


def _without_fit(write: Write) -> Fit:
    return lambda slices: write


def _writer(model: FoundationModel | Baseline | ImageBaseline, **options: Any) -> Write:
    """Return a function that writes a model's vectors under the table's key."""

    def write(adata: AnnData) -> None:
        model.embed(adata, key_added=KEY, **options)

    return write


def _embedder(model: FoundationModel, **options: Any) -> Embedder:
    """Return how a model embeds slices, checked when it is used."""

    def fit(slices: Sequence[Slice]) -> Embed:
        return embedder_of(model, **options)(slices)

    return fit


def _missing(name: str) -> Entry:
    """Return a named entry that nothing was passed for, with the reason."""
    checkpoints = _checkpoint_titles()
    if name in checkpoints:
        reason = f"no weights were given (--models {name}=FOLDER)"
        return Entry(checkpoints[name], missing=reason)
    if name in VISION_MODELS:
        reason = f"no weights were given (--models {name}=FOLDER of a transformers model)"
        return Entry(VISION_MODELS[name], missing=reason)
    if name in OTHER_MODELS:
        reason = f"not part of terrazzo (--models {name}=obsm:KEY takes its vectors)"
        return Entry(OTHER_MODELS[name], missing=reason)
    raise ConfigError(f"the table names the system {name!r}, which is not known.")


def representations(adata: AnnData) -> dict[str, str]:
    """Return what is scored of ``obsm[KEY]``, by the end of the row's title: the whole, and each named block."""
    names = list(records.blocks(adata, KEY))
    if not names:
        return {"": KEY}
    out = {f" [{' ; '.join(names)}]": f"{KEY}:all"}
    for name in names:
        out[f", {name} block"] = f"{KEY}:{name}"
    return out
