"""The stage of training of completion: its start, its loader of views and its objective."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from terrazzo.arrays import Floats, Int32s, Ints, Vectors
from terrazzo.config import from_dict, to_dict
from terrazzo.corpus.loader import ItemLoader, Members, Shard, Stream
from terrazzo.corpus.store import Corpus
from terrazzo.errors import ConfigError, TerrazzoWarning
from terrazzo.files import hash_json, whole_file
from terrazzo.genes.matching import match_genes
from terrazzo.models.base import FoundationModel
from terrazzo.models.card import LEAST_DEPTH
from terrazzo.models.loading import load
from terrazzo.models.states import standardized_alone
from terrazzo.progress import Progress
from terrazzo.slices import Slice
from terrazzo.systems.completion.config import CompletedConfig
from terrazzo.systems.completion.model import Completed, PreparedCompleted
from terrazzo.systems.completion.network import CompletionNetwork, RingMeans
from terrazzo.systems.completion.panels import Counted, Panel, numbered, panel_of
from terrazzo.systems.completion.recipe import CompletionRecipe
from terrazzo.systems.completion.reference import fit_reference
from terrazzo.systems.completion.rings import ring_matrix
from terrazzo.systems.completion.states import fit_states
from terrazzo.systems.completion.targets import Targets, clean_targets
from terrazzo.systems.completion.views import (
    Draw,
    View,
    degraded,
    draw_view,
    drawn,
    drawn_slice,
    everything,
    whole,
)
from terrazzo.training.recipe import Recipe
from terrazzo.training.stage import Movable, Objective, Stage

__all__ = ["Batch", "Complete", "Completion", "Tile", "studies_of", "tiles_of"]

MAX_TILES = 128  # that are kept in memory

MIN_PANEL = 0.05  # share of a slice's genes that another slice's panel must have to be taken

NO_FOLDER = 2**31  # folders up: none

FOLDER = ", from "  # before the folder in the name of a study

WHOLE = 0  # number of the view that keeps everything; the others are degraded


@dataclass
class Batch(Movable):
    """A view of one slice, and what it is to be completed to; tensors as in :class:`View` and :class:`Targets`."""

    values: Tensor
    genes: Tensor
    depth: Tensor
    base: Tensor
    inside: Tensor
    rings: Tensor
    own_target: Tensor
    own_weight: Tensor
    ring_target: Tensor
    state_target: Tensor
    basis: int
    ids: list[str]

    def __len__(self) -> int:
        return 1


class Completion(Objective):
    """Squared error of clean components and their ring means, and divergence of the states in each ring.

    Parameters
    ----------
    model
        The completed model.
    recipe
        ``recipe.objective`` has the weights.
    """

    recipe: CompletionRecipe
    network: CompletionNetwork

    def __init__(self, model: FoundationModel, recipe: CompletionRecipe) -> None:
        super().__init__(model, recipe)
        self.network = model.module.completion  # type: ignore[assignment]

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the parts; in validation also those of the estimate that training starts from."""
        settings = self.recipe.objective
        n_cells = len(batch.values)

        def ring_means(values: Tensor) -> Tensor:
            means = torch.sparse.mm(batch.rings, values)  # rings one below the other
            return torch.cat([values, *means.split(n_cells)], dim=1)

        predicted = self.network(
            batch.values, batch.genes, batch.depth, batch.base, ring_means, batch.basis
        )
        inside = batch.inside
        own = self._error(predicted.own, batch)
        rings = self._ring_error(ring_means, predicted.own, batch)
        states = _divergence(predicted.states[inside], batch.state_target[inside])
        loss = settings.own_weight * own + settings.ring_weight * rings
        loss = loss + settings.state_weight * states
        parts = {"loss": loss, "own": own, "rings": rings, "states": states}
        if not self.training:
            start = self.network.estimate(batch.values, batch.genes)
            parts["own_estimate"] = self._error(start, batch)
            parts["own_zero"] = self._error(torch.zeros_like(start), batch)
            parts["rings_estimate"] = self._ring_error(ring_means, start, batch)
            parts["rings_zero"] = batch.ring_target[inside].square().mean()
        return parts

    def _error(self, own: Tensor, batch: Batch) -> Tensor:
        """Return the mean squared error of components, bases weighted."""
        squared = (own - batch.own_target)[batch.inside].square().mean(dim=0)
        of_basis = squared.unflatten(0, (self.network.config.n_bases, -1)).mean(dim=1)
        return (of_basis * batch.own_weight).sum() / batch.own_weight.sum()

    def _ring_error(self, ring_means: RingMeans, own: Tensor, batch: Batch) -> Tensor:
        """Return the mean squared error of the ring means of components of one basis, in units of their sd."""
        of_basis = self.network.of_basis(own, batch.basis)
        of_basis = of_basis[:, : self.network.config.n_smoothed]
        means = ring_means(of_basis) / self.network.ring_scale[batch.basis]
        return (means - batch.ring_target)[batch.inside].square().mean()


