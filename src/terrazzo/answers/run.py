"""Regions and types of slices, in one call."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData

from terrazzo import records
from terrazzo.answers.data import Data, open_all
from terrazzo.answers.finding import Found, Settings, find
from terrazzo.answers.levels import tree_levels
from terrazzo.answers.markers import Tested, marker_genes
from terrazzo.answers.numbers import halves
from terrazzo.answers.projection import Projection
from terrazzo.answers.result import AGREEMENT, Answer, check_names, names_from_csv, region_names
from terrazzo.answers.shares import compare_groups, shares_of
from terrazzo.answers.sources import Embedded, Fitted, Source, candidates
from terrazzo.arrays import AnyFloats, Ints
from terrazzo.errors import ConfigError, InputError, TerrazzoWarning
from terrazzo.models.base import FoundationModel
from terrazzo.models.baselines import KINDS, Baseline
from terrazzo.models.loading import load
from terrazzo.progress import Progress
from terrazzo.slices import Slice

__all__ = ["regions", "types"]

Kind = Literal["region", "type"]

DISAGREE = 0.6  # mean ARI of two partitions below which a warning is due

ONE_SLICE = 0.98  # share of a region's cells in one slice, from which on it is said

# what a cell without counts has
OF_EMPTY = {"region": "the region of their surroundings", "type": "a type that means nothing"}

MARKER_SPLIT = 11  # seed of the halves that markers are tested on


@dataclass(frozen=True)
class _Ask:
    """What a caller wants; see :func:`regions`."""

    kind: Kind
    model: Any
    k: int | str
    names: Mapping[str, str] | str | Path | None
    to: Answer | Projection | str | Path | None
    group: str | None
    donor: str | None
    key_added: str | None
    n_seeds: int
    bootstraps: int
    seed: int
    progress: bool | None


def regions(
    data: Any,
    *,
    model: Any = "auto",
    k: int | Literal["auto"] = "auto",
    names: Mapping[str, str] | str | Path | None = None,
    to: Answer | Projection | str | Path | None = None,
    group: str | None = None,
    donor: str | None = None,
    key_added: str | None = None,
    n_seeds: int = 5,
    bootstraps: int = 16,
    seed: int = 0,
    progress: bool | None = None,
    **slice_options: Any,
) -> Answer:
    """Find tissue regions, how sure they are, and which genes mark them: of one slice, or the same in several.

    Cells get states by their own expression; a cell's vector is how much of each state there is in rings around it.
    Ten partitions (mixtures from two starts for each of five seeds) vote.

    Parameters
    ----------
    data
        AnnData, SpatialData, path, or a list of these; raw counts and coordinates. Written to.
    model
        Where vectors come from. ``"auto"``: states and rings, fitted on these slices. Or a checkpoint (folder or name),
        a loaded model, the name of a baseline (``"t3"``), or a key of ``obsm``.
    k
        Number of regions; ``"auto"``: where a score on the other half of the counts bends.
    names
        Names for regions: a mapping from ``"R1"``, or a table of two columns that a person has edited.
    to
        An earlier answer (or its folder): its regions are found again in these slices.
    group
        Column of ``obs`` or entry of ``uns`` with the group of a donor; shares are compared between groups.
    donor
        Column of ``obs`` or entry of ``uns`` with the donor; None: ``donor``, ``donor_id`` or ``patient``, else every
        slice is one.
    key_added
        Column of ``obs``; None: ``"terrazzo_region"``.
    n_seeds
        Sets of states; each gives two partitions.
    bootstraps
        Draws of genes for the agreement of each region; 0: none.
    seed
        First of the seeds.
    progress
        Show bars; None: on a terminal.
    **slice_options
        Of :meth:`terrazzo.Slice.from_anndata` and :class:`terrazzo.slices.Choices`; among them ``slice_key``.

    Returns
    -------
    The answer. Slices get ``obs[key]``, ``obs[key + "_agreement"]`` (reproducibility, which is not the probability of
    being right) and a record in ``uns["terrazzo"]``.

    Raises
    ------
    InputError
        Slices that cannot be used; too few cells, or cells that are all alike; a column of the caller's own that would
        be overwritten; genes that do not fit ``to``.
    ConfigError
        An impossible setting.
    """
    ask = _Ask(
        "region", model, k, names, to, group, donor, key_added, n_seeds, bootstraps, seed, progress
    )
    return _answer(data, ask, slice_options)


def types(
    data: Any,
    *,
    model: Any = "auto",
    k: int | Literal["auto"] = "auto",
    names: Mapping[str, str] | str | Path | None = None,
    to: Answer | Projection | str | Path | None = None,
    group: str | None = None,
    donor: str | None = None,
    key_added: str | None = None,
    n_seeds: int = 5,
    bootstraps: int = 16,
    seed: int = 0,
    progress: bool | None = None,
    **slice_options: Any,
) -> Answer:
    """Find cell types: as :func:`regions`, by the cell alone, without its surroundings.

    Parameters
    ----------
    data, model, k, names, to, group, donor, key_added, n_seeds, bootstraps, seed, progress, **slice_options
        As for :func:`regions`; of a model the block of the cell itself is used. ``key_added``: ``"terrazzo_type"``.

    Returns
    -------
    The answer.

    Raises
    ------
    InputError, ConfigError
        As :func:`regions`.
    """
    ask = _Ask(
        "type", model, k, names, to, group, donor, key_added, n_seeds, bootstraps, seed, progress
    )
    return _answer(data, ask, slice_options)


def _answer(data: Any, ask: _Ask, slice_options: dict[str, Any]) -> Answer:
    k = _number(ask.k)
    if ask.n_seeds < 1 or ask.bootstraps < 0:
        raise ConfigError("n_seeds must be at least 1, and bootstraps at least 0.")
    named = names_from_csv(ask.names) if isinstance(ask.names, str | Path) else ask.names
    if named:
        check_names(named, ask.kind, k)
    opened = open_all(data, ask.donor, slice_options)
    key = ask.key_added or f"terrazzo_{ask.kind}"
    opened.check_columns(key, AGREEMENT, ("regions", "types"))
    opened.check_counts()
    if ask.kind == "region":
        opened.check_places()
    groups = _groups(opened, ask.group)
    if ask.to is not None:
        if k is not None or ask.model != "auto":
            raise ConfigError(
                "number and vectors are those of the earlier answer: pass to= without k= and model=."
            )
        answer = _projected(opened, ask, key)
    else:
        answer = _found(opened, ask, key, k)
    empty = opened.empty(OF_EMPTY[ask.kind])
    answer = replace(answer, notes=(*answer.notes, *empty))
    if groups:
        comparison = compare_groups(answer.shares, groups, ask.kind)
        notes = (*answer.notes, *_caveats(groups))
        answer = replace(answer, comparison=comparison, notes=notes)
    if named:
        answer = answer.renamed(named)
    else:
        answer.write()
    opened.put_back()
    return answer


def _number(k: int | str) -> int | None:
    if k == "auto":
        return None
    if isinstance(k, bool) or not isinstance(k, Integral) or k < 1:
        raise ConfigError(f'k is {k!r}; it must be a whole number from 1, or "auto".')
    return int(k)


def _groups(opened: Data, group: str | None) -> dict[str, str]:
    """Return the group of every donor."""
    if group is None:
        return {}
    groups: dict[str, str] = {}
    for piece in opened.pieces:
        values = []
        if group in piece.adata.obs:
            values = [str(value) for value in piece.adata.obs[group].dropna().unique()]
        elif group in piece.adata.uns:
            values = [str(piece.adata.uns[group])]
        if len(values) != 1:
            found = ", ".join(values[:5]) or "none"
            raise InputError(f"{piece.name} must have one value of {group!r}, and has: {found}.")
        before = groups.setdefault(piece.donor, values[0])
        if before != values[0]:
            raise InputError(
                f"donor {piece.donor!r} is of the groups {before!r} and {values[0]!r}; a donor must be of one."
            )
    if len(set(groups.values())) < 2:
        only = next(iter(groups.values()))
        raise InputError(f"all donors are of the group {only!r}; there is nothing to compare.")
    return groups


def _caveats(groups: dict[str, str]) -> list[str]:
    """Return what a comparison of groups does not show."""
    sizes: dict[str, int] = {}
    for group in groups.values():
        sizes[group] = sizes.get(group, 0) + 1
    in_words = ", ".join(f"{group}: {n}" for group, n in sorted(sizes.items()))
    notes = [
        f"groups are compared by donors ({in_words}), not by cells; shares of a donor add up to 1, so that where one "
        "grows others shrink; groups that differ in other ways (age, batch) differ in shares, too."
    ]
    single = sorted(group for group, n in sizes.items() if n == 1)
    if single:
        notes.append(
            f"nothing could be tested: one donor is too few ({', '.join(single)}); it takes two in each group."
        )
    return notes


# ---- where vectors come from


def _sources(opened: Data, ask: _Ask) -> list[Source]:
    """Return the source of vectors that a caller named, or those that are to be tried."""
    if isinstance(ask.model, str) and ask.model == "auto":
        return candidates(ask.kind)
    return [_named_source(opened, ask)]


def _named_source(opened: Data, ask: _Ask) -> Source:
    model = ask.model
    purpose: Any = "niche" if ask.kind == "region" else "own"
    adatas = opened.adatas
    if isinstance(model, str) and model.partition(":")[0] in adatas[0].obsm:
        arrays = [records.vectors(adata, model, purpose=purpose) for adata in adatas]
        return Embedded(f"obsm[{model!r}]", lambda i, _: np.asarray(arrays[i]), refits=False)
    if isinstance(model, str) and model in KINDS:
        model = Baseline(model)
    if isinstance(model, Baseline):
        baseline = model
        if not baseline.fitted_on:
            baseline.fit(opened.slices)
        return Embedded(baseline.title, lambda _, tissue: baseline.transform(tissue), refits=True)
    if isinstance(model, str | Path):
        model = load(model)
    if not isinstance(model, FoundationModel):
        raise ConfigError(f"model must be a name, a folder or a model, not {type(model).__name__}.")
    for tissue in opened.slices:
        model.check_depth(tissue)
    return Embedded(repr(model), _embed_with(model, adatas, purpose), refits=True)


def _embed_with(model: FoundationModel, adatas: Sequence[AnnData], purpose: Any) -> Any:
    """Return a function that embeds a slice with a model, and takes the block that the purpose needs."""

    def embed(number: int, tissue: Slice) -> AnyFloats:
        options = model.options_class()
        prepared = model.prepare(tissue, options, obs=adatas[number].obs)
        embedding = prepared.embed(Progress(False))
        no_cell = np.zeros_like(embedding.empty)
        embedding = replace(embedding, empty=no_cell)  # not warned of: it may be half of the counts
        holder = AnnData(obs=pd.DataFrame(index=adatas[number].obs_names))
        model.write(holder, tissue, prepared, embedding, "X")
        return records.vectors(holder, "X", purpose=purpose)

    return embed


# ---- found here


def _found(opened: Data, ask: _Ask, key: str, k: int | None) -> Answer:
    sources = _sources(opened, ask)
    seeds = tuple(range(ask.seed, ask.seed + ask.n_seeds))
    is_region = ask.kind == "region"
    settings = Settings(k, seeds, 18 if is_region else 0, 1000, ask.bootstraps)
    slices = opened.slices
    found = find(slices, sources, settings, ask.progress)
    source = found.source
    assert source is not None
    notes = _notes(found, opened, ask)
    with Progress(ask.progress).stage("marker genes", None):
        markers, note = _markers(opened, source, settings, found, ask)
    if note:
        notes.append(note)
    names = region_names(ask.kind, found.k, markers)
    shares = shares_of(found.labels, names, opened.names, opened.donors, ask.kind)
    notes += _in_one_slice(shares, ask.kind)
    vectors = np.concatenate(found.fitted.views[0])
    all_levels = tree_levels(vectors, np.concatenate(found.labels), found.k)
    ends = np.cumsum([tissue.n_cells for tissue in slices])
    projection = Projection.of(ask.kind, names, found, settings.neighbors, settings.smooth_from)
    return Answer(
        ask.kind,
        key,
        opened.adatas,
        opened.names,
        opened.donors,
        names,
        found,
        markers,
        shares,
        np.split(all_levels, ends[:-1]),
        pd.DataFrame(),
        source.name,
        tuple(notes),
        {"seeds": [int(seed) for seed in seeds], "chosen": k is None, "why": _why(ask, sources)},
        projection,
    )


def _why(ask: _Ask, sources: Sequence[Source]) -> str:
    """Return why these vectors were taken, in words."""
    if len(sources) > 1:
        return f"no weights were named; of {len(sources)} recipes without weights it explains most of held-out counts"
    if isinstance(ask.model, str) and ask.model == "auto":
        return "no weights were named"
    return "as model= says"


def _notes(found: Found, opened: Data, ask: _Ask) -> list[str]:
    """Return what a reader must know; warn where the seeds disagree."""
    notes = []
    if len(found.curve):
        by_number = found.curve.set_index("k")["stability"]
        plausible = []
        for number in (found.k - 1, found.k + 1):
            if number in by_number.index:
                plausible.append(f"{number} (stability {by_number[number]:.2f})")
        own = by_number.get(found.k, np.nan)
        notes.append(
            f"{found.k} {ask.kind}s: where the score of held-out counts bends (stability {own:.2f}); also plausible: "
            f"{', '.join(plausible)}."
        )
    if found.similarity < DISAGREE:
        message = (
            f"the seeds disagree (mean ARI {found.similarity:.2f} between two partitions): look at the reproducibility "
            "before you use a border."
        )
        warnings.warn(message, TerrazzoWarning, stacklevel=5)
        notes.append(message)
    if len(opened.pieces) > 1:
        notes.append(
            f"share of the variance between slices: {found.fitted.between_before:.2f} in components of expression, "
            f"{found.fitted.between_after:.2f} in the vectors."
        )
    if found.by_itself:
        notes.append(
            "every slice was standardized by itself, for otherwise regions would follow the slices."
        )
    return notes


def _in_one_slice(shares: pd.DataFrame, kind: str) -> list[str]:
    """Return a note for each region that is found in one of several slices only."""
    if shares["slice"].nunique() < 2:
        return []
    notes = []
    for name, part in shares.groupby(kind, sort=False):
        total = part["n_cells"].sum()
        top = part.loc[part["n_cells"].idxmax()]
        if total and top["n_cells"] / total >= ONE_SLICE:
            notes.append(f"{name} is found in {top['slice']} only.")
    if len(notes) > shares[kind].nunique() / 2:
        message = (
            f"{len(notes)} {kind}s are in one slice only: these slices differ by more than their {kind}s; look at each "
            "by itself, too."
        )
        warnings.warn(message, TerrazzoWarning, stacklevel=5)
        notes.insert(0, message)
    return notes


# ---- markers


def _markers(
    opened: Data, source: Source, settings: Settings, found: Found, ask: _Ask
) -> tuple[pd.DataFrame, str]:
    """Return the marker genes, and a note on how they were tested.

    Regions are found again in one half of the counts, and the other half is tested.
    """
    slices = opened.slices
    labels = found.labels
    tested = slices
    note = "markers were tested on the counts that the regions were found with: the p-values are too small."
    if source.refits:
        pairs = [halves(tissue, MARKER_SPLIT) for tissue in slices]
        first = [pair[0] for pair in pairs]
        tested = [pair[1] for pair in pairs]
        fitted = source.fit(first, settings.seeds[:1])
        labels = _again(fitted, found)
        note = (
            f"markers: {ask.kind}s were found again in one half of the counts, and the other half was tested; ranked "
            "by effect size (column auc)."
        )
    return _tested(tested, labels, opened.donors, found.k), note


def _tested(
    slices: Sequence[Slice], labels: Sequence[Ints], donors: Sequence[str], k: int
) -> pd.DataFrame:
    """Return the marker genes by their symbols."""
    by_slice = []
    for tissue, own, donor in zip(slices, labels, donors, strict=True):
        by_slice.append(Tested(tissue, own, donor))
    table = marker_genes(by_slice, k)
    symbols = _symbols(slices[0])
    table["gene"] = [symbols.get(gene, gene) for gene in table["gene"]]
    return table


def _again(fitted: Fitted, found: Found) -> list[Ints]:
    """Return the regions found in other vectors of the same cells, numbered as those of ``found``."""
    from terrazzo.answers.partition import fit_mixture
    from terrazzo.tasks.clustering import matched

    vectors = np.concatenate(fitted.views[0])
    known = np.concatenate(found.labels)
    mixture, _ = fit_mixture(vectors, known, 0)
    run = mixture(vectors)
    labels = matched(run, known)[run]
    ends = np.cumsum([len(own) for own in found.labels])
    return np.split(labels, ends[:-1])


def _symbols(tissue: Slice) -> dict[str, str]:
    """Return the symbol of each gene that is named by an id."""
    pairs = zip(tissue.gene_ids, tissue.gene_symbols, strict=True)
    return {str(gene): str(symbol) for gene, symbol in pairs if gene and symbol}


# ---- found before


def _projected(opened: Data, ask: _Ask, key: str) -> Answer:
    """Find the regions of an earlier answer in slices."""
    before = ask.to
    projection = before
    if isinstance(before, Answer):
        projection = before.projection
    elif isinstance(before, str | Path):
        projection = Projection.load(before)
    if not isinstance(projection, Projection):
        raise ConfigError(
            "the earlier answer was made of a model's vectors; only regions of expression itself can be found again."
        )
    if projection.kind != ask.kind:
        raise ConfigError(f"the earlier answer has {projection.kind}s, not {ask.kind}s.")
    labels = []
    agreement = []
    certainty = []
    for piece in opened.pieces:
        own, share, sure = projection(piece.tissue)
        labels.append(own)
        agreement.append(share)
        certainty.append(sure)
    k = len(projection.names)
    names = list(projection.names)
    fitted = Fitted([], None, 0.0, 0.0)
    empty = pd.DataFrame({"k": [], "score": [], "stability": []})
    found = Found(
        labels, agreement, certainty, np.full(k, np.nan), k, empty, np.nan, fitted, [], False
    )
    markers = _tested(opened.slices, labels, opened.donors, k)
    notes = [
        f"the {ask.kind}s of an earlier answer, found again; markers are tested on the same counts, so that their "
        "p-values are too small."
    ]
    return Answer(
        ask.kind,
        key,
        opened.adatas,
        opened.names,
        opened.donors,
        names,
        found,
        markers,
        shares_of(labels, names, opened.names, opened.donors, ask.kind),
        [np.zeros((len(own), 1), dtype=np.int16) for own in labels],
        pd.DataFrame(),
        "an earlier answer",
        tuple(notes),
        {"projected": True, "why": "as to= says"},
        projection,
    )
