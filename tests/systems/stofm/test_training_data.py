"""What a run reads: stored vectors are made once, held-out slices never come, a share is a share."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from terrazzo.systems.stages import make_objective

import terrazzo as tz
from terrazzo.corpus.store import Corpus
from terrazzo.systems import stages
from terrazzo.systems.stofm import stages as data
from terrazzo.systems.stofm.cell_model import CellModel, CellModelConfig

TRAINING, HELD_OUT, CELLS = 3, 1, 64


@pytest.fixture
def opened(recipe: Any, corpus_folder: Path) -> Any:
    """Return a function that makes (config, corpus, model), prepared."""

    def make(stage: str = "pretrain", **sections: Any) -> Any:
        config = recipe(stage, **sections)
        corpus = Corpus.open(corpus_folder)
        model = stages.initial_model(config, corpus)
        stages.prepare(config, corpus, model, progress=False)
        return config, corpus, model

    return make


def watched(loader: data.Collated[Any]) -> tuple[data.Collated[Any], list[tuple[str, int]]]:
    """Return the loader, and a list that grows by the (slice, row) of every cell that it reads."""
    seen: list[tuple[str, int]] = []
    inner, make = loader.loader, loader.make

    def look(batch: Any, epoch: int, step: int) -> Any:
        if isinstance(batch, list):
            seen.extend(
                (item.id, int(c)) for item in batch for c in item.sub.cells[: item.sub.n_core]
            )
        else:
            seen.extend(
                (inner.ids[m], int(r)) for m, r in zip(batch.member, batch.rows, strict=True)
            )
        return make(batch, epoch, step)

    loader.make = look
    return loader, seen


@pytest.mark.parametrize("stage", ["adapt", "pretrain"])
@pytest.mark.parametrize("own", [False, True])
def test_held_out_slices_reach_no_training_batch(opened: Any, stage: str, own: bool) -> None:
    extra = {"adapt": {"own_weight": 1.0}, "pretrain": {"objective": "own+niche"}} if own else {}
    config, corpus, model = opened(stage, **extra)
    training, validation = stages.loaders(config, corpus, model)
    assert validation is not None
    for loader, split, slices in (
        (training, "train", TRAINING),
        (validation, "validation", HELD_OUT),
    ):
        loader, seen = watched(loader)
        for epoch in range(2):
            seen.clear()
            named = {name for batch in loader for name in batch.ids}
            assert named == set(corpus.ids(split))
            assert set(Counter(seen).values()) == {1}  # every cell once an epoch
            assert len(seen) == slices * CELLS
            assert {name for name, _ in seen} == named, epoch
    assert not set(corpus.ids("train")) & set(corpus.ids("validation"))


@pytest.mark.parametrize("stage", ["adapt", "pretrain"])
@pytest.mark.parametrize(("share", "slices"), [(0.125, 1), (0.5, 2), (0.7, 2), (1.0, 3)])
def test_a_share_of_the_slices(opened: Any, stage: str, share: float, slices: int) -> None:
    sources = {
        "model": {"preset": "tiny", "init": "informed", "subslices": {"subslice_size": 16}},
        "seed": slices,
    }
    config, corpus, model = opened(stage, data={"share": share}, **sources)
    training, validation = stages.loaders(config, corpus, model)
    assert len({name for batch in training for name in batch.ids}) == slices
    assert validation is not None
    assert {name for batch in validation for name in batch.ids} == set(
        corpus.ids("validation")
    )  # never less
    if stage == "pretrain":  # nothing else is encoded
        cache = data.embedding_cache(config, corpus, model)
        assert sum(cache.has(name) for name in corpus.ids()) == slices + HELD_OUT


def test_validation_is_the_same_every_time(opened: Any) -> None:
    _, validation = stages.loaders(*opened())
    assert validation is not None
    passes = []
    for _ in range(2):
        validation.set_epoch(0)
        passes.append(list(validation))
    for one, two in zip(*passes, strict=True):
        assert torch.equal(one.hidden, two.hidden)
        assert torch.equal(one.pairs[0].distance, two.pairs[0].distance)


def test_each_epoch_hides_other_cells(opened: Any) -> None:
    training, _ = stages.loaders(*opened())
    first, second = ({tuple(b.neighbor_mean.sum(1).tolist()) for b in training} for _ in range(2))
    assert not first & second


def test_frozen_epochs_read_no_counts_and_draw_the_same(
    opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    take = Corpus.take
    monkeypatch.setattr(
        Corpus, "take", lambda self, id, rows: (reads.append(id), take(self, id, rows))[1]
    )
    always, _ = stages.loaders(*opened(pretrain={"frozen_epochs": 0, "reencode": 4}))
    late, _ = stages.loaders(*opened(pretrain={"frozen_epochs": 1, "reencode": 4}))
    for epoch in range(3):
        expected = list(always)
        reads.clear()
        found = list(late)
        assert bool(reads) == (epoch > 0)
        for one, two in zip(expected, found, strict=True):
            assert one.again_ids is not None
            assert (two.again_ids is None) == (epoch == 0)
            names = ["hidden", "predicted", "shown_cells", "rings", "features"]
            names += ["again_ids", "again_tokens"] if epoch else []
            assert all(torch.equal(getattr(one, name), getattr(two, name)) for name in names)
            for name in ("moved", "noisy_distance"):
                assert all(map(torch.equal, getattr(one, name), getattr(two, name)))


def test_vectors_are_stored_once(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config, corpus, model = opened()
    encoded: list[int] = []
    encode = data.encode_cells

    def counted(encoder: Any, tokens: Any, *rest: Any) -> Any:
        encoded.append(len(tokens))
        return encode(encoder, tokens, *rest)

    monkeypatch.setattr(data, "encode_cells", counted)
    stages.prepare(config, corpus, model, progress=False)
    assert encoded == []
    other = stages.initial_model(replace(config, seed=1), corpus)  # other weights
    stages.prepare(config, corpus, other, progress=False)
    assert encoded == [CELLS] * (TRAINING + HELD_OUT)
    place = data.embedding_cache(config, corpus, model).path(corpus.ids("train")[0])
    assert data.embedding_cache(config, corpus, other).path(corpus.ids("train")[0]) != place
    shutil.rmtree(place)  # one slice is lost: it alone is made again
    stages.prepare(config, corpus, model, progress=False)
    assert encoded == [CELLS] * (TRAINING + HELD_OUT + 1)


def test_stored_vectors_are_the_models(opened: Any) -> None:
    config, corpus, model = opened()
    name = corpus.ids("validation")[0]
    stored = data.embedding_cache(config, corpus, model).read(name)
    training, validation = stages.loaders(config, corpus, model)
    assert stored.features.shape == (CELLS, model.config.se2.input_dim)
    np.testing.assert_allclose(np.linalg.norm(stored.features, axis=1), 1, rtol=1e-5)
    assert len(training) == -(-TRAINING * CELLS // 16 // 2)  # 4 sub-slices of 16 a slice, 2 a batch
    assert validation is not None
    batch = next(iter(validation))
    cells = batch.features[batch.types == 0].numpy()
    assert all((np.abs(stored.features - row).max(axis=1) < 1e-6).any() for row in cells)


def test_adaptation_needs_no_stored_vectors(opened: Any, corpus_folder: Path) -> None:
    before = (
        sorted((corpus_folder / "cache").glob("*")) if (corpus_folder / "cache").exists() else []
    )
    opened("adapt", seed=12345)
    after = (
        sorted((corpus_folder / "cache").glob("*")) if (corpus_folder / "cache").exists() else []
    )
    assert after == before


@pytest.mark.parametrize("stage", ["adapt", "pretrain"])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_both_stages_start_from_a_cell_encoder_alone(
    opened: Any, recipe: Any, corpus_folder: Path, tmp_path: Path, stage: str, pooling: Any
) -> None:
    sizes = replace(preset("tiny").cell_encoder, pooling=pooling, hidden_size=32, output_dim=32)
    vocabulary = Corpus.open(corpus_folder).vocabulary()
    encoder = CellModel(
        CellModelConfig(replace(sizes, vocab_size=vocabulary.n_tokens)), vocabulary, seed=7
    )
    encoder.save_pretrained(tmp_path / "encoder")
    config, corpus, model = opened(stage, model={"checkpoint": str(tmp_path / "encoder")})
    assert model.config.se2 == preset("tiny").se2
    assert model.config.subslices == config.model.subslices
    taken = model.module.cell_encoder.bert.state_dict()
    assert all(
        torch.equal(tensor, taken[name])
        for name, tensor in encoder.module.bert.state_dict().items()
    )
    batch = next(iter(stages.loaders(config, corpus, model)[0]))
    assert torch.isfinite(make_objective(config, model).losses(batch)["loss"])


def test_stored_vectors_serve_every_recipe_with_the_same_encoder(
    recipe: Any, corpus_folder: Path
) -> None:
    corpus = Corpus.open(corpus_folder)

    def folder(**sections: Any) -> Path:
        config = recipe(**sections)
        return data.embedding_cache(config, corpus, stages.initial_model(config, corpus)).folder

    assert (
        folder()
        == folder(pretrain={"objective": "own+niche"})
        == folder(model={"subslices": {"subslice_size": 16, "halo": 2.0}})
    )
    assert len({folder(), folder(seed=1), folder(model={"subslices": {"subslice_size": 8}})}) == 3


@pytest.mark.parametrize(("objective", "output"), [("paper", "niche"), ("own+niche", "own+niche")])
def test_the_objective_decides_what_embed_writes(
    recipe: Any, corpus_folder: Path, objective: str, output: str
) -> None:
    config = recipe(pretrain={"objective": objective})
    assert stages.initial_model(config, Corpus.open(corpus_folder)).config.output == output
