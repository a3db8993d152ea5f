"""What SToFM's stages read: the model they start from, stored cell vectors, and loaders that hand out tensors."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from terrazzo.config import to_dict
from terrazzo.corpus.genes import member_match
from terrazzo.corpus.loader import Members
from terrazzo.corpus.store import Corpus
from terrazzo.errors import ConfigError
from terrazzo.models.checkpoint import Checkpoint, fingerprint
from terrazzo.models.loading import load
from terrazzo.progress import Progress
from terrazzo.systems.stofm.cache import CacheKey, EmbeddingCache
from terrazzo.systems.stofm.cell_model import CellModel, encode_cells
from terrazzo.systems.stofm.config import SToFMConfig, preset
from terrazzo.systems.stofm.loaders import CellLoader, SubSliceLoader
from terrazzo.systems.stofm.masking import CellView, SceneView
from terrazzo.systems.stofm.model import SToFM
from terrazzo.systems.stofm.statistics import (
    COMPONENTS,
    References,
    composition,
    gene_loadings,
    head_radii,
    sample_tokens,
)
from terrazzo.systems.stofm.statistics import references as collect
from terrazzo.systems.stofm.subslices import length_unit, macro_scale, model_positions, split_cells
from terrazzo.systems.stofm.tokens import rank_tokens
from terrazzo.systems.stofm.warm_start import center, look_near, show_components
from terrazzo.training.recipe import PretrainConfig
from terrazzo.training.stage import Collated


def initial_model(config: PretrainConfig, corpus: Corpus) -> SToFM:
    """Return the model that training starts from.

    From a cell encoder alone (a converted Geneformer) its BERT is taken; the rest is the preset's, with random weights.

    Raises
    ------
    ConfigError
        A checkpoint of another kind; no such preset.
    """
    source = config.model
    output: Literal["niche", "own+niche"] = "niche"
    if config.stage == "pretrain" and config.pretrain.objective == "own+niche":
        output = "own+niche"
    if not source.checkpoint:
        vocabulary = corpus.vocabulary()
        settings = replace(
            preset(source.preset, vocabulary.n_tokens), subslices=source.subslices, output=output
        )
        origin = {"weights": "random", "seed": config.seed, "se2": "untrained"}
        model = SToFM(settings, vocabulary, seed=config.seed, provenance=origin)
        if source.init == "informed":
            inform(model, corpus, Members(corpus, "train", config.data.share).ids, config.seed)
        return model
    held = load(source.checkpoint)
    if isinstance(held, SToFM):
        settings = replace(held.config, subslices=source.subslices, output=output)
        origin = {
            "se2": "trained",
            **held.provenance,
        }  # of weights from elsewhere nothing is thrown away
        model = SToFM(settings, held.vocabulary, seed=config.seed, provenance=origin)
        model.module.load_state_dict(held.module.state_dict())
        return model
    if not isinstance(held, CellModel):
        raise ConfigError(
            f"{source.checkpoint} holds a {held.title}; training starts from SToFM or a cell encoder."
        )
    se2 = preset(source.preset).se2
    encoder = replace(held.config.cell_encoder, pooling="cls", output_dim=se2.input_dim)
    settings = SToFMConfig(encoder, se2, source.subslices, output)
    origin = {**held.provenance, "se2": "untrained"}
    model = SToFM(settings, held.vocabulary, seed=config.seed, provenance=origin)
    model.module.cell_encoder.bert.load_state_dict(
        held.module.bert.state_dict()
    )  # Geneformer has no projection
    return model


def inform(model: SToFM, corpus: Corpus, ids: list[str], seed: int) -> None:
    """Replace random starting weights by those that these slices suggest."""
    sizes, se2 = model.config.cell_encoder, model.module.se2
    match, components = member_match(corpus, model.vocabulary), min(COMPONENTS, sizes.hidden_size)
    loadings = gene_loadings(
        corpus, ids, match, sizes.vocab_size, sizes.max_length, components, seed
    )
    sample = sample_tokens(corpus, ids, match, sizes.max_length)
    show_components(model.module.cell_encoder, loadings, sample, model.cls_token, seed)
    look_near(
        se2.gaussian, head_radii(corpus, ids, model.config.subslices, model.config.se2.num_heads)
    )


def centered(config: PretrainConfig, corpus: Corpus, model: SToFM) -> None:
    """Take off what training added to all cells' vectors alike (stage ``"adapt"`` of an informed start).

    Not below an SE(2) Transformer that was trained on the vectors as they were.
    """
    if config.model.init != "informed" or model.provenance.get("se2") != "untrained":
        return
    ids, match = (
        Members(corpus, "train", config.data.share).ids,
        member_match(corpus, model.vocabulary),
    )
    sample = sample_tokens(corpus, ids, match, model.config.cell_encoder.max_length)
    center(model.module.cell_encoder, sample, model.cls_token)


def embedding_cache(config: PretrainConfig, corpus: Corpus, model: SToFM) -> EmbeddingCache:
    """Return the store of cell vectors of this model's cell encoder on this corpus."""
    encoder = model.config.cell_encoder
    # not the whole model: what stands behind the encoder changes no stored vector
    held = Checkpoint(
        CellModel.model_type,
        to_dict(encoder),
        model.module.cell_encoder.state_dict(),
        model.vocabulary,
    )
    key = CacheKey(fingerprint(held), config.model.subslices, config.seed)
    return EmbeddingCache(Path(corpus.folder) / "cache", key)