def _divergence(logits: Tensor, shares: Tensor) -> Tensor:
    """Return the mean Kullback-Leibler divergence of predicted states from the shares; empty rings count as 0."""
    logs = log_softmax(logits, dim=-1)
    known = torch.xlogy(shares, shares)
    return (known - shares * logs).sum(dim=-1).mean()


def studies_of(corpus: Corpus, names: Sequence[str], most: int) -> dict[str, str]:
    """Return the study of each slice: its technology, organism and tissue, and the folder that it came from.

    Where each slice has a folder of its own (as vendors write them), or there are more than ``most`` studies, the
    folder above counts in its place, and then none.
    """
    studies: dict[str, str] = {}
    for folders_up in (1, 2, NO_FOLDER):
        for name in names:
            row = corpus.row(name)
            facts = [str(row[column]) for column in ("technology", "organism", "tissue")]
            parents = Path(str(row["source"])).parents
            folder = parents[folders_up - 1] if folders_up <= len(parents) else ""
            studies[name] = f"{', '.join(facts)}{FOLDER}{folder}"
        n_studies = len(set(studies.values()))
        if n_studies <= most and (n_studies < len(names) or n_studies == 1):
            break
    return studies


def _shown(study: str) -> str:
    """Return a study without the folders that its own is in."""
    facts, _, folder = study.partition(FOLDER)
    return f"{facts}, {Path(folder).name}"


