"""Frozen gene encoders, and what ST-Align takes from slices without gradient, against slow and obvious versions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_eye import small_eye

import terrazzo as tz
from terrazzo.errors import ConfigError, InputError, TerrazzoWarning
from terrazzo.models.frozen import frozen_cells
from terrazzo.models.projections import Projection
from terrazzo.systems.scgpt.model import ScGPT, ScGPTConfig
from terrazzo.systems.scgpt.network import ScGPTEncoderConfig
from terrazzo.systems.stalign import start as align_start
from terrazzo.systems.stalign.gene_encoders import GeneEncoderConfig, scaled_values

Make = Callable[..., Any]


def vectors(encoder: Any, tissue: tz.Slice, vocabulary: tz.Vocabulary) -> np.ndarray:
    return np.asarray(encoder.encode(tissue.counts, vocabulary.match(tissue)))


@pytest.fixture(scope="module")
def tissue(histology: Make) -> tz.Slice:
    return tz.Slice.from_anndata(histology(300))


@pytest.fixture(scope="module")
def vocabulary(tissue: tz.Slice) -> tz.Vocabulary:
    return tz.Vocabulary.from_slices([tissue])


def dense_logs(tissue: tz.Slice, total: float) -> np.ndarray:
    counts = tissue.counts.toarray()
    return np.log1p(counts / counts.sum(axis=1, keepdims=True) * total)


def test_values_are_logs_of_the_genes_asked_for(
    tissue: tz.Slice, vocabulary: tz.Vocabulary
) -> None:
    match = vocabulary.match(tissue)
    genes = np.append(vocabulary.token[[7, 3, 40]], 10_000).astype(
        np.int64
    )  # one that the slice lacks
    logs = dense_logs(tissue, float(np.median(tissue.total_counts)))
    at = [list(match.column_token).index(t) for t in genes[:3]]
    values, scale = scaled_values(tissue.counts, match, genes, "median")
    np.testing.assert_allclose(values.toarray()[:, :3], logs[:, at], rtol=1e-5)
    assert values[:, 3].nnz == 0
    np.testing.assert_allclose(scale.sd[:3], logs[:, at].std(axis=0), rtol=1e-5)
    paper, _ = scaled_values(tissue.counts, match, genes, "paper")
    np.testing.assert_allclose(paper.toarray()[:, :3], dense_logs(tissue, 1e4)[:, at], rtol=1e-5)


def test_columns_of_one_token_are_summed(tissue: tz.Slice, vocabulary: tz.Vocabulary) -> None:
    match = vocabulary.match(tissue)
    token = match.column_token.copy()
    token[1] = token[0]
    genes = token[:1].astype(np.int64)
    values, _ = scaled_values(tissue.counts, replace(match, column_token=token), genes, "paper")
    counts = tissue.counts.toarray()
    wanted = np.log1p(counts[:, :2].sum(axis=1) / counts.sum(axis=1) * 1e4)
    np.testing.assert_allclose(values.toarray()[:, 0], wanted, rtol=1e-5)


def test_components_are_those_of_the_baseline_z50(
    tissue: tz.Slice, vocabulary: tz.Vocabulary
) -> None:
    model = tz.STAlign("tiny", vocabulary, image_encoder=small_eye()).fit([tissue])
    found = vectors(model.module.gene_encoder, tissue, vocabulary)
    wanted = Projection.fit([tissue], 50, choose="autocorrelation", own_scale=True)(tissue)
    assert found.shape == wanted.shape == (300, 50)
    for i in range(20):  # the directions are the same, the signs are chance
        assert abs(np.corrcoef(found[:, i], wanted[:, i])[0, 1]) > 0.999


def test_with_training_means_a_slice_of_its_own_level_stays_apart(
    tissue: tz.Slice, histology: Make
) -> None:
    other = tz.Slice.from_anndata(histology(300, seed=5, batch=0.8))
    vocabulary = tz.Vocabulary.from_slices([tissue, other])
    gap = {}
    for flavor in ("terrazzo", "paper"):
        encoder = (
            tz.STAlign("tiny", vocabulary, image_encoder=small_eye(), flavor=flavor)
            .fit([tissue, other])
            .module.gene_encoder
        )
        one, two = (vectors(encoder, s, vocabulary) for s in (tissue, other))
        gap[flavor] = np.linalg.norm(one.mean(axis=0) - two.mean(axis=0)) / np.linalg.norm(
            one.std(axis=0)
        )
        if flavor == "paper":
            both = np.concatenate([one, two])
            np.testing.assert_allclose(both.mean(axis=0), 0, atol=1e-2 * both.std())
    assert gap["terrazzo"] < 1e-3 < 0.5 < gap["paper"]


def test_a_gene_that_lacks_counts_as_average(
    tissue: tz.Slice, vocabulary: tz.Vocabulary, histology: Make
) -> None:
    model = tz.STAlign("tiny", vocabulary, image_encoder=small_eye(), flavor="paper").fit([tissue])
    encoder = model.module.gene_encoder
    few = tz.Slice.from_anndata(histology(300)[:, 5:].copy())
    found, match = vectors(encoder, few, vocabulary), vocabulary.match(few)
    values, _ = scaled_values(few.counts, match, model.genes, "paper")
    standard = (values.toarray() - encoder.mean.numpy()) / encoder.deviation.numpy()
    standard[:, ~np.isin(model.genes, match.column_token)] = 0
    np.testing.assert_allclose(found, standard @ encoder.loadings.numpy(), atol=1e-3)


def test_genes_are_chosen_by_autocorrelation_or_variance(
    tissue: tz.Slice, vocabulary: tz.Vocabulary
) -> None:
    config = tz.STAlign("tiny", vocabulary, image_encoder=small_eye()).config
    few = replace(config.net.niche_genes, n_genes=10)
    config = replace(
        config,
        net=replace(config.net, niche_genes=few),
        gene_encoder=replace(config.gene_encoder, n_genes=10),
    )
    logs = dense_logs(tissue, float(np.median(tissue.total_counts)))
    column = vocabulary.match(tissue).column_token
    by_variance = align_start.choose_genes([tissue], vocabulary, config, "variance")
    assert set(by_variance) == set(column[np.argsort(-logs.var(axis=0))[:10]])
    near = np.argsort(((tissue.coords[:, None] - tissue.coords[None]) ** 2).sum(axis=2), axis=1)[
        :, 1:7
    ]
    score = [
        np.corrcoef(logs[:, g], logs[near, g].mean(axis=1))[0, 1] for g in range(logs.shape[1])
    ]
    by_place = align_start.choose_genes([tissue], vocabulary, config, "autocorrelation")
    assert (
        len(set(by_place) & set(column[np.argsort(-np.array(score))[:10]])) >= 9
    )  # ties of the lattice
    assert (np.diff(by_place) > 0).all()
    with pytest.raises(InputError, match="at least one slice"):
        align_start.choose_genes([], vocabulary, config, "variance")


def test_large_slices_are_looked_at_in_their_middle(
    tissue: tz.Slice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(align_start, "SAMPLE", 50)
    rows = align_start.middle(tissue)
    assert len(rows) == 50
    far = np.linalg.norm(tissue.coords - np.median(tissue.coords, axis=0), axis=1)
    assert far[rows].max() <= np.delete(far, rows).min()


def test_fitting_takes_a_stream_and_changes_the_fingerprint(
    tissue: tz.Slice, vocabulary: tz.Vocabulary
) -> None:
    model, calls = tz.STAlign("tiny", vocabulary, image_encoder=small_eye()), []

    def stream() -> Any:
        calls.append(1)
        yield tissue

    before = model.fingerprint()
    model.fit(stream)
    assert len(calls) == 2
    assert model.fingerprint() not in (
        before,
        tz.STAlign("tiny", vocabulary, image_encoder=small_eye()).fingerprint(),
    )
    again = tz.STAlign("tiny", vocabulary, image_encoder=small_eye()).fit([tissue])
    assert again.fingerprint() == model.fingerprint()


def test_normalized_values_cannot_be_fitted(vocabulary: tz.Vocabulary, histology: Make) -> None:
    adata = histology(300)
    adata.X = np.log1p(adata.X.toarray())
    with pytest.warns(TerrazzoWarning, match="normalized"):
        tissue = tz.Slice.from_anndata(adata, allow_normalized=True)
    for given in ([tissue], lambda: [tissue]):
        with pytest.raises(InputError, match="scales counts"):
            tz.STAlign("tiny", vocabulary, image_encoder=small_eye()).fit(given)


def test_standards_of_the_paper_flavor_are_those_of_all_training_slices(histology: Make) -> None:
    tissues = [tz.Slice.from_anndata(histology(90, seed=s)) for s in (0, 1)]
    vocabulary = tz.Vocabulary.from_slices(tissues)
    model = tz.STAlign("tiny", vocabulary, image_encoder=small_eye(), flavor="paper").fit(tissues)
    features = [model.reader(t, vocabulary.match(t)).read() for t in tissues]
    net = model.module.net
    align_start.fit_standards(net, features)
    for part, fitted in (("niche_image", net.niche_image_map), ("spot_genes", net.spot_gene_map)):
        both = np.concatenate([getattr(f.take(np.arange(90)), part).numpy() for f in features])
        np.testing.assert_allclose(fitted.mean.numpy(), both.mean(axis=0), atol=1e-4)
        np.testing.assert_allclose(fitted.deviation.numpy(), both.std(axis=0), rtol=1e-3)
    values = np.concatenate([f.take(np.arange(90)).niche_genes.numpy() for f in features])
    np.testing.assert_allclose(net.ae_genes.mean.numpy(), values.mean(axis=0), atol=1e-4)


def test_a_cell_encoder_is_frozen_as_it_is(
    tissue: tz.Slice, tiny_model: Make, simulated: Make
) -> None:
    source = tiny_model()
    model_type, encoder, vocabulary = frozen_cells(source)
    assert model_type == "stofm"
    assert vocabulary is source.vocabulary
    adata = simulated()
    own = tz.Slice.from_anndata(adata)
    wanted = source.cell_model().embed(adata, progress=False).obsm["X_cell"]
    np.testing.assert_allclose(vectors(encoder, own, vocabulary), wanted, atol=1e-5)
    assert not any(p.requires_grad for p in encoder.parameters())
    before = encoder.fingerprint()
    with torch.no_grad():
        next(encoder.parameters()).view(-1)[0] += 1
    assert encoder.fingerprint() != before
    with pytest.raises(ConfigError, match="encodes no single cell"):
        frozen_cells(tz.STAlign("tiny", vocabulary, image_encoder=small_eye()))
    with pytest.raises(ConfigError, match="needs model_type and settings"):
        GeneEncoderConfig("cells", 16)


def test_scgpt_is_frozen_as_it_is(
    tissue: tz.Slice, vocabulary: tz.Vocabulary, tmp_path: Path
) -> None:
    sizes = ScGPTEncoderConfig(
        vocabulary.n_tokens, hidden_size=16, num_layers=1, num_heads=2, ffn_size=16
    )
    source = ScGPT(ScGPTConfig(sizes, max_length=40), vocabulary, seed=3)
    model_type, encoder, theirs = frozen_cells(source)
    assert model_type == "scgpt"
    assert theirs is vocabulary
    wanted = source.prepare(tissue).embed().vectors
    np.testing.assert_allclose(vectors(encoder, tissue, vocabulary), wanted, atol=1e-6)
    assert not any(p.requires_grad for p in encoder.parameters())
    tz.STAlign("tiny", vocabulary, image_encoder=small_eye(), gene_encoder=source).save_pretrained(
        tmp_path / "held"
    )
    held = tz.load(tmp_path / "held")  # a checkpoint brings its encoders
    np.testing.assert_allclose(
        vectors(held.module.gene_encoder, tissue, vocabulary), wanted, atol=1e-6
    )
