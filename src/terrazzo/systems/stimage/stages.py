"""The stage of training of ST as images: its start, its loader and its objective."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import ClassVar, cast

import numpy as np
import torch
from torch import Tensor

from terrazzo.arrays import Int32s
from terrazzo.corpus.loader import Loader, Shard
from terrazzo.corpus.store import Corpus
from terrazzo.errors import ConfigError
from terrazzo.models.base import FoundationModel
from terrazzo.models.loading import load
from terrazzo.progress import Progress
from terrazzo.systems.stimage.config import STImageConfig, preset
from terrazzo.systems.stimage.loader import WindowItem, WindowLoader
from terrazzo.systems.stimage.masking import MaskedWindows, WindowMasking
from terrazzo.systems.stimage.model import STImage
from terrazzo.systems.stimage.network import MaskedViT, nearest, scheme_states
from terrazzo.systems.stimage.recipe import STImageRecipe
from terrazzo.systems.stimage.sites import SiteStore
from terrazzo.systems.stimage.warm_start import informed_start, mean_autocorrelation
from terrazzo.systems.stimage.windows import fixed_channels
from terrazzo.training.recipe import Recipe
from terrazzo.training.stage import Objective, Stage

__all__ = ["MaskedAutoencoding", "Pretrain", "site_store", "squared_error"]

NEAREST = 6  # shown sites whose mean is a trivial prediction


class MaskedAutoencoding(Objective):
    """Mean squared error of hidden values, and of the other part of shown ones (eqs 2, 3, 4 and 8).

    Parameters
    ----------
    model
        ST as images.
    recipe
        ``recipe.objective`` says what is hidden and predicted.
    """

    recipe: STImageRecipe
    vit: MaskedViT

    def __init__(self, model: FoundationModel, recipe: STImageRecipe) -> None:
        super().__init__(model, recipe)
        self.vit = model.module  # type: ignore[assignment]

    def losses(self, batch: MaskedWindows) -> dict[str, Tensor]:
        """Compute both parts; in validation also those of trivial predictions."""
        objective = self.recipe.objective
        states = scheme_states(
            self.vit,
            batch.values,
            batch.genes,
            batch.places,
            batch.shown,
            neighbors=objective.neighbors if objective.scheme == "multi-spot" else 0,
            domain=batch.domain,
        )
        predicted = self.vit.predict(states, batch.genes)
        hidden = squared_error(predicted, batch.target, batch.hidden)
        name = "masked_sites" if objective.mask == "site" else "masked_entries"
        parts = {name: hidden}
        loss = objective.hidden_weight * hidden
        if objective.target == "thinned":
            visible = squared_error(predicted, batch.target, batch.visible)
            parts["visible"] = visible
            loss = loss + objective.visible_weight * visible
        if not self.training:
            parts.update(self._trivial_losses(batch, name))
        return {"loss": loss, **parts}

    def _trivial_losses(self, batch: MaskedWindows, masked: str) -> dict[str, Tensor]:
        """Return the losses of trivial predictions: a gene's mean over the slice, and over the nearest shown sites.

        Of standardized values the mean over the slice is zero.
        """
        mean = batch.mean[:, None].expand_as(batch.target)
        around = _mean_around(batch)
        losses = {
            f"{masked}_mean": squared_error(mean, batch.target, batch.hidden),
            f"{masked}_neighbors": squared_error(around, batch.target, batch.hidden),
        }
        if self.recipe.objective.target == "thinned":
            losses["visible_mean"] = squared_error(mean, batch.target, batch.visible)
            losses["visible_neighbors"] = squared_error(around, batch.target, batch.visible)
        return losses


def _mean_around(batch: MaskedWindows) -> Tensor:
    """Return the mean value of each site's nearest shown sites, ``(B, S, m)``."""
    near = nearest(batch.places, batch.shown, NEAREST)
    seen = batch.shown[..., None] & ~batch.hidden
    total = near @ torch.where(seen, batch.values, 0.0)
    n_seen = near @ seen.to(near.dtype)
    return total / n_seen.clamp_min(1)


def squared_error(predicted: Tensor, target: Tensor, where: Tensor) -> Tensor:
    """Return the mean squared error over the entries chosen by ``where``; others are not read, even if they are NaN."""
    error = torch.where(where, predicted - target, 0.0).square()
    return error.sum() / where.sum().clamp_min(1)


def site_store(corpus: Corpus, model: STImage) -> SiteStore:
    """Return grids and scales of a corpus's slices as a model reads them."""
    config = model.config
    return SiteStore(corpus, model.vocabulary, config.windows, config.normalize, config.vit.n_genes)


