"""Training of the linear autoencoder: its recipe, its loader, what it minimizes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch.nn import functional

from terrazzo.corpus.genes import columns_by_token, member_match
from terrazzo.corpus.loader import BlockLoader, Loader, Members, Shard
from terrazzo.training.recipe import Recipe
from terrazzo.training.stage import Movable, Objective, Stage

from .model import Linear, LinearConfig

BATCH = 16


@dataclass(frozen=True)
class LinearObjective:
    """Numbers of a spot."""

    width: int = 8


@dataclass(frozen=True, kw_only=True)
class LinearRecipe(Recipe):
    """Recipe of the linear autoencoder."""

    stage: Literal["linear-pretrain"] = "linear-pretrain"
    objective: LinearObjective = field(default_factory=LinearObjective)


@dataclass(frozen=True)
class SpotBatch(Movable):
    """Log counts ``(n, n_tokens)``, and the slices that they are of."""

    values: Tensor
    ids: list[str]

    def __len__(self) -> int:
        return len(self.values)


class SpotLoader(BlockLoader[SpotBatch]):
    """Random spots of all slices of a split."""

    def __init__(self, stage: LinearPretrain, split: str, shard: Shard) -> None:
        super().__init__(
            64,
            4,
            BATCH,
            members=Members(stage.corpus, split),
            shard=shard,
            seed=stage.recipe.seed,
            settings={},
        )
        self.corpus = stage.corpus
        self.match = member_match(stage.corpus, stage.model.vocabulary)
        self.n_tokens = stage.model.config.n_tokens

    def read_block(self, member: int, start: int, stop: int) -> sparse.csr_matrix:
        """Read some rows."""
        name = self.ids[member]
        token = self.match(name)[0]
        return columns_by_token(self.corpus.rows(name, start, stop), token, self.n_tokens)

    def mix(self, blocks: list[sparse.csr_matrix]) -> Rows:
        """Stack blocks."""
        return Rows(sparse.vstack(blocks, format="csr"))

    def take(self, mixed: Rows, rows: Any) -> sparse.csr_matrix:
        """Return some rows."""
        return mixed.counts[rows]

    def join(self, parts: list[sparse.csr_matrix]) -> SpotBatch:
        """Return a batch."""
        dense = np.log1p(sparse.vstack(parts).toarray()).astype(np.float32)
        return SpotBatch(torch.from_numpy(dense), list(self.ids))


@dataclass(frozen=True)
class Rows:
    """Counts that have a length."""

    counts: sparse.csr_matrix

    def __len__(self) -> int:
        return int(self.counts.shape[0])


class Reconstruction(Objective):
    """Mean squared error."""

    def losses(self, batch: SpotBatch) -> dict[str, Tensor]:
        """Return the loss."""
        return {"loss": functional.mse_loss(self.trained(batch.values), batch.values)}


class LinearPretrain(Stage[LinearRecipe, Linear]):
    """The one stage."""

    recipe_class: ClassVar[type[Recipe]] = LinearRecipe
    objective_class: ClassVar[type[Objective]] = Reconstruction

    def initial_model(self) -> Linear:
        """Return a random model."""
        vocabulary = self.corpus.vocabulary()
        config = LinearConfig(vocabulary.n_tokens, self.recipe.objective.width)
        return Linear(config, vocabulary, seed=self.recipe.seed)

    def loader(self, split: str, shard: Shard = Shard()) -> Loader[SpotBatch]:
        """Return batches of spots."""
        return SpotLoader(self, split, shard)