def encode(
    config: PretrainConfig, corpus: Corpus, model: SToFM, progress: bool | None = None
) -> None:
    """Encode every cell that will be read once; store vectors, virtual cells and sub-slices (stage ``"pretrain"``)."""
    cache, match = embedding_cache(config, corpus, model), member_match(corpus, model.vocabulary)
    table = corpus.manifest.set_index("id")
    cut, bars = config.model.subslices, Progress(progress)
    for name in Members(corpus, "train", config.data.share).ids + corpus.ids("validation"):
        source = str(table.at[name, "sha256"])
        if cache.has(name, source):
            continue
        counts = corpus.rows(name, 0, int(table.at[name, "n_cells"]))
        tokens = rank_tokens(counts, *match(name), model.config.cell_encoder.max_length)
        features, _ = encode_cells(
            model.module.cell_encoder, tokens, model.cls_token, "float32", bars
        )
        unit = length_unit(str(table.at[name, "unit"]), float(table.at[name, "spacing"]), cut)
        positions = model_positions(corpus.coords(name), cut, unit)
        macro = macro_scale(features, positions, cut, seed=config.seed)
        cache.write(name, features, macro, split_cells(positions, cut), source=source)


def references(config: PretrainConfig, corpus: Corpus, model: SToFM) -> References:
    """Return the answers that the SE(2) Transformer must beat, from training slices (stage ``"pretrain"``)."""
    return collect(scene_loader(config, corpus, model, "train", 0, 1, again=False))


def cell_loader(
    config: PretrainConfig, corpus: Corpus, model: SToFM, split: str, rank: int, world: int
) -> Collated[Any]:
    """Return random cells of a split (stage ``"adapt"``)."""
    data, length = config.data, model.config.cell_encoder.max_length
    view = CellView(model.vocabulary, config.adapt, length)
    train = split == "train"
    match = member_match(corpus, model.vocabulary)
    loader = CellLoader(
        corpus,
        match,
        split=split,
        batch_cells=data.batch_cells,
        max_length=length,
        block=data.block,
        buffer_blocks=data.buffer_blocks,
        seed=config.seed,
        rank=rank,
        world=world,
        share=data.share if train else 1.0,
        n_tokens=model.vocabulary.n_tokens if view.thins else 0,
    )

    @lru_cache(maxsize=64)
    def base_of(member: int) -> NDArray[np.float32]:
        name = loader.ids[member]
        return composition(corpus, name, match(name)[0], model.vocabulary.n_tokens)

    def make(batch: Any, epoch: int, step: int) -> Any:
        names = [loader.ids[m] for m in np.unique(batch.member)]
        return view.make(
            batch,
            names,
            base_of,
            np.random.default_rng([config.seed, epoch if train else 0, step, rank]),
        )

    return Collated(loader, make)


def scene_loader(
    config: PretrainConfig,
    corpus: Corpus,
    model: SToFM,
    split: str,
    rank: int,
    world: int,
    *,
    again: bool = True,
) -> Collated[Any]:
    """Return sub-slices of a split (stage ``"pretrain"``); ``again``: with tokens to encode some cells again."""
    goal, train = config.pretrain, split == "train"
    again = again and goal.reencode > 0 and config.optim.epochs > goal.frozen_epochs
    view = SceneView(goal, config.model.subslices, model.cls_token)
    loader = SubSliceLoader(
        corpus,
        embedding_cache(config, corpus, model),
        config.model.subslices,
        split=split,
        batch_slices=config.data.batch_subslices,
        seed=config.seed,
        rank=rank,
        world=world,
        share=config.data.share if train else 1.0,
        match=member_match(corpus, model.vocabulary) if again and train else None,
        max_length=model.config.cell_encoder.max_length,
        tokens_from=goal.frozen_epochs,
    )

    def make(batch: Any, epoch: int, step: int) -> Any:
        return view.make(batch, [config.seed, epoch if train else 0])

    return Collated(loader, make)
