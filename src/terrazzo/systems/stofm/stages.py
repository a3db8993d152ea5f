"""SToFM's two stages of training: domain adaptation of the cell encoder, multi-scale pretraining on sub-slices."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np

from terrazzo.arrays import Vectors
from terrazzo.config import to_dict
from terrazzo.corpus.genes import Match, member_match
from terrazzo.corpus.loader import Loader, Shard
from terrazzo.errors import ConfigError
from terrazzo.models.checkpoint import Checkpoint, fingerprint
from terrazzo.models.loading import load
from terrazzo.progress import Progress
from terrazzo.systems.stofm.cache import CacheKey, EmbeddingCache
from terrazzo.systems.stofm.cell_model import CellModel, encode_cells
from terrazzo.systems.stofm.config import SToFMConfig, preset
from terrazzo.systems.stofm.loaders import CellBatch, CellLoader, SubSliceBatch, SubSliceLoader
from terrazzo.systems.stofm.masking import CellMasking, SubSliceMasking
from terrazzo.systems.stofm.model import SToFM
from terrazzo.systems.stofm.objectives import DomainAdaptation, MultiScale
from terrazzo.systems.stofm.recipe import AdaptRecipe, PretrainRecipe, SToFMSource
from terrazzo.systems.stofm.statistics import (
    COMPONENTS,
    References,
    composition,
    fit_references,
    gene_loadings,
    head_radii,
    sample_tokens,
)
from terrazzo.systems.stofm.subslices import length_unit, macro_scale, model_positions, split_cells
from terrazzo.systems.stofm.tokens import rank_tokens
from terrazzo.systems.stofm.warm_start import center, set_attention_radii, start_as_components
from terrazzo.training.recipe import Recipe
from terrazzo.training.stage import Objective, Stage

__all__ = ["Adapt", "Pretrain"]

Output = Literal["niche", "own+niche"]
R = TypeVar("R", AdaptRecipe, PretrainRecipe)


class _SToFMStage(Stage[R, SToFM]):
    """Model that training of both stages starts from."""

    @property
    def source(self) -> SToFMSource:
        """Source of the starting weights."""
        return self.recipe.model

    @property
    def output(self) -> Output:
        """What ``embed`` of the trained model writes."""
        return "niche"

    @property
    def match(self) -> Match:
        """From a slice to the token and median of each of its columns."""
        return member_match(self.corpus, self.model.vocabulary)

    def initial_model(self) -> SToFM:
        """Return the model that training starts from.

        From a cell encoder alone (a converted Geneformer) its BERT is taken; the rest is the preset's, with random
        weights.

        Raises
        ------
        ConfigError
            A checkpoint of another kind; no such preset.
        """
        if not self.source.checkpoint:
            return self._fresh()
        loaded = load(self.source.checkpoint)
        if isinstance(loaded, SToFM):
            return self._continued(loaded)
        if isinstance(loaded, CellModel):
            return self._around(loaded)
        raise ConfigError(
            f"{self.source.checkpoint} holds a {loaded.title}; training starts from SToFM or a cell encoder."
        )

    def _fresh(self) -> SToFM:
        """Return a model with random weights, or an informed start."""
        source = self.source
        seed = self.recipe.seed
        vocabulary = self.corpus.vocabulary()
        sizes = preset(source.preset, vocabulary.n_tokens)
        config = replace(sizes, subslices=source.subslices, output=self.output)
        provenance = {"weights": "random", "seed": seed, "se2": "untrained"}
        model = SToFM(config, vocabulary, seed=seed, provenance=provenance)
        if source.init == "informed":
            self._inform(model)
        return model

    def _continued(self, loaded: SToFM) -> SToFM:
        """Return SToFM with a checkpoint's weights."""
        config = replace(loaded.config, subslices=self.source.subslices, output=self.output)
        # weights from elsewhere count as trained, so that none is replaced
        provenance = {"se2": "trained", **loaded.provenance}
        model = SToFM(config, loaded.vocabulary, seed=self.recipe.seed, provenance=provenance)
        model.module.load_state_dict(loaded.module.state_dict())
        return model

    def _around(self, loaded: CellModel) -> SToFM:
        """Return SToFM with the BERT of a cell encoder."""
        se2 = preset(self.source.preset).se2
        sizes = loaded.config.cell_encoder
        encoder = replace(sizes, pooling="cls", output_dim=se2.input_dim)
        config = SToFMConfig(encoder, se2, self.source.subslices, self.output)
        provenance = {**loaded.provenance, "se2": "untrained"}
        model = SToFM(config, loaded.vocabulary, seed=self.recipe.seed, provenance=provenance)
        bert = loaded.module.bert.state_dict()  # Geneformer has no projection
        model.module.cell_encoder.bert.load_state_dict(bert)
        return model

    def _inform(self, model: SToFM) -> None:
        """Replace random starting weights by those that the training slices suggest."""
        ids = self.members("train")
        sizes = model.config.cell_encoder
        match = member_match(self.corpus, model.vocabulary)
        loadings = gene_loadings(
            self.corpus,
            ids,
            match,
            n_tokens=sizes.vocab_size,
            max_length=sizes.max_length,
            components=min(COMPONENTS, sizes.hidden_size),
            seed=self.recipe.seed,
        )
        sample = sample_tokens(self.corpus, ids, match, sizes.max_length)
        encoder = model.module.cell_encoder
        start_as_components(encoder, loadings, sample, model.cls_token, self.recipe.seed)
        n_heads = model.config.se2.num_heads
        radii = head_radii(self.corpus, ids, model.config.subslices, n_heads)
        set_attention_radii(model.module.se2.gaussian, radii)


