"""What a run reads: stored vectors are made once, held-out slices never come, a share is a share."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from terrazzo.corpus.loader import Loader
from terrazzo.corpus.store import Corpus
from terrazzo.systems.stofm import stages
from terrazzo.systems.stofm.cell_model import CellModel, CellModelConfig
from terrazzo.systems.stofm.config import preset
from terrazzo.training.stage import Stage

TRAINING, HELD_OUT, CELLS = 3, 1, 64


STAGES = ("stofm-adapt", "stofm-pretrain")


@pytest.fixture
def opened(stage_of: Any) -> Callable[..., Stage[Any, Any]]:
    """Return a function that makes a stage, prepared."""

    def make(*args: Any, **sections: Any) -> Stage[Any, Any]:
        stage: Stage[Any, Any] = stage_of(*args, **sections)
        stage.prepare()
        return stage

    return make


def watched(loader: Any) -> list[tuple[str, int]]:
    """Return a list that grows by the (slice, row) of every cell that a loader reads."""
    seen: list[tuple[str, int]] = []
    collate = loader._collate

    def look(batch: Any, epoch: int, step: int) -> Any:
        if isinstance(batch, list):
            seen.extend(
                (item.id, int(c)) for item in batch for c in item.sub.cells[: item.sub.n_core]
            )
        else:
            seen.extend(
                (loader.ids[m], int(r)) for m, r in zip(batch.member, batch.rows, strict=True)
            )
        return collate(batch, epoch, step)

    loader._collate = look
    return seen


@pytest.mark.parametrize(
    ("stage", "objective"),
    [
        ("stofm-adapt", {}),
        ("stofm-adapt", {"own_weight": 1.0}),
        ("stofm-pretrain", {}),
        ("stofm-pretrain", {"kind": "own+niche"}),
    ],
    ids=str,
)
def test_held_out_slices_reach_no_training_batch(
    opened: Any, stage: str, objective: dict[str, Any]
) -> None:
    run = opened(stage, objective=objective)
    corpus = run.corpus
    for split, slices in (("train", TRAINING), ("validation", HELD_OUT)):
        loader: Loader[Any] = run.loader(split)
        seen = watched(loader)
        for epoch in range(2):
            seen.clear()
            named = {name for batch in loader for name in batch.ids}
            assert named == set(corpus.ids(split))
            assert set(Counter(seen).values()) == {1}  # every cell once an epoch
            assert len(seen) == slices * CELLS
            assert {name for name, _ in seen} == named, epoch
    assert not set(corpus.ids("train")) & set(corpus.ids("validation"))


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("share", "slices", "init"),
    [(0.125, 1, "informed"), (0.5, 2, "random"), (0.7, 2, "random"), (1.0, 3, "random")],
)
def test_a_share_of_the_slices(
    opened: Any, stage: str, share: float, slices: int, init: str
) -> None:
    # a seed of its own, so that vectors that other tests have stored are not found
    run = opened(stage, data={"share": share}, model={"init": init}, seed=100 + slices)
    corpus = run.corpus
    assert len({name for batch in run.loader("train") for name in batch.ids}) == slices
    held_out = {name for batch in run.loader("validation") for name in batch.ids}
    assert held_out == set(corpus.ids("validation"))  # never less
    if stage == "stofm-pretrain":  # nothing else is encoded
        assert sum(run.cache.has(name) for name in corpus.ids()) == slices + HELD_OUT


def test_validation_is_the_same_every_time(opened: Any) -> None:
    validation = opened().loader("validation")
    passes = []
    for _ in range(2):
        validation.set_epoch(0)
        passes.append(list(validation))
    for one, two in zip(*passes, strict=True):
        assert torch.equal(one.hidden, two.hidden)
        assert torch.equal(one.pairs[0].distance, two.pairs[0].distance)


def test_each_epoch_hides_other_cells(opened: Any) -> None:
    training = opened().loader("train")
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
    always = opened(objective={"frozen_epochs": 0, "reencode": 4}).loader("train")
    late = opened(objective={"frozen_epochs": 1, "reencode": 4}).loader("train")
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


def test_vectors_are_stored_once(
    opened: Any, stage_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = opened()
    encoded: list[int] = []
    encode = stages.encode_cells

    def counted(encoder: Any, tokens: Any, *rest: Any) -> Any:
        encoded.append(len(tokens))
        return encode(encoder, tokens, *rest)

    monkeypatch.setattr(stages, "encode_cells", counted)
    stage_of().prepare()
    assert encoded == []
    other = stage_of(seed=1)  # other weights
    other.prepare()
    assert encoded == [CELLS] * (TRAINING + HELD_OUT)
    name = run.members("train")[0]
    place = run.cache.path(name)
    assert other.cache.path(name) != place
    shutil.rmtree(place)  # one slice is lost: it alone is made again
    run.prepare()
    assert encoded == [CELLS] * (TRAINING + HELD_OUT + 1)


def test_stored_vectors_are_the_models(opened: Any) -> None:
    run = opened()
    stored = run.cache.read(run.members("validation")[0])
    assert stored.features.shape == (CELLS, run.model.config.se2.input_dim)
    np.testing.assert_allclose(np.linalg.norm(stored.features, axis=1), 1, rtol=1e-5)
    # 4 sub-slices of 16 a slice, 2 a batch
    assert len(run.loader("train")) == -(-TRAINING * CELLS // 16 // 2)
    batch = next(iter(run.loader("validation")))
    cells = batch.features[batch.types == 0].numpy()
    assert all((np.abs(stored.features - row).max(axis=1) < 1e-6).any() for row in cells)


def test_adaptation_needs_no_stored_vectors(opened: Any, corpus_folder: Path) -> None:
    before = (
        sorted((corpus_folder / "cache").glob("*")) if (corpus_folder / "cache").exists() else []
    )
    opened("stofm-adapt", seed=12345)
    after = (
        sorted((corpus_folder / "cache").glob("*")) if (corpus_folder / "cache").exists() else []
    )
    assert after == before


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_both_stages_start_from_a_cell_encoder_alone(
    opened: Any, corpus_folder: Path, tmp_path: Path, stage: str, pooling: Any
) -> None:
    sizes = replace(preset("tiny").cell_encoder, pooling=pooling, hidden_size=32, output_dim=32)
    vocabulary = Corpus.open(corpus_folder).vocabulary()
    encoder = CellModel(
        CellModelConfig(replace(sizes, vocab_size=vocabulary.n_tokens)), vocabulary, seed=7
    )
    encoder.save_pretrained(tmp_path / "encoder")
    run = opened(stage, model={"checkpoint": str(tmp_path / "encoder")})
    assert run.model.config.se2 == preset("tiny").se2
    assert run.model.config.subslices == run.recipe.model.subslices
    taken = run.model.module.cell_encoder.bert.state_dict()
    assert all(
        torch.equal(tensor, taken[name])
        for name, tensor in encoder.module.bert.state_dict().items()
    )
    batch = next(iter(run.loader("train")))
    assert torch.isfinite(run.objective().losses(batch)["loss"])


def test_stored_vectors_serve_every_recipe_with_the_same_encoder(stage_of: Any) -> None:
    def folder(**sections: Any) -> Path:
        return Path(stage_of(**sections).cache.folder)

    assert (
        folder()
        == folder(objective={"kind": "own+niche"})
        == folder(model={"subslices": {"subslice_size": 16, "halo": 2.0}})
    )
    assert len({folder(), folder(seed=1), folder(model={"subslices": {"subslice_size": 8}})}) == 3


@pytest.mark.parametrize(("kind", "output"), [("paper", "niche"), ("own+niche", "own+niche")])
def test_the_objective_decides_what_embed_writes(stage_of: Any, kind: str, output: str) -> None:
    assert stage_of(objective={"kind": kind}).model.config.output == output
