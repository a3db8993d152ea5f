"""Our SToFM against the published code's stored inputs and outputs, and, without them, against plain code written here.

The stored weights are random and larger than a usual start, so that an error in any part shows.
"""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from sklearn.metrics import adjusted_rand_score

import terrazzo as tz
from terrazzo.models.published import read_pickled_tensors
from terrazzo.models.sequences import Tokens
from terrazzo.systems.stofm.cell_encoder import CellEncoder, CellEncoderConfig
from terrazzo.systems.stofm.cell_model import tokenize
from terrazzo.systems.stofm.config import preset
from terrazzo.systems.stofm.convert import convert_stofm
from terrazzo.systems.stofm.model import subslice_tensors
from terrazzo.systems.stofm.pair_bias import SparseBias
from terrazzo.systems.stofm.se2 import reference_forward
from terrazzo.systems.stofm.subslices import (
    iterate,
    macro_scale,
    model_positions,
    split_cells,
    split_grid,
)
from terrazzo.systems.stofm.virtual_cells import _fuzzy_graph, cluster_features, leiden_labels

CASES = [("tiny", 100), ("tiny", 1000), ("se2pub", 1000)]
FAR = 100.0


class Golden:
    """One stored case: converted model, slice, and the arrays by file name."""

    def __init__(self, folder: Path, name: str, split: int, model: Any) -> None:
        self.folder, self.split, self.model = folder / name, split, model
        self.adata = anndata.read_h5ad(self.folder / "slice" / "raw.h5ad")
        self.slice = tz.Slice.from_anndata(self.adata)
        self.config = replace(model.config.subslices, subslice_size=split)
        self.scales = self.load(f"split{split}/multiscale.npz")
        self.cells = self.load("cell_emb.npz")["emb"]
        self.labels = self.scales["leiden"].astype(np.int64)
        sizes = self.scales["split_len"]
        self.parts = [
            p.astype(np.int64) for p in np.split(self.scales["split_flat"], np.cumsum(sizes)[:-1])
        ]

    def load(self, path: str) -> Any:
        return np.load(self.folder / path, allow_pickle=False)

    def subslices(self) -> tuple[Any, list[Any]]:
        """Virtual cells and the sub-slices, in the stored order of cells."""
        positions = model_positions(self.slice.coords, self.config)
        macro = macro_scale(self.cells, positions, self.config, labels=self.labels)
        return macro, list(iterate(positions, macro.positions, self.parts, self.config))


@pytest.fixture(scope="module")
def models(shared_dir: Path) -> Any:
    made: dict[str, Any] = {}
    folder = shared_dir / "reference"

    def get(name: str) -> Any:
        if name not in made:
            made[name] = convert_stofm(folder / name / "ckpt", folder / "geneformer")
        return made[name]

    return get


@pytest.fixture(scope="module", params=CASES, ids=[f"{name}-{split}" for name, split in CASES])
def golden(request: pytest.FixtureRequest, shared_dir: Path, models: Any) -> Golden:
    name, split = request.param
    return Golden(shared_dir / "reference", name, split, models(name))


# -- against the stored outputs ---------------------------------------------------------------------------------------


def test_tokens_are_exact(golden: Golden) -> None:
    match = golden.model.vocabulary.match(golden.slice)
    tokens = tokenize(golden.slice, match, golden.model.config.cell_encoder.max_length)
    stored = golden.load("tokens.npz")
    np.testing.assert_array_equal(tokens.lengths, stored["length"])
    np.testing.assert_array_equal(tokens.flat, stored["flat"])


