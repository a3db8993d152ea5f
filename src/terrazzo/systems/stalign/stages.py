"""What a run of ST-Align reads: the model it starts from, features of slices made once, spots of them as tensors."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from terrazzo.corpus.genes import member_match
from terrazzo.corpus.loader import Members, spread
from terrazzo.corpus.store import Corpus
from terrazzo.errors import ConfigError, CorpusError
from terrazzo.models.loading import load
from terrazzo.progress import Progress
from terrazzo.systems.stalign.aligned import AlignedSlice
from terrazzo.systems.stalign.config import STAlignConfig, preset
from terrazzo.systems.stalign.feature_cache import FeatureCache
from terrazzo.systems.stalign.feature_reader import Identity
from terrazzo.systems.stalign.features import AlignBatch, Features, Modality
from terrazzo.systems.stalign.gene_encoders import frozen_genes
from terrazzo.systems.stalign.image_encoder import FrozenImageEncoder
from terrazzo.systems.stalign.loader import SpotBatch, SpotLoader
from terrazzo.systems.stalign.model import STAlign
from terrazzo.systems.stalign.start import fit_standards
from terrazzo.training.goals import AlignObjective
from terrazzo.training.recipe import PretrainConfig
from terrazzo.training.stage import Collated

logger = logging.getLogger(__name__)


TURNING = 8  # what a random stream is for; 1 to 7 are the loaders' and of what is hidden


CACHE = ("cache", "features")  # in the corpus's folder


@dataclass(frozen=True)
class AlignPack:
    """Spots as tensors, and which slice each is of.

    Attributes
    ----------
    spots
        What the model reads.
    ids
        Slice of each spot.
    """

    spots: AlignBatch
    ids: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str, **options: Any) -> AlignPack:
        """Return the same on another device."""
        return replace(self, spots=self.spots.to(device))


def initial_model(config: PretrainConfig, corpus: Corpus) -> STAlign:
    """Return the model that training starts from; without a checkpoint the training slices choose genes and components.

    Raises
    ------
    ConfigError
        A checkpoint of another kind, or made with other settings than the recipe's; no such preset.
    """
    source, goal = config.model, config.align
    if source.init != "random":
        raise ConfigError("model.init: stage 'align' has no informed start; take init: random.")
    if source.checkpoint:
        return _continued(config)
    frozen = FrozenImageEncoder.from_folder(source.image_encoder) if source.image_encoder else None
    genes, vocabulary = (
        frozen_genes(source.gene_encoder) if source.gene_encoder else (None, corpus.vocabulary())
    )
    settings = preset(
        source.preset,
        len(vocabulary),
        recipe=goal.recipe,
        image_encoder=frozen,
        gene_encoder=None if genes is None else genes.config,
        adaptive=goal.adaptive,
        fusion=goal.fusion,
    )
    settings = replace(_with(settings, goal), neighbors=goal.neighbors, spot_um=goal.spot_um)
    origin = {"weights": "random", "seed": config.seed}
    model = STAlign(
        settings,
        vocabulary,
        seed=config.seed,
        provenance=origin,
        image_encoder=frozen,
        gene_encoder=genes,
    )
    ids = spread(members(config, corpus, "train"))
    return model.fit(lambda: map(corpus.slice, ids), choose=goal.genes)


def _continued(config: PretrainConfig) -> STAlign:
    source, goal = config.model, config.align
    held = load(source.checkpoint)
    if not isinstance(held, STAlign):
        raise ConfigError(
            f"{source.checkpoint} holds a {held.title}; stage 'align' starts from ST-Align."
        )
    if source.image_encoder or source.gene_encoder:
        raise ConfigError(
            "a checkpoint brings its frozen encoders: leave model.image_encoder and gene_encoder empty."
        )
    kept, net = held.config, held.config.net
    theirs: dict[str, Any] = {"recipe": "paper" if kept.normalize == "paper" else "terrazzo"}
    theirs |= {"neighbors": kept.neighbors, "spot_um": kept.spot_um}
    theirs |= {"adaptive": net.adaptive, "fusion": net.fusion_mode}
    others = [name for name, value in theirs.items() if getattr(goal, name) != value]
    if others:
        shown = ", ".join(f"{name} {theirs[name]!r}" for name in others)
        raise ConfigError(
            f"{source.checkpoint} was made with {shown}: set the same in the recipe's section align."
        )
    model = STAlign(
        _with(held.config, goal), held.vocabulary, seed=config.seed, provenance=held.provenance
    )
    model.module.load_state_dict(held.module.state_dict())
    if not goal.learn_temperature:
        model.module.net.log_temperature.fill_(float(np.log(goal.temperature)))
    return model


def _with(settings: STAlignConfig, goal: AlignObjective) -> STAlignConfig:
    net = replace(
        settings.net, temperature=goal.temperature, learn_temperature=goal.learn_temperature
    )
    return replace(settings, net=net)


def members(config: PretrainConfig, corpus: Corpus, split: str) -> list[str]:
    """Return the slices of a split that can be used: those with histology, unless genes alone are read.

    Raises
    ------
    CorpusError
        There is none.
    """
    share = config.data.share if split == "train" else 1.0
    chosen = Members(corpus, split, share).ids
    kept = [name for name in chosen if _usable(config, corpus, name)]
    if not kept:
        raise CorpusError(
            f"none of the {len(chosen)} slices of the split {split!r} has histology: build the corpus from a table "
            "with the columns image and image_scale, or from slices that hold an image and its scale factor."
        )
    return kept


def _usable(config: PretrainConfig, corpus: Corpus, name: str) -> bool:
    return config.align.modality == "genes" or corpus.image(name) is not None


class FeatureStore:
    """Features of the slices of a corpus, kept in ``<corpus>/cache/features`` and made where they are not there.

    Parameters
    ----------
    corpus
        The slices.
    model
        Its frozen parts make the features.
    modality
        What is read.
    bars
        Progress.
    """

    def __init__(
        self,
        corpus: Corpus,
        model: STAlign,
        modality: Modality = "both",
        bars: Progress | None = None,
    ) -> None:
        self._corpus, self._model, self._modality, self._bars = corpus, model, modality, bars
        self._cache = FeatureCache(corpus.folder.joinpath(*CACHE))
        self._match = member_match(corpus, model.vocabulary)
        self.of = lru_cache(maxsize=None)(self._read)  # small: large arrays stay on disk

    @cached_property
    def _marks(self) -> tuple[str, str]:
        module = self._model.module
        return module.image_encoder.fingerprint(), module.gene_encoder.fingerprint()

    def _read(self, name: str) -> Features:
        held, model = (
            str(self._corpus.row(name)["sha256"]),
            self._model,
        )  # of counts, places and histology
        if self._modality == "image":
            identity = Identity(held, held)
        else:
            identity = Identity.of_hashes(held, held, *self._match(name))
        reader = model.stored_reader(
            lambda: self._cut(name), identity, self._cache, marks=self._marks, bars=self._bars
        )
        found = reader.read(self._modality)
        return replace(
            found,
            members=np.array(found.members),
            known=np.array(found.known),
            spot_image=_closed(found.spot_image),
            niche_image=_closed(found.niche_image),
            spot_genes=_closed(found.spot_genes),
            niche_genes=_closed(found.niche_genes),
        )

    def _cut(self, name: str) -> AlignedSlice:
        tissue, model = self._corpus.slice(name), self._model
        match = None if self._modality == "image" else model.vocabulary.match(tissue)
        return AlignedSlice.make(
            tissue, model.config, model.genes, match=match, image=self._modality != "genes"
        )


class StoredRows:
    """Rows of a stored array, which is open only while they are read: a process may not hold all of a corpus open."""

    def __init__(self, held: np.memmap[Any, Any]) -> None:
        self._place: dict[str, Any] = {
            "filename": held.filename,
            "dtype": held.dtype,
            "offset": held.offset,
            "shape": held.shape,
        }

    def __len__(self) -> int:
        return int(self._place["shape"][0])

    def __getitem__(self, rows: Any) -> NDArray[Any]:
        """Return a copy of some rows."""
        return np.array(np.memmap(mode="r", **self._place)[rows])


def _closed(rows: Any) -> Any:
    return StoredRows(rows) if isinstance(rows, np.memmap) else rows


def prepare(
    config: PretrainConfig, corpus: Corpus, model: STAlign, progress: bool | None = None
) -> None:
    """Make the features of every slice that will be read, and say which slices cannot be."""
    splits = ["train", *(["validation"] if corpus.ids("validation") else [])]
    store = FeatureStore(corpus, model, config.align.modality, Progress(progress))
    for split in splits:
        kept = members(config, corpus, split)
        share = config.data.share if split == "train" else 1.0
        for name in sorted(set(Members(corpus, split, share).ids) - set(kept)):
            logger.warning(
                "%s has no histology in the corpus and is left out of the split %r.", name, split
            )
        for name in kept:
            store.of(name)


def standardize(config: PretrainConfig, corpus: Corpus, model: STAlign) -> None:
    """Set means and deviations of frozen features over the training slices, where the recipe has them so."""
    if (
        model.config.standardize == "training"
        and not config.model.checkpoint
        and config.align.modality == "both"
    ):
        store = FeatureStore(corpus, model)
        fit_standards(
            model.module.net, (store.of(name) for name in members(config, corpus, "train"))
        )


def spot_loader(
    config: PretrainConfig, corpus: Corpus, model: STAlign, split: str, rank: int, world: int
) -> Collated[AlignPack]:
    """Return spots of a split as tensors; those of another split than training are always the same."""
    train, goal = split == "train", config.align
    kept = set(members(config, corpus, split))
    store = FeatureStore(corpus, model, goal.modality)
    turns = train and goal.augment and model.config.net.adaptive and goal.modality != "genes"

    @lru_cache(maxsize=2)
    def turning(epoch: int) -> NDArray[np.int8]:
        return np.random.default_rng([config.seed, TURNING, epoch]).integers(
            8, size=int(firsts[-1]), dtype=np.int8
        )

    def make(batch: SpotBatch, epoch: int, step: int) -> AlignPack:
        parts = [store.of(loader.ids[m]).take(rows, int(firsts[m])) for m, rows in batch.by_slice()]
        spots = AlignBatch.join(parts)
        if turns and spots.spot_image is not None:
            which = torch.from_numpy(turning(epoch)[spots.spots.numpy()])
            spots = replace(spots, spot_image=turned(spots.spot_image, which))
        return AlignPack(spots, [loader.ids[m] for m in batch.member.tolist()])

    loader = SpotLoader(
        corpus,
        make,
        split=split,
        batch_spots=config.data.batch_spots,
        seed=config.seed,
        rank=rank,
        world=world,
        share=config.data.share if train else 1.0,
        drop_last=train,
        keep=kept.__contains__,
    )
    firsts = np.append(0, np.cumsum([int(corpus.row(name)["n_cells"]) for name in loader.ids]))
    return Collated(loader, lambda pack, epoch, step: pack)


def turned(crops: Tensor, which: Tensor) -> Tensor:
    """Return crops ``(n, P, P, c)`` in one of the eight positions of a square each; ``which`` 0 is as it was."""
    out = crops.clone()
    for position in range(1, 8):
        rows = which == position
        part = crops[rows].flip(2) if position >= 4 else crops[rows]
        out[rows] = torch.rot90(part, position % 4, (1, 2))
    return out