class Adapt(_SToFMStage[AdaptRecipe]):
    """Domain adaptation of SToFM's cell encoder on random cells (section A.1)."""

    recipe_class: ClassVar[type[Recipe]] = AdaptRecipe
    objective_class: ClassVar[type[Objective]] = DomainAdaptation

    def loader(self, split: str, shard: Shard = Shard()) -> Loader[Any]:
        """Return random cells."""
        corpus = self.corpus
        data = self.recipe.data
        seed = self.recipe.seed
        vocabulary = self.model.vocabulary
        max_length = self.model.config.cell_encoder.max_length
        match = self.match
        masking = CellMasking(vocabulary, self.recipe.objective, max_length)
        draws_anew = split == "train"

        @lru_cache(maxsize=64)
        def composition_of(member: int) -> Vectors:
            name = loader.ids[member]
            token, _ = match(name)
            return composition(corpus, name, token, vocabulary.n_tokens)

        def collate(batch: CellBatch, epoch: int, step: int) -> Any:
            names = [loader.ids[member] for member in np.unique(batch.member)]
            rng = np.random.default_rng([seed, epoch if draws_anew else 0, step, shard.rank])
            return masking.make(batch, names, composition_of, rng)

        loader = CellLoader(
            corpus,
            match,
            split=split,
            batch_cells=data.batch_cells,
            max_length=max_length,
            block=data.block,
            buffer_blocks=data.buffer_blocks,
            seed=seed,
            shard=shard,
            share=self.share(split),
            n_tokens=vocabulary.n_tokens if masking.thins else 0,
            collate=collate,
        )
        return loader

    def describe(self) -> dict[str, str]:
        """Return the objective, and whether the SE(2) Transformer, which it does not change, was trained before."""
        se2 = str(self.model.provenance.get("se2", "trained"))
        return {"objective": "domain adaptation", "se2": se2}

    def finish(self, model: SToFM) -> None:
        """Subtract what training added to all cells' vectors alike (of an informed start).

        It stays below an SE(2) Transformer that was trained on these vectors.
        """
        if self.source.init != "informed" or model.provenance.get("se2") != "untrained":
            return
        match = member_match(self.corpus, model.vocabulary)
        max_length = model.config.cell_encoder.max_length
        sample = sample_tokens(self.corpus, self.members("train"), match, max_length)
        center(model.module.cell_encoder, sample, model.cls_token)