class Pretrain(Stage[STImageRecipe, STImage]):
    """Pretraining of ST as images on windows, in any of its four schemes."""

    recipe_class: ClassVar[type[Recipe]] = STImageRecipe
    objective_class: ClassVar[type[Objective]] = MaskedAutoencoding

    def initial_model(self) -> STImage:
        """Return the model that training starts from; it knows the autocorrelation of genes in the training slices.

        Raises
        ------
        ConfigError
            A checkpoint of another kind or scheme; no such preset.
        """
        if self.recipe.model.checkpoint:
            return self._continued()
        source = self.recipe.model
        objective = self.recipe.objective
        seed = self.recipe.seed
        vocabulary = self.corpus.vocabulary()
        config = preset(
            source.preset,
            vocabulary.n_tokens,
            flavor=objective.flavor,
            scheme=objective.scheme,
            windows=source.windows,
        )
        origin = {"weights": "random", "seed": seed}
        model = STImage(self._of_objective(config), vocabulary, seed=seed, provenance=origin)
        ids = self.members("train")
        store = site_store(self.corpus, model)
        autocorrelation = torch.from_numpy(mean_autocorrelation(store, ids))
        cast(Tensor, model.module.autocorrelation).copy_(autocorrelation)
        if source.init == "informed":
            informed_start(model.module, model.config, store, ids)
        return model

    def _continued(self) -> STImage:
        source = self.recipe.model
        scheme = self.recipe.objective.scheme
        loaded = load(source.checkpoint)
        if not isinstance(loaded, STImage):
            raise ConfigError(
                f"{source.checkpoint} holds a {loaded.title}; stage {self.recipe.stage!r} starts from ST as images."
            )
        if loaded.config.scheme != scheme:
            raise ConfigError(
                f"{source.checkpoint} was made for the scheme {loaded.config.scheme!r}, not {scheme!r} "
                "(objective.scheme)."
            )
        config = loaded.config
        if source.windows is not None:
            config = replace(config, windows=source.windows)
        model = STImage(
            self._of_objective(config),
            loaded.vocabulary,
            seed=self.recipe.seed,
            provenance=loaded.provenance,
        )
        model.module.load_state_dict(loaded.module.state_dict())
        return model

    def _of_objective(self, config: STImageConfig) -> STImageConfig:
        objective = self.recipe.objective
        return replace(config, neighbors=objective.neighbors, domains=objective.domains)

    def loader(self, split: str, shard: Shard = Shard()) -> Loader[MaskedWindows]:
        """Return the loader of windows of a split."""
        recipe = self.recipe
        model = self.model
        store = site_store(self.corpus, model)
        masking = WindowMasking(
            model.config, recipe.objective, store, model.autocorrelation, recipe.seed
        )
        draws_anew = split == "train"

        def make(items: list[WindowItem], epoch: int) -> MaskedWindows:
            return masking.make(items, epoch if draws_anew else 0)

        return WindowLoader(
            self.corpus,
            store,
            make,
            split=split,
            batch_windows=recipe.data.batch_windows,
            windows_per_slice=recipe.data.windows_per_slice,
            unit="sites" if recipe.objective.scheme == "slice" else "window",
            seed=recipe.seed,
            shard=shard,
            share=self.share(split),
            token_of=self._tokens_read(store),
        )

    def _tokens_read(self, store: SiteStore) -> Callable[[str], Int32s]:
        """Return a function from a slice to the token of each of its columns, -1 for one that no window needs."""
        windows = self.model.config.windows
        autocorrelation = self.model.autocorrelation

        @lru_cache(maxsize=64)
        def token_of(name: str) -> Int32s:
            token = store.match(name)[0]
            if windows.choose != "spatial":
                return token
            chosen = fixed_channels(windows, store.measured(name), autocorrelation)
            return np.where(np.isin(token, chosen), token, -1).astype(np.int32)

        return token_of

    def describe(self) -> dict[str, str]:
        """Return scheme and objective for the model card."""
        objective = self.recipe.objective
        text = f"{objective.scheme}, {objective.mask} masking, target {objective.target}"
        return {"objective": text, "scheme": objective.scheme}

    def prepare(self) -> None:
        """Measure every slice of the splits, once; see :mod:`terrazzo.systems.stimage.sites`."""
        store = site_store(self.corpus, self.model)
        ids: list[str] = []
        for split in self.splits():
            ids.extend(self.members(split))
        with Progress(self.progress).stage("measuring slices", len(ids), "slices") as advance:
            for name in ids:
                store.measure(name)
                advance(1)
