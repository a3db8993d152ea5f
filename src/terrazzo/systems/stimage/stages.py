"""What a run of ST as images reads: the model it starts from, what is measured of slices, windows as tensors."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from terrazzo.corpus.loader import Members
from terrazzo.corpus.store import Corpus
from terrazzo.errors import ConfigError
from terrazzo.models.loading import load
from terrazzo.progress import Progress
from terrazzo.systems.stimage.config import STImageConfig, preset
from terrazzo.systems.stimage.loader import WindowLoader
from terrazzo.systems.stimage.masking import PatchView
from terrazzo.systems.stimage.model import STImage
from terrazzo.systems.stimage.sites import SiteStore
from terrazzo.systems.stimage.warm_start import inform, mean_autocorrelation
from terrazzo.systems.stimage.windows import fixed_channels
from terrazzo.training.goals import PatchObjective
from terrazzo.training.recipe import PretrainConfig
from terrazzo.training.stage import Collated


def site_store(corpus: Corpus, model: STImage) -> SiteStore:
    """Return grids and scales of a corpus's slices as a model reads them."""
    config = model.config
    return SiteStore(corpus, model.vocabulary, config.patches, config.normalize, config.vit.n_genes)


def initial_model(config: PretrainConfig, corpus: Corpus) -> STImage:
    """Return the model that training starts from; it knows the autocorrelation of genes in the training slices.

    Raises
    ------
    ConfigError
        A checkpoint of another kind or scheme; no such preset.
    """
    source, goal = config.model, config.patches
    if source.checkpoint:
        held = load(source.checkpoint)
        if not isinstance(held, STImage):
            raise ConfigError(
                f"{source.checkpoint} holds a {held.title}; stage 'patches' starts from ST as images."
            )
        if held.config.scheme != goal.scheme:
            raise ConfigError(
                f"{source.checkpoint} was made for the scheme {held.config.scheme!r}, not {goal.scheme!r} "
                "(patches.scheme)."
            )
        settings = (
            held.config if source.patches is None else replace(held.config, patches=source.patches)
        )
        model = STImage(
            _with(settings, goal), held.vocabulary, seed=config.seed, provenance=held.provenance
        )
        model.module.load_state_dict(held.module.state_dict())
        return model
    vocabulary = corpus.vocabulary()
    chosen = preset(
        source.preset,
        vocabulary.n_tokens,
        recipe=goal.recipe,
        scheme=goal.scheme,
        patches=source.patches,
    )
    origin = {"weights": "random", "seed": config.seed}
    model = STImage(_with(chosen, goal), vocabulary, seed=config.seed, provenance=origin)
    ids, store = Members(corpus, "train", config.data.share).ids, site_store(corpus, model)
    cast(Tensor, model.module.autocorrelation).copy_(
        torch.from_numpy(mean_autocorrelation(store, ids))
    )
    if source.init == "informed":
        inform(model.module, model.config, store, ids)
    return model


def _with(settings: STImageConfig, goal: PatchObjective) -> STImageConfig:
    return replace(settings, neighbors=goal.neighbors, domains=goal.domains)


def measure(
    config: PretrainConfig, corpus: Corpus, model: STImage, progress: bool | None = None
) -> None:
    """Measure every slice that will be read, once; see :mod:`terrazzo.systems.stimage.sites`."""
    store = site_store(corpus, model)
    ids = [*Members(corpus, "train", config.data.share).ids, *corpus.ids("validation")]
    with Progress(progress).stage("measuring slices", len(ids), "slices") as advance:
        for name in ids:
            store.measure(name)
            advance(1)


def window_loader(
    config: PretrainConfig, corpus: Corpus, model: STImage, split: str, rank: int, world: int
) -> Collated[Any]:
    """Return windows of a split as tensors; those of another split than training are always the same."""
    train, goal, store = split == "train", config.patches, site_store(corpus, model)
    view, patches = (
        PatchView(model.config, goal, store, model.autocorrelation, config.seed),
        model.config.patches,
    )

    @lru_cache(maxsize=64)
    def token_of(name: str) -> NDArray[np.int32]:
        token = store.match(name)[0]
        if patches.choose != "spatial":
            return token
        chosen = fixed_channels(patches, store.measured(name), model.autocorrelation)
        return np.where(np.isin(token, chosen), token, -1).astype(np.int32)

    loader = WindowLoader(
        corpus,
        store,
        lambda batch, epoch: view.make(batch, epoch if train else 0),
        split=split,
        batch_windows=config.data.batch_windows,
        windows_per_slice=config.data.windows_per_slice,
        unit="sites" if goal.scheme == "slice" else "window",
        seed=config.seed,
        rank=rank,
        world=world,
        share=config.data.share if train else 1.0,
        token_of=token_of,
    )
    return Collated(loader, lambda pack, epoch, step: pack)