def test_cell_embeddings(golden: Golden) -> None:
    stored = golden.load("tokens.npz")
    offsets = np.concatenate([[0], np.cumsum(stored["length"].astype(np.int64))])
    some = np.arange(
        0, len(golden.cells), max(1, len(golden.cells) // 300)
    )  # the final embeddings take all
    tokens = Tokens(stored["flat"], offsets).take(some)
    found = golden.model.module.cell_encoder.encode(
        tokens.flat, tokens.offsets, cls_token=golden.model.cls_token
    )
    np.testing.assert_allclose(found, golden.cells[some], rtol=0, atol=1e-5)


def test_positions_and_cluster_features(golden: Golden) -> None:
    positions = model_positions(golden.slice.coords, golden.config)
    np.testing.assert_allclose(positions, golden.scales["spatial_norm"], rtol=0, atol=1e-12)
    features = cluster_features(golden.cells, positions, golden.config.alpha, golden.config.mix)
    np.testing.assert_allclose(features, golden.scales["cluster_features"], rtol=0, atol=2e-6)


def test_our_leiden_labels_are_close_to_the_stored_ones(golden: Golden) -> None:
    c = golden.config
    points = cluster_features(golden.cells, golden.scales["spatial_norm"], c.alpha, c.mix)
    labels = leiden_labels(points, c.cluster_neighbors, c.leiden_resolution, c.max_clusters, 0)
    assert adjusted_rand_score(golden.labels, labels) > 0.7


def test_virtual_cells(golden: Golden) -> None:
    macro, _ = golden.subslices()
    np.testing.assert_allclose(macro.features, golden.scales["hyper_feat"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(macro.positions, golden.scales["hyper_pos"], rtol=0, atol=1e-6)


def test_split_index_sets_are_exact(golden: Golden) -> None:
    found = split_cells(model_positions(golden.slice.coords, golden.config), golden.config)
    assert len(found) == len(golden.parts)
    for ours, theirs in zip(found, golden.parts, strict=True):
        np.testing.assert_array_equal(np.sort(ours), np.sort(theirs))


def test_pair_distances_of_all_subslices(golden: Golden) -> None:
    macro, subslices = golden.subslices()
    for number, sub in enumerate(subslices):
        stored = golden.load(f"split{golden.split}/sub{number}.npz")
        np.testing.assert_array_equal(sub.token_types, stored["token_types"])
        np.testing.assert_array_equal(sub.cells, stored["indices"][stored["indices"] >= 0])
        dense = np.full((sub.n_tokens, sub.n_tokens), FAR, dtype=np.float32)
        dense[stored["row"], stored["col"]] = stored["val"]
        dense[0, :] = dense[:, 0] = 0
        np.fill_diagonal(dense, 0)
        _, _, pairs = subslice_tensors([sub], golden.cells, macro.features, torch.device("cpu"))
        np.testing.assert_allclose(pairs[0].dense_distance(FAR).numpy(), dense, rtol=0, atol=5e-6)


@torch.no_grad()
def test_gaussian_bias_of_probed_distances(golden: Golden) -> None:
    stored = golden.load("gaussian_probe.npz")
    bias = golden.model.module.se2.gaussian(torch.from_numpy(stored["d"])).numpy()
    np.testing.assert_allclose(bias, stored["bias"], rtol=0, atol=1e-5)


@torch.no_grad()
def test_inside_the_se2_transformer(golden: Golden) -> None:
    macro, subslices = golden.subslices()
    stored = golden.load(f"split{golden.split}/sub0_internal.npz")
    rows = torch.from_numpy(stored["pair_rep_rows"].astype(np.int64))
    x, types, pairs = subslice_tensors(
        subslices[:1], golden.cells, macro.features, torch.device("cpu")
    )
    se2 = golden.model.module.se2
    sparse = SparseBias(se2.gaussian, pairs[0], FAR)
    bias = sparse.rows(0, pairs[0].n)[:, rows] + sparse.far_bias[:, None, None]
    # stored distances differ from ours by up to 4e-6 and the bias is steep: the pair representation's tolerance
    np.testing.assert_allclose(bias.numpy(), stored["gaussian_bias"], rtol=0, atol=5e-5)
    out = se2(x, types, pairs, pair_rows=[rows], hidden_states=True)
    states = torch.stack(out.hidden_states)[:, rows].numpy()
    np.testing.assert_allclose(states, stored["hidden_states"], rtol=0, atol=2e-5)
    np.testing.assert_allclose(out.pair[0].numpy(), stored["pair_rep"], rtol=0, atol=5e-5)


def test_final_embeddings_through_the_public_path(golden: Golden, tmp_path: Path) -> None:
    golden.model.save_pretrained(tmp_path / "checkpoint")
    model = tz.load(tmp_path / "checkpoint")
    adata = golden.adata.copy()
    adata.obs["leiden"] = golden.labels.astype(str)
    model.embed(adata, clusters="leiden", subslice_size=golden.split, progress=False)
    stored = golden.load(f"split{golden.split}/final.npz")["final_emb"]
    assert adata.obsm["X_stofm"].dtype == np.float32
    np.testing.assert_allclose(adata.obsm["X_stofm"], stored, rtol=0, atol=2e-5)


def test_no_cell_of_the_lattice_is_lost(shared_dir: Path) -> None:
    stored = np.load(shared_dir / "reference" / "edge_lost_cells.npz")
    assert len(stored["lost"]) == 31  # published code: the far row is in no sub-slice
    parts = split_grid(stored["coords"], int(stored["split"]))
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(stored["coords"])))


@pytest.fixture(scope="module")
def stored_points(shared_dir: Path) -> np.ndarray:
    folder = shared_dir / "reference" / "tiny" / "split100"
    points: np.ndarray = np.load(folder / "multiscale.npz")["cluster_features"]
    return points


def test_fuzzy_graph_of_the_stored_points(stored_points: np.ndarray) -> None:
    np.testing.assert_allclose(
        fuzzy_weights(stored_points), plain_fuzzy_weights(stored_points), rtol=0, atol=1e-4
    )


@pytest.mark.slow
def test_fuzzy_graph_of_the_stored_points_is_scanpys(stored_points: np.ndarray) -> None:
    np.testing.assert_allclose(
        fuzzy_weights(stored_points), scanpy_fuzzy_weights(stored_points), rtol=0, atol=1e-4
    )


@pytest.fixture(scope="module")
def published_encoder(
    shared_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[CellEncoder, Any]:
    out = tmp_path_factory.mktemp("ce_pub")
    folder = shared_dir / "reference" / "ce_pub"
    subprocess.run(
        [sys.executable, folder / "make_weights.py", out],
        check=True,
        capture_output=True,
        text=True,
    )
    from safetensors.torch import load_file

    encoder = CellEncoder(CellEncoderConfig()).eval()
    bert = load_file(out / "cell_encoder" / "cell_bert" / "model.safetensors")
    state = {f"bert.{k}": v for k, v in bert.items() if not k.startswith("pooler.")}
    proj = read_pickled_tensors(out / "cell_encoder" / "cell_proj.bin")
    encoder.load_state_dict(state | {f"proj.{k}": v for k, v in proj.items()})
    return encoder, np.load(folder / "cells.npz")


def published_cells(stored: Any, longest: int) -> tuple[np.ndarray, Tokens]:
    """Stored cells up to a length; with <cls> in front, 2,048 tokens lose the last one."""
    offsets = np.concatenate([[0], np.cumsum(stored["length"].astype(np.int64))])
    rows = np.flatnonzero(stored["length"] <= longest)
    sequences = [stored["flat"][offsets[i] : offsets[i + 1]][:2047] for i in rows]
    ends = np.cumsum([0, *map(len, sequences)]).astype(np.int64)
    return rows, Tokens(np.concatenate(sequences), ends)


@pytest.mark.slow
def test_cell_encoder_of_published_size(published_encoder: tuple[CellEncoder, Any]) -> None:
    encoder, stored = published_encoder
    rows, tokens = published_cells(stored, 2048)
    assert len(rows) == 18
    found = encoder.encode(tokens.flat, tokens.offsets, cls_token=25_426)
    np.testing.assert_allclose(found, stored["emb"], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_bfloat16_of_published_size(
    published_encoder: tuple[CellEncoder, Any], record_property: Callable[[str, object], None]
) -> None:
    encoder, stored = published_encoder
    rows, tokens = published_cells(stored, 600)
    found = encoder.encode(tokens.flat, tokens.offsets, cls_token=25_426, precision="bfloat16")
    cosine = (found * stored["emb"][rows]).sum(axis=1)
    record_property("least cosine of bfloat16", float(cosine.min()))
    print(f"least cosine of bfloat16 to the stored float32: {cosine.min():.4f}")
    assert cosine.min() > 0.95


# -- the same without stored outputs: random weights, plain code written here ------------------------------------------


def fuzzy_weights(points: np.ndarray, k: int = 10) -> np.ndarray:
    """Return the weights of our graph as a dense matrix."""
    graph = _fuzzy_graph(points, k)
    out = np.zeros((len(points), len(points)))
    for (a, b), weight in zip(graph.get_edgelist(), graph.es["weight"], strict=True):
        out[a, b] = out[b, a] = weight
    assert (out > 0.5).sum() > len(points)  # a graph worth comparing
    return out


def plain_fuzzy_weights(points: np.ndarray, k: int = 10) -> np.ndarray:
    """Return UMAP's weights: of each point's neighbors they fall from 1 and sum to log2 k; then a fuzzy union."""
    n = len(points)
    out = np.zeros((n, n))
    for i in range(n):
        distance = np.linalg.norm(points - points[i], axis=1)
        distance[i] = -1  # itself first, also where another point lies in the same place
        near = np.argsort(distance, kind="stable")[1:k]
        nearest = distance[near][distance[near] > 0].min()
        beyond = np.maximum(distance[near] - nearest, 0)

        def excess(log_width: float, beyond: np.ndarray = beyond) -> float:
            return float(np.exp(-beyond / np.exp(log_width)).sum() - np.log2(k))

        width = np.exp(brentq(excess, -30, 30))
        width = max(width, 1e-3 * distance[near].mean())
        out[i, near] = np.exp(-beyond / width)
    union: np.ndarray = out + out.T - out * out.T
    return union


def scanpy_fuzzy_weights(points: np.ndarray, k: int = 10) -> np.ndarray:
    """Return scanpy's connectivities; it compiles UMAP for many seconds."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings(
            "ignore", category=ImportWarning, message="Tensorflow not installed"
        )
        import scanpy as sc

        adata = anndata.AnnData(np.zeros((len(points), 1), dtype=np.float32))
        adata.obsm["points"] = points
        sc.pp.neighbors(adata, n_neighbors=k, use_rep="points")
    weights: np.ndarray = adata.obsp["connectivities"].toarray()
    return weights


def random_points() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(250, 3))


def test_fuzzy_graph_of_random_points() -> None:
    points = random_points()
    np.testing.assert_allclose(
        fuzzy_weights(points), plain_fuzzy_weights(points), rtol=0, atol=1e-4
    )


@pytest.mark.slow
def test_fuzzy_graph_of_random_points_is_scanpys() -> None:
    points = random_points()
    np.testing.assert_allclose(
        fuzzy_weights(points), scanpy_fuzzy_weights(points), rtol=0, atol=1e-4
    )


def published_distances(positions: np.ndarray, virtual: np.ndarray, n_neighbors: int) -> np.ndarray:
    """Dense distances of one sub-slice the published way: graph token at (0, 0), then virtual cells, then cells.

    Each token keeps its ``n_neighbors - 1`` nearest others; virtual cells keep all.
    """
    tokens = np.concatenate([np.zeros((1, 2)), virtual, positions])
    true = np.sqrt(((tokens[:, None] - tokens[None]) ** 2).sum(axis=-1))
    dense = np.full_like(true, FAR)
    for i in range(len(tokens)):
        others = np.argsort(true[i], kind="stable")
        nearest = others[others != i][: n_neighbors - 1]
        dense[i, nearest] = true[i, nearest]
        dense[nearest, i] = true[i, nearest]
    for i in range(1, 1 + len(virtual)):
        dense[i], dense[:, i] = true[i], true[:, i]
    dense[0] = dense[:, 0] = 0
    np.fill_diagonal(dense, 0)
    return dense


@torch.no_grad()
def test_whole_path_against_plain_code(tiny_model: Any, simulated: Any) -> None:
    """Tokens, transformers' own forward, means, dense distances and the padded reference, all written out."""
    model = tiny_model(
        geometry="published", partition="grid", mix="sum", subslice_size=90, n_neighbors=15
    )
    adata = simulated(200)
    labels = np.random.default_rng(1).integers(0, 7, adata.n_obs)
    adata.obs["given"] = labels
    found = model.embed(adata, clusters="given", progress=False).obsm["X_stofm"]

    tissue = tz.Slice.from_anndata(adata)
    match = model.vocabulary.match(tissue)
    counts = tissue.counts.toarray()
    scores = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1) * 1e4 / match.column_median
    limit = model.config.cell_encoder.max_length - 1
    features = []
    for row, score in zip(counts, scores, strict=True):
        order = [
            g
            for g in np.argsort(-score, kind="stable")
            if row[g] > 0 and match.column_token[g] >= 0
        ]
        ids = torch.tensor([[model.cls_token, *match.column_token[order[:limit]].tolist()]])
        features.append(model.module.cell_encoder(ids, torch.ones_like(ids))[0].numpy())
    cells = np.stack(features)

    low, high = tissue.coords.min(axis=0), tissue.coords.max(axis=0)
    positions = (tissue.coords - (low + high) / 2) * 100 / np.linalg.norm(high - low)
    clusters = range(labels.max() + 1)
    virtual = np.stack([positions[labels == c].mean(axis=0) for c in clusters])
    means = np.stack([cells[labels == c].mean(axis=0) for c in clusters])
    expected = np.empty_like(found)
    parts = split_grid(positions, 90)
    assert len(parts) > 1
    for part in parts:
        dense = published_distances(positions[part], virtual, 15)
        x = np.concatenate([np.zeros((1, cells.shape[1])), means, cells[part]]).astype(np.float32)
        types = torch.tensor([[1] + [2] * len(virtual) + [0] * len(part)])
        hidden, _, _ = reference_forward(
            model.module.se2,
            torch.from_numpy(x)[None],
            types,
            torch.from_numpy(dense.astype(np.float32))[None],
        )
        expected[part] = hidden[0, 1 + len(virtual) :].numpy()
    assert expected.std() > 0.1
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-5)


def test_a_saved_model_gives_the_same_through_load(
    tiny_model: Any, simulated: Any, tmp_path: Path
) -> None:
    model = tiny_model(geometry="published", partition="grid", mix="sum")
    model.save_pretrained(tmp_path / "checkpoint")
    first = model.embed(simulated(), progress=False).obsm["X_stofm"]
    second = tz.load(tmp_path / "checkpoint").embed(simulated(), progress=False).obsm["X_stofm"]
    np.testing.assert_array_equal(first, second)


def test_no_cell_of_a_far_border_lattice_is_lost() -> None:
    rows, cols = np.divmod(np.arange(31 * 91), 31)
    positions = np.column_stack([cols, rows]).astype(float)
    assert sorted(np.concatenate(split_grid(positions, 1000)).tolist()) == list(range(31 * 91))


def test_distances_against_dense_code() -> None:
    rng = np.random.default_rng(3)
    positions, virtual = rng.normal(size=(120, 2)) * 20, rng.normal(size=(5, 2)) * 10
    config = replace(preset("tiny").subslices, geometry="published", n_neighbors=12)
    sub = next(iterate(positions, virtual, [np.arange(120)], config))
    features = np.zeros((120, 4), dtype=np.float32)
    _, _, pairs = subslice_tensors([sub], features, features[:5], torch.device("cpu"))
    expected = published_distances(positions, virtual, 12)
    np.testing.assert_allclose(pairs[0].dense_distance(FAR).numpy(), expected, rtol=0, atol=5e-6)
