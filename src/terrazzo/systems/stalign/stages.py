"""The training stage of ST-Align: initial model, features of slices, loaders."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from terrazzo.corpus.loader import Loader, Members, Shard, Stream, spread
from terrazzo.errors import ConfigError, CorpusError
from terrazzo.models.frozen import frozen_cells
from terrazzo.models.loading import load
from terrazzo.progress import Progress
from terrazzo.systems.stalign.config import STAlignConfig, preset
from terrazzo.systems.stalign.efficientnet import DEFAULT, INSTALL, LITE
from terrazzo.systems.stalign.features import AlignBatch
from terrazzo.systems.stalign.gene_encoders import cells_config
from terrazzo.systems.stalign.image_encoder import RANDOM, FrozenImageEncoder
from terrazzo.systems.stalign.kept_start import fit_heads, fit_kept
from terrazzo.systems.stalign.loader import FeatureStore, SpotBatch, SpotLoader
from terrazzo.systems.stalign.model import STAlign
from terrazzo.systems.stalign.objective import AlignPack, SpotNiche
from terrazzo.systems.stalign.recipe import STAlignRecipe
from terrazzo.systems.stalign.start import fit_standards
from terrazzo.training.recipe import Recipe
from terrazzo.training.stage import Objective, Stage

__all__ = ["Pretrain"]

logger = logging.getLogger(__name__)


class Pretrain(Stage[STAlignRecipe, STAlign]):
    """Pretraining of ST-Align on spots and their histology."""

    recipe_class: ClassVar[type[Recipe]] = STAlignRecipe
    objective_class: ClassVar[type[Objective]] = SpotNiche

    def initial_model(self) -> STAlign:
        """Return the model that training starts from; without a checkpoint the slices choose genes and components.

        Raises
        ------
        ConfigError
            A checkpoint of another kind, or made with other settings than the recipe's; no such preset.
        """
        if self.recipe.model.checkpoint:
            return self._continued()
        source = self.recipe.model
        objective = self.recipe.objective
        seed = self.recipe.seed
        image_encoder = None
        if source.image_encoder == RANDOM:
            logger.warning(
                "the frozen image encoder has random weights, which say little about tissue: set "
                "model.image_encoder to %s (%s) or to the folder of a vision model.",
                DEFAULT,
                INSTALL,
            )
        else:
            image_encoder = FrozenImageEncoder.from_source(source.image_encoder or None)
        genes_config = None
        if source.gene_encoder:
            model_type, cells, vocabulary = frozen_cells(source.gene_encoder)
            genes_config = cells_config(model_type, cells)
        else:
            vocabulary = self.corpus.vocabulary()
        config = preset(
            source.preset,
            len(vocabulary),
            flavor=objective.flavor,
            image_encoder=image_encoder,
            gene_encoder=genes_config,
            adaptive=objective.adaptive,
            fusion=objective.fusion,
            residual=objective.residual,
            components=objective.components,
        )
        config = replace(
            self._of_objective(config), neighbors=objective.neighbors, spot_um=objective.spot_um
        )
        model = STAlign(
            config,
            vocabulary,
            seed=seed,
            provenance={"weights": "random", "seed": seed},
            image_encoder=image_encoder,
            gene_encoder=source.gene_encoder or None,
        )
        ids = spread(self.members("train"))
        return model.fit(lambda: map(self.corpus.slice, ids), choose=objective.genes)

    def _continued(self) -> STAlign:
        source = self.recipe.model
        objective = self.recipe.objective
        loaded = load(source.checkpoint)
        if not isinstance(loaded, STAlign):
            raise ConfigError(
                f"{source.checkpoint} holds a {loaded.title}; stage {self.recipe.stage!r} starts from ST-Align."
            )
        has_name = source.image_encoder in ("", RANDOM, *LITE)
        if not has_name or source.gene_encoder:
            raise ConfigError(
                "a checkpoint brings its frozen encoders: name no other in model.image_encoder and gene_encoder."
            )
        config = loaded.config
        checkpoint_settings: dict[str, Any] = {
            "flavor": "paper" if config.normalize == "paper" else "terrazzo",
            "neighbors": config.neighbors,
            "spot_um": config.spot_um,
            "adaptive": config.net.adaptive,
            "fusion": config.net.fusion_mode,
        }
        if objective.flavor == "terrazzo":
            checkpoint_settings["components"] = config.components
            if objective.adaptive:
                checkpoint_settings["residual"] = config.net.residual
        differing = []
        for name, value in checkpoint_settings.items():
            if getattr(objective, name) != value:
                differing.append(f"{name} {value!r}")
        if differing:
            shown = ", ".join(differing)
            raise ConfigError(
                f"{source.checkpoint} was made with {shown}: set the same in the recipe's section objective."
            )
        model = STAlign(
            self._of_objective(config),
            loaded.vocabulary,
            seed=self.recipe.seed,
            provenance=loaded.provenance,
        )
        model.module.load_state_dict(loaded.module.state_dict())
        if not objective.learn_temperature:
            model.module.net.log_temperature.fill_(float(np.log(objective.temperature)))
        return model

    def _of_objective(self, config: STAlignConfig) -> STAlignConfig:
        objective = self.recipe.objective
        net = replace(
            config.net,
            temperature=objective.temperature,
            learn_temperature=objective.learn_temperature,
        )
        return replace(config, net=net)

    def weight_folders(self) -> list[str]:
        """Return the folders whose weights the initial model has; "" for one that is not set."""
        source = self.recipe.model
        image_encoder = source.image_encoder
        if image_encoder in (RANDOM, *LITE):
            image_encoder = ""
        return [source.checkpoint, image_encoder, source.gene_encoder]

    def members(self, split: str) -> list[str]:
        """Return the slices of a split that can be used: those with histology, unless genes alone are read.

        Raises
        ------
        CorpusError
            There is none.
        """
        chosen = super().members(split)
        usable = [name for name in chosen if self._usable(name)]
        if not usable:
            raise CorpusError(
                f"none of the {len(chosen)} slices of the split {split!r} has histology: build the corpus from a table "
                "with the columns image and image_scale, or from slices with an image and its scale factor."
            )
        return usable

    def _usable(self, name: str) -> bool:
        if self.recipe.objective.modality == "genes":
            return True
        return self.corpus.image(name) is not None

    def loader(self, split: str, shard: Shard = Shard()) -> Loader[AlignPack]:
        """Return the loader of random spots of a split; those of another split than training are always the same."""
        recipe = self.recipe
        modality = recipe.objective.modality
        store = FeatureStore(self.corpus, self.model, modality)
        used = set(self.members(split))
        trains = split == "train"
        adaptive = self.model.config.net.adaptive
        turns = trains and recipe.objective.augment and adaptive and modality != "genes"

        @lru_cache(maxsize=2)
        def positions(epoch: int) -> Tensor:
            """Draw the position of every crop in an epoch."""
            rng = np.random.default_rng([recipe.seed, int(Stream.TURNING), epoch])
            return torch.from_numpy(rng.integers(8, size=int(firsts[-1]), dtype=np.int8))

        def make(batch: SpotBatch, epoch: int, step: int) -> AlignPack:
            parts = []
            for member, rows in batch.by_slice():
                features = store.of(loader.ids[member])
                parts.append(features.take(rows, int(firsts[member])))
            spots = AlignBatch.join(parts)
            if turns and spots.spot_image is not None:
                which = positions(epoch)[spots.spots]
                spots = replace(spots, spot_image=turned(spots.spot_image, which))
            return AlignPack(spots, [loader.ids[member] for member in batch.member.tolist()])

        loader = SpotLoader(
            self.corpus,
            make,
            split=split,
            batch_spots=recipe.data.batch_spots,
            seed=recipe.seed,
            shard=shard,
            share=self.share(split),
            drop_last=trains,
            keep=used.__contains__,
        )
        sizes = [int(self.corpus.row(name)["n_cells"]) for name in loader.ids]
        firsts = np.append(0, np.cumsum(sizes))
        return loader

    def describe(self) -> dict[str, str]:
        """Return objective and frozen encoders for the model card."""
        objective = self.recipe.objective
        source = self.recipe.model
        before = self.model.provenance
        weights = (
            f"{objective.spot_weight:g} spot, {objective.niche_weight:g} niche, "
            f"{objective.cross_weight:g} spot-niche"
        )
        image_encoder = before.get("image encoder", "small, random weights")
        if not source.checkpoint and source.image_encoder != RANDOM:
            image_encoder = _folder_name(source.image_encoder or DEFAULT)
        gene_encoder = before.get("gene encoder", "principal components")
        return {
            "objective": f"contrast, {weights}, modality {objective.modality}",
            "image encoder": image_encoder,
            "gene encoder": _folder_name(source.gene_encoder) or gene_encoder,
        }

    def prepare(self) -> None:
        """Compute the features of every slice of the splits, and report the slices without histology."""
        bars = Progress(self.progress)
        store = FeatureStore(self.corpus, self.model, self.recipe.objective.modality, bars)
        for split in self.splits():
            used = self.members(split)
            chosen = Members(self.corpus, split, self.share(split)).ids
            for name in sorted(set(chosen) - set(used)):
                logger.warning(
                    "%s has no histology in the corpus and is left out of the split %r.",
                    name,
                    split,
                )
            for name in used:
                store.of(name)

    def start(self, objective: Any) -> None:
        """Fit what the flavor needs on the training slices: means and deviations of frozen features, or components."""
        by_training = self.model.config.standardize == "training"
        both = self.recipe.objective.modality == "both"
        if by_training and both and not self.recipe.model.checkpoint:
            store = FeatureStore(self.corpus, self.model)
            fit_standards(self.model.module.net, map(store.of, self.members("train")))
        if self.model.config.net.residual and not self.recipe.model.checkpoint:
            store = FeatureStore(self.corpus, self.model, self.recipe.objective.modality)
            slices = [store.of(name) for name in spread(self.members("train"))]
            fit_kept(self.model.module.net, slices)
            fit_heads(objective, slices)


def turned(crops: Tensor, which: Tensor) -> Tensor:
    """Return crops ``(n, P, P, c)``, each turned or mirrored to one of eight positions; ``which`` 0 is unchanged."""
    out = crops.clone()
    for position in range(1, 8):
        rows = which == position
        part = crops[rows]
        if position >= 4:
            part = part.flip(2)
        out[rows] = torch.rot90(part, position % 4, (1, 2))
    return out


def _folder_name(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]