class Complete(Stage[CompletionRecipe, Completed]):
    """Training of completion: degraded views are completed to the clean components of their slice."""

    bases: Mapping[str, int] = {}  # number of each study's basis, where they were fitted here

    recipe_class: ClassVar[type[Recipe]] = CompletionRecipe
    objective_class: ClassVar[type[Objective]] = Completion
    adapting: ClassVar[Mapping[str, Any]] = {"base": "", "add_bases": True}

    @cached_property
    def studies(self) -> dict[str, str]:
        """Study of each slice that is read."""
        names: list[str] = []
        for split in self.splits():
            names += self.members(split)
        most = self.recipe.model.sizes.n_bases
        return studies_of(self.corpus, names, most)

    def initial_model(self) -> Completed:
        """Return the model that training starts from, with the components of the training slices.

        Raises
        ------
        ConfigError
            A checkpoint of another kind; a base that is completed already, or options that it does not have.
        """
        source = self.recipe.model
        if source.checkpoint:
            loaded = load(source.checkpoint)
            if not isinstance(loaded, Completed):
                raise ConfigError(
                    f"{source.checkpoint} holds a {loaded.title}; stage {self.recipe.stage!r} continues a completed "
                    "model. Name it in model.base to complete it."
                )
            if source.add_bases:
                self._fit_bases(loaded)
            return loaded
        model = self._around(load(source.base)) if source.base else self._alone()
        self._fit_bases(model)
        return model

    def _fit_bases(self, model: Completed) -> None:
        """Fit a basis for each study of the training slices."""
        ids = self.members("train")

        def slices() -> Iterator[Counted]:
            for name in ids:
                yield self.counted(name, model)

        self.bases = fit_reference(model.network, slices, self.recipe.seed)

    def _alone(self) -> Completed:
        config = CompletedConfig(self.recipe.model.sizes)
        seed = self.recipe.seed
        origin = {"weights": "random", "seed": seed}
        return Completed(config, self.corpus.vocabulary(), seed=seed, provenance=origin)

    def _around(self, base: FoundationModel) -> Completed:
        source = self.recipe.model
        if isinstance(base, Completed):
            raise ConfigError(
                f"{source.base} is completed already: name it in model.checkpoint to train it further."
            )
        options = from_dict(base.options_class, source.base_options, "model.base_options")
        first = self.corpus.slice(self.members("train")[0])
        width = base.prepare(first, options).embed().vectors.shape[1]
        config = CompletedConfig(
            source.sizes, base.model_type, to_dict(base.config), width, source.base_options
        )
        origin = {
            "weights": "random",
            "seed": self.recipe.seed,
            "before": json.dumps(base.provenance),
        }
        model = Completed(config, base.vocabulary, seed=self.recipe.seed, provenance=origin)
        assert model.base is not None
        model.base.module.load_state_dict(base.module.state_dict())
        return model

    def weight_folders(self) -> list[str]:
        """Return the folders whose weights the initial model has; "" for one that is not set."""
        return [self.recipe.model.checkpoint, self.recipe.model.base]

    def counted(self, name: str, model: Completed) -> Counted:
        """Return one slice of the corpus, its genes by the tokens of a model."""
        tissue = self.corpus.slice(name)
        match = match_genes(model.vocabulary, tissue, None, None)
        counts, tokens = numbered(tissue.counts, match.column_token)
        totals = tissue.total_counts.astype(np.float64)
        return Counted(counts, tokens, totals, tissue.coords, self.studies[name])

    def prepare(self) -> None:
        """Embed all views with the base, once."""
        if self.model.base is None:
            return
        bars = Progress(self.progress)
        loaders = [self.loader(split) for split in self.splits()]
        n_views = sum(loader.n_views for loader in loaders)
        with bars.stage("embedding views", n_views, "views") as advance:
            for loader in loaders:
                for number in range(loader.n_tiles):
                    loader.store(number, advance)

    def finish(self, model: Completed) -> None:
        """Fit the states again, on the components that the trained network predicts of the training slices."""
        of_basis: dict[int, list[tuple[Vectors, Floats]]] = {}
        for name in self.members("train"):
            tissue = self.corpus.slice(name)
            match = match_genes(model.vocabulary, tissue, None, None)
            prepared = PreparedCompleted(model, tissue, match, model.prepared_base(tissue))
            panel, _ = prepared.panel()
            basis, own = prepared.components(panel)
            of_basis.setdefault(basis, []).append((own, tissue.coords))
        for basis, per_slice in of_basis.items():
            fit_states(model.network, basis, per_slice, self.recipe.seed)
        least = model.provenance.get(LEAST_DEPTH)
        if isinstance(least, int | float):  # views are shallower than their slices
            thinned = least * self.recipe.objective.counts_low
            model.provenance = {**model.provenance, LEAST_DEPTH: thinned}

    def loader(self, split: str, shard: Shard = Shard()) -> ViewLoader:
        """Return the loader of views of a split; in validation of each tile all of it, and one degraded view."""
        return ViewLoader(self, split, shard)

    def describe(self) -> dict[str, str]:
        """Return the objective for the model card."""
        lines = [f"{basis} {_shown(study)}" for study, basis in self.bases.items()]
        facts = {"objective": "degraded views to clean components and states"}
        if lines:
            facts["bases"] = "; ".join(lines)
        if self.recipe.model.base:
            facts["before"] = str(self.model.provenance["before"])
        return facts


@dataclass(frozen=True)
class Tile:
    """A part of a slice that is read at a time: the slice, and the rows; None: all."""

    name: str
    rows: Ints | None = None