class Pretrain(_SToFMStage[PretrainRecipe]):
    """SToFM's SE(2) Transformer on sub-slices (section 3.3)."""

    recipe_class: ClassVar[type[Recipe]] = PretrainRecipe
    objective_class: ClassVar[type[Objective]] = MultiScale

    @property
    def output(self) -> Output:
        """What ``embed`` of the trained model writes."""
        return "own+niche" if self.recipe.objective.kind == "own+niche" else "niche"

    @property
    def cache(self) -> EmbeddingCache:
        """Stored cell vectors of this model's cell encoder on this corpus."""
        encoder = self.model.config.cell_encoder
        # not the whole model: what follows the encoder changes no stored vector
        checkpoint = Checkpoint(
            CellModel.model_type,
            to_dict(encoder),
            self.model.module.cell_encoder.state_dict(),
            self.model.vocabulary,
        )
        key = CacheKey(fingerprint(checkpoint), self.source.subslices, self.recipe.seed)
        return EmbeddingCache(self.cache_folder, key)

    def loader(self, split: str, shard: Shard = Shard()) -> Loader[Any]:
        """Return whole sub-slices, masked; in training with tokens where some cells are encoded again."""
        objective = self.recipe.objective
        encodes_again = (
            split == "train"
            and objective.reencode > 0
            and self.recipe.optim.goes_beyond(objective.frozen_epochs)
        )
        return self._subslices(split, shard, with_tokens=encodes_again)

    def _subslices(self, split: str, shard: Shard, *, with_tokens: bool) -> Loader[Any]:
        recipe = self.recipe
        subslices = self.source.subslices
        masking = SubSliceMasking(recipe.objective, subslices, self.model.cls_token)
        draws_anew = split == "train"

        def collate(batch: SubSliceBatch, epoch: int, step: int) -> Any:
            return masking.make(batch, [recipe.seed, epoch if draws_anew else 0])

        return SubSliceLoader(
            self.corpus,
            self.cache,
            subslices,
            split=split,
            batch_slices=recipe.data.batch_subslices,
            seed=recipe.seed,
            shard=shard,
            share=self.share(split),
            match=self.match if with_tokens else None,
            max_length=self.model.config.cell_encoder.max_length,
            tokens_from=recipe.objective.frozen_epochs,
            collate=collate,
        )

    def describe(self) -> dict[str, str]:
        """Return the objective."""
        return {"objective": self.recipe.objective.kind, "se2": "trained"}

    def prepare(self) -> None:
        """Encode every cell that will be read once; store vectors, virtual cells and sub-slices."""
        cache = self.cache
        match = self.match
        bars = Progress(self.progress)
        for split in self.splits():
            for name in self.members(split):
                self._encode(name, cache, match, bars)

    def _encode(self, name: str, cache: EmbeddingCache, match: Match, bars: Progress) -> None:
        row = self.corpus.row(name)
        source = str(row["sha256"])
        if cache.has(name, source):
            return
        model = self.model
        subslices = self.source.subslices
        counts = self.corpus.rows(name, 0, int(row["n_cells"]))
        token, median = match(name)
        tokens = rank_tokens(counts, token, median, model.config.cell_encoder.max_length)
        encoder = model.module.cell_encoder
        features, _ = encode_cells(encoder, tokens, model.cls_token, "float32", bars)
        unit = length_unit(str(row["unit"]), float(row["spacing"]), subslices)
        positions = model_positions(self.corpus.coords(name), subslices, unit)
        macro = macro_scale(features, positions, subslices, seed=self.recipe.seed)
        parts = split_cells(positions, subslices)
        cache.write(name, features, macro, parts, source=source)

    def start(self, objective: Any) -> None:
        """Let the heads start from trivial answers."""
        objective.start(self.references())

    def references(self) -> References:
        """Return the answers that the SE(2) Transformer must beat, from training slices."""
        return fit_references(self._subslices("train", Shard(), with_tokens=False))