def tiles_of(name: str, coords: Floats, max_cells: int) -> list[Tile]:
    """Return a slice in tiles of at most ``max_cells`` neighboring cells, halved along the longer side until they are.

    Parameters
    ----------
    name
        The slice.
    coords
        ``(n_cells, 2)``.
    max_cells
        Cells of a tile.
    """
    if len(coords) <= max_cells:
        return [Tile(name)]
    waiting = [np.arange(len(coords))]
    tiles = []
    while waiting:
        rows = waiting.pop()
        if len(rows) <= max_cells:
            tiles.append(Tile(name, np.sort(rows)))
            continue
        part = coords[rows]
        longer = int(np.argmax(np.ptp(part, axis=0)))
        order = np.argsort(part[:, longer], kind="stable")
        middle = len(rows) // 2
        waiting += [rows[order[middle:]], rows[order[:middle]]]
    return tiles


class ViewLoader(ItemLoader[Batch]):
    """Views of tiles of slices, one a batch; every study has as many in an epoch.

    Parameters
    ----------
    stage
        Recipe, corpus and model.
    split
        Only slices of this split are read.
    shard
        This process.
    """

    def __init__(self, stage: Complete, split: str, shard: Shard) -> None:
        recipe = stage.recipe
        self._stage = stage
        self._is_training = split == "train"
        members = Members(stage.corpus, split, stage.share(split))
        self._tiles: list[Tile] = []
        studies: dict[str, list[int]] = {}
        for name in members.ids:
            of_slice = tiles_of(name, stage.corpus.coords(name), recipe.data.max_cells)
            first = len(self._tiles)
            numbers = range(first, first + len(of_slice))
            studies.setdefault(stage.studies[name], []).extend(numbers)
            self._tiles += of_slice
        self._studies = list(studies.values())
        self._views = recipe.data.views
        self._distinct = recipe.data.distinct if self._is_training else 2
        n_items = 2 * len(self._tiles)
        if self._is_training:
            n_items = self._views * len(self._studies)
        self._read_tile = lru_cache(maxsize=MAX_TILES)(self._make_tile)
        super().__init__(
            n_items,
            1,
            Stream.SUBSLICE_ORDER,
            self._read_view,
            members=members,
            shard=shard,
            seed=recipe.seed,
            settings={
                "views": self._views,
                "distinct": self._distinct,
                "max_cells": recipe.data.max_cells,
            },
        )

    @property
    def n_tiles(self) -> int:
        """How many tiles the slices are cut into."""
        return len(self._tiles)

    @property
    def n_views(self) -> int:
        """How many different views there are."""
        return self.n_tiles * self._distinct

    def _read_view(self, numbers: Ints, epoch: int, step: int) -> Batch:
        number = int(numbers[0])
        if self._is_training:
            study, turn = divmod(number, self._views)
            rng = self.rng(Stream.HIDING, epoch, study, turn)
            tiles = self._studies[study]
            tile = tiles[int(rng.integers(len(tiles)))]
            view_number = int(rng.integers(self._distinct))
        else:
            tile, view_number = divmod(number, 2)
            rng = self.rng(Stream.HIDING, 0, tile, view_number)
        one = self._read_tile(tile)
        draw = self._draw(tile, view_number, one.panel)
        n_genes = self._stage.model.config.completion.n_genes
        seen = drawn(one.panel, draw)
        if self._is_training:
            view = degraded(seen, n_genes, self._stage.recipe.objective, rng)
        else:
            view = whole(seen, n_genes)
        base = self._base(tile, view_number, len(seen.totals))
        return _batch(view, base, one, self._tiles[tile].name)

    def _draw(self, tile: int, view_number: int, panel: Panel) -> Draw:
        """Return what a view of a tile keeps."""
        if view_number == WHOLE:
            return everything(panel)
        settings = self._stage.recipe.objective
        split = int(self._is_training)
        rng = self.rng(Stream.HIDING, split, tile, view_number, 1)
        other = None
        if self._is_training and rng.random() < settings.panels:
            tiles = self._studies[int(rng.integers(len(self._studies)))]
            other = self._read_tile(tiles[0]).panel.genes
            shared = np.isin(panel.genes, other).mean()
            if shared < MIN_PANEL:
                other = None
        return draw_view(panel, settings, rng, other)

    def _make_tile(self, number: int) -> _ReadTile:
        """Return a tile's counts, its targets and its rings."""
        model = self._stage.model
        tile = self._tiles[number]
        one = self._stage.counted(tile.name, model)
        panel = panel_of(one, model.network.tokens.cpu().numpy())
        if tile.rows is not None:
            panel = panel.take(tile.rows)
        return _ReadTile(panel, clean_targets(model.network, panel), ring_matrix(panel.coords))

    # ---- vectors of the base

    def store(self, number: int, advance: Callable[[int], None]) -> None:
        """Embed all views of a tile with the base, unless they are stored."""
        missing = [k for k in range(self._distinct) if not self._place(number, k).exists()]
        advance(self._distinct - len(missing))
        if not missing:
            return
        stage = self._stage
        tile = self._tiles[number]
        tissue = stage.corpus.slice(tile.name)
        match = match_genes(stage.model.vocabulary, tissue, None, None)
        if tile.rows is not None:
            tissue = _part(tissue, tile.rows)
        panel = self._read_tile(number).panel
        tokens = stage.model.network.tokens.cpu().numpy()[panel.genes]
        columns = _columns_of(match.column_token, tokens)
        others = np.flatnonzero(~np.isin(match.column_token, tokens))
        for view_number in missing:
            draw = self._draw(number, view_number, panel)
            seen = drawn_slice(tissue, columns, others, panel, draw)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", TerrazzoWarning)  # few genes, few counts: by design
                prepared = stage.model.prepared_base(seen)
                assert prepared is not None
                vectors = standardized_alone(prepared.embed().vectors)
            place = self._place(number, view_number)
            place.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(place) as draft, draft.open("wb") as file:
                np.save(file, vectors.astype(np.float16))
            advance(1)

    @cached_property
    def _store(self) -> Path:
        """Folder of the stored vectors: another base, corpus, seed or way of degrading never reads them."""
        stage = self._stage
        recipe = stage.recipe
        base = stage.model.base
        assert base is not None
        views = {
            "base": base.fingerprint(),
            "options": recipe.model.base_options,
            "network": stage.model.network.tokens.tolist(),
            "objective": to_dict(recipe.objective),
            "max_cells": recipe.data.max_cells,
            "seed": recipe.seed,
            "members": self._tile_names(),
            "training": self._is_training,
        }
        return stage.cache_folder / f"views-{hash_json(views)[:24]}"

    def _tile_names(self) -> list[str]:
        return [tile.name for tile in self._tiles]

    def _place(self, number: int, view_number: int) -> Path:
        return self._store / f"{number}-{view_number}.npy"

    def _base(self, number: int, view_number: int, n_cells: int) -> Vectors:
        """Return the base's vectors of a view."""
        if self._stage.model.base is None:
            return np.zeros((n_cells, 0), dtype=np.float32)
        stored = np.load(self._place(number, view_number), allow_pickle=False)
        return np.asarray(stored, dtype=np.float32)


@dataclass(frozen=True)
class _ReadTile:
    panel: Panel
    targets: Targets
    rings: Tensor


def _part(tissue: Slice, rows: Ints) -> Slice:
    """Return some cells of a slice."""
    lattice = None if tissue.lattice is None else tissue.lattice[rows]
    return replace(
        tissue,
        counts=tissue.counts[rows],
        coords=tissue.coords[rows],
        obs_names=tissue.obs_names[rows],
        lattice=lattice,
    )


def _columns_of(column_token: Int32s, tokens: Ints) -> Ints:
    """Return the first column of a slice with each token."""
    found, first = np.unique(column_token, return_index=True)
    return first[np.searchsorted(found, tokens)]


def _batch(view: View, base: Vectors, one: _ReadTile, name: str) -> Batch:
    targets = one.targets
    return Batch(
        torch.from_numpy(view.values),
        torch.from_numpy(view.genes),
        torch.from_numpy(view.depth),
        torch.from_numpy(base),
        torch.from_numpy(view.inside),
        one.rings,
        torch.from_numpy(targets.own),
        torch.from_numpy(targets.weight),
        torch.from_numpy(targets.rings),
        torch.from_numpy(targets.states),
        targets.basis,
        [name],
    )
