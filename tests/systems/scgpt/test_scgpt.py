"""scGPT from its published layout: converted exactly, embedding as published, and every damaged download refused."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import torch

import terrazzo as tz
from terrazzo.cli import main
from terrazzo.errors import CheckpointError, GeneError, TerrazzoWarning
from terrazzo.systems.scgpt.convert import convert_scgpt
from terrazzo.systems.scgpt.model import ScGPT

WIDTH, HEADS, LAYERS, HIDDEN = 32, 4, 2, 40
ARGS = {
    "input_style": "binned",
    "input_emb_style": "continuous",
    "n_bins": 51,
    "max_seq_len": 1200,
    "pad_token": "<pad>",
    "pad_value": -2,
    "mask_value": -1,
    "nlayers": LAYERS,
    "nheads": HEADS,
    "embsize": WIDTH,
    "d_hid": HIDDEN,
    "dropout": 0.2,
    "n_layers_cls": 3,
    "fast_transformer": True,
    "save_dir": "somewhere",
    "mask_ratio": [0.25, 0.5],
}


class Payload:
    """Unpickling it would make a folder: harmless, and seen."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.target),))


def names(n_genes: int) -> dict[str, int]:
    """A vocabulary in the published order: genes first, special tokens last."""
    listed = [*(f"SIM{i + 1}" for i in range(n_genes)), "OTHER", "<pad>", "<cls>", "<eoc>"]
    return {name: i for i, name in enumerate(listed)}


def weights(n_tokens: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Loud random weights, published names, flash-attention layout, heads included."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=g) / (shape[-1] ** 0.5 if len(shape) > 1 else 5)

    out = {
        "encoder.embedding.weight": torch.randn(n_tokens, WIDTH, generator=g),
        "flag_encoder.weight": draw(2, WIDTH),
    }
    out |= {
        "value_encoder.linear1.weight": draw(WIDTH, 1),
        "value_encoder.linear1.bias": 45 * draw(WIDTH),
    }
    linear = {
        "value_encoder.linear2": (WIDTH, WIDTH),
        "decoder.fc.0": (WIDTH, WIDTH),
        "decoder.fc.4": (1, WIDTH),
    }
    linear |= {"mvc_decoder.gene2query": (WIDTH, WIDTH), "cls_decoder.out_layer": (1, WIDTH)}
    norms = ["encoder.enc_norm", "value_encoder.norm"]
    for i in range(LAYERS):
        at = f"transformer_encoder.layers.{i}"
        linear |= {
            f"{at}.self_attn.Wqkv": (3 * WIDTH, WIDTH),
            f"{at}.self_attn.out_proj": (WIDTH, WIDTH),
        }
        linear |= {f"{at}.linear1": (HIDDEN, WIDTH), f"{at}.linear2": (WIDTH, HIDDEN)}
        norms += [f"{at}.norm1", f"{at}.norm2"]
    for name, shape in linear.items():
        out |= {f"{name}.weight": 2 * draw(*shape), f"{name}.bias": draw(shape[0])}
    for name in norms:
        out |= {f"{name}.weight": 1 + draw(WIDTH), f"{name}.bias": draw(WIDTH)}
    return out


def as_torch(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same weights as a model without flash-attention saves them."""
    return {k.replace("self_attn.Wqkv.", "self_attn.in_proj_"): v for k, v in state.items()}


def write(folder: Path, vocab: Any = None, args: Any = None, state: Any = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    vocab = names(60) if vocab is None else vocab
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "args.json").write_text(json.dumps(ARGS if args is None else args))
    torch.save(weights(len(vocab)) if state is None else state, folder / "best_model.pt")
    return folder


@pytest.fixture
def published(tmp_path: Path) -> Path:
    return write(tmp_path / "scGPT_human")


@pytest.fixture
def adata(simulated: Any) -> anndata.AnnData:
    out = simulated()
    out.var.index = [f"SIM{i + 1}" for i in range(60)]
    counts = out.X.tolil()
    counts[3] = 0
    out.X = counts.tocsr()
    return out


def plainly(state: dict[str, torch.Tensor], genes: list[int], values: list[float]) -> torch.Tensor:
    """The published forward pass from published names: torch's own layers, one cell, no padding."""
    f = torch.nn.functional

    def part(prefix: str) -> dict[str, torch.Tensor]:
        return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}

    def norm(x: torch.Tensor, prefix: str) -> torch.Tensor:
        return f.layer_norm(x, (WIDTH,), state[f"{prefix}.weight"], state[f"{prefix}.bias"])

    def linear(x: torch.Tensor, prefix: str) -> torch.Tensor:
        return f.linear(x, state[f"{prefix}.weight"], state[f"{prefix}.bias"])

    x = norm(state["encoder.embedding.weight"][torch.tensor(genes)], "encoder.enc_norm")
    v = f.relu(linear(torch.tensor(values)[:, None].clamp(max=512), "value_encoder.linear1"))
    layer = torch.nn.TransformerEncoderLayer(WIDTH, HEADS, HIDDEN, 0.2, batch_first=True)
    encoder = torch.nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False).eval()
    encoder.load_state_dict(part("transformer_encoder."))
    with torch.no_grad():
        out = encoder((x + norm(linear(v, "value_encoder.linear2"), "value_encoder.norm"))[None])[
            0, 0
        ]
    return out / out.norm()


def test_the_published_forward_pass(published: Path, adata: anndata.AnnData) -> None:
    model = convert_scgpt(published)
    assert model.trained
    assert (len(model.vocabulary), model.vocabulary.n_tokens, model.cls_token) == (61, 64, 62)
    assert (model.config.n_bins, model.config.max_length, model.config.encoder.cls_value) == (
        51,
        1200,
        -2.0,
    )
    found = model.embed(adata, progress=False).obsm["X_scgpt"]
    assert (found.shape, found.dtype) == ((200, WIDTH), np.float32)
    tissue = tz.Slice.from_anndata(adata)
    cells = model.bin(tissue, model.vocabulary.match(tissue))
    state = as_torch(weights(64))
    for cell in (0, 3, 7, 100):
        own = slice(cells.tokens.offsets[cell], cells.tokens.offsets[cell + 1])
        counts = adata.X[cell].toarray()[0]
        np.testing.assert_array_equal(
            cells.tokens.flat[own], np.flatnonzero(counts)
        )  # SIMn has token n - 1
        expected = plainly(state, [62, *cells.tokens.flat[own]], [-2.0, *cells.values[own]])
        np.testing.assert_allclose(found[cell], expected.numpy(), rtol=0, atol=2e-6)
    np.testing.assert_array_equal(adata.obs["terrazzo_empty"], adata.X.sum(axis=1).A1 == 0)
    assert found[3] @ found[0] < 0.999


@pytest.mark.parametrize("layout", ["torch", "wrapped"])
def test_every_attention_layout_gives_the_same(
    published: Path, tmp_path: Path, layout: str
) -> None:
    state = weights(64)
    if layout == "torch":
        state = as_torch(state)
    else:
        state = {k.replace("self_attn.", "self_attn._impl."): v for k, v in state.items()}
    first, second = convert_scgpt(published), convert_scgpt(write(tmp_path / "other", state=state))
    assert first.module.state_dict().keys() == second.module.state_dict().keys()
    for name, tensor in first.module.state_dict().items():
        assert torch.equal(tensor, second.module.state_dict()[name]), name


def test_saved_and_loaded_it_is_the_same(
    published: Path, adata: anndata.AnnData, tmp_path: Path
) -> None:
    model = convert_scgpt(published)
    loaded = tz.load(model.save_pretrained(tmp_path / "checkpoint"))
    assert isinstance(loaded, ScGPT)
    assert loaded.fingerprint() == model.fingerprint()
    first, second = (m.embed(adata.copy(), progress=False) for m in (model, loaded))
    np.testing.assert_allclose(first.obsm["X_scgpt"], second.obsm["X_scgpt"], rtol=0, atol=2e-6)
    record = first.uns["terrazzo"]["X_scgpt"]
    assert record["model_type"] == "scgpt"
    assert json.loads(record["settings"]) == {"precision": "float32", "seed": 0}
    assert json.loads(record["details"])["n_sampled"] == 0


def test_a_seed_and_a_short_sequence(adata: anndata.AnnData, tmp_path: Path) -> None:
    model = convert_scgpt(write(tmp_path / "short", args=ARGS | {"max_seq_len": 12}))

    def run(data: anndata.AnnData, **options: Any) -> np.ndarray:
        return model.embed(data.copy(), progress=False, **options).obsm["X_scgpt"]

    first = run(adata)
    np.testing.assert_allclose(first, run(adata, seed=0), rtol=0, atol=2e-6)
    assert np.abs(first - run(adata, seed=1)).max() > 0.01
    rows = np.random.default_rng(0).permutation(200)
    np.testing.assert_allclose(run(adata[rows]), first[rows], rtol=0, atol=2e-6)
    moved = model.embed(adata.copy(), progress=False)
    n = (adata.X > 0).sum(axis=1)
    assert (
        json.loads(moved.uns["terrazzo"]["X_scgpt"]["details"])["n_sampled"]
        == int((n > 11).sum())
        > 0
    )
    prepared = model.prepare(tz.Slice.from_anndata(adata)).embed()
    np.testing.assert_allclose(prepared.vectors, first, rtol=0, atol=2e-6)
    near = model.embed(adata.copy(), precision="bfloat16", progress=False)
    assert json.loads(near.uns["terrazzo"]["X_scgpt"]["details"])["bfloat16_min_cosine"] > 0.98
    plan = model.plan(adata)
    assert (plan.cells, plan.subslices, plan.coverage.n_matched) == (200, 0, 60)


def test_mouse_comes_through_orthologs(published: Path, adata: anndata.AnnData) -> None:
    model = convert_scgpt(published)
    human = model.embed(adata.copy(), progress=False).obsm["X_scgpt"]
    mouse = adata.copy()
    mouse.var.index = [f"Murine{i}" for i in range(60)]
    mouse.var = mouse.var[[]]
    mouse.uns["organism"] = "mouse"
    table = {f"Murine{i}": f"SIM{i + 1}" for i in range(60)}
    found = model.embed(mouse.copy(), orthologs=table, progress=False).obsm["X_scgpt"]
    np.testing.assert_allclose(found, human, rtol=0, atol=2e-6)
    with (
        pytest.warns(TerrazzoWarning, match="orthologs"),
        pytest.raises(GeneError, match="symbols"),
    ):
        model.embed(mouse, progress=False)


def test_slices_with_ids_alone_need_the_dictionary(
    published: Path, adata: anndata.AnnData, tmp_path: Path
) -> None:
    named = convert_scgpt(published)
    expected = named.embed(adata.copy(), progress=False).obsm["X_scgpt"]
    plain = adata.copy()
    plain.var.index = plain.var.pop("ensembl_id").to_numpy()
    plain.var = plain.var[[]]
    with pytest.raises(GeneError, match="gene_symbols"):
        named.embed(plain.copy(), progress=False)
    ids = {f"SIM{i + 1}": gene for i, gene in enumerate(plain.var_names)}
    ids["OTHER"] = ids["SIM1"]  # two symbols of one gene: the first has it
    (tmp_path / "gene_name_id_dict.pkl").write_bytes(pickle.dumps(ids))
    known = convert_scgpt(published, tmp_path)
    found = known.embed(plain, progress=False).obsm["X_scgpt"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)
    assert known.vocabulary.ensembl_id.tolist().count("") == 1
    with pytest.raises(CheckpointError, match="gene_name_id_dict"):
        convert_scgpt(published, tmp_path / "nothing")


def test_special_tokens_are_appended_as_scgpt_does(tmp_path: Path) -> None:
    vocab = {k: v for k, v in names(60).items() if not k.startswith("<")}
    model = convert_scgpt(write(tmp_path / "bare", vocab, state=weights(64)))
    assert dict(model.vocabulary.special) == {"<pad>": 61, "<cls>": 62, "<eoc>": 63}


@pytest.mark.parametrize("name", ["vocab.json", "args.json", "best_model.pt"])
def test_a_missing_or_truncated_file(published: Path, name: str) -> None:
    path = published / name
    content = path.read_bytes()
    for share in (0.0, 0.02, 0.5, 0.99):
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(CheckpointError, match=path.name):
            convert_scgpt(published)
    path.unlink()
    with pytest.raises(CheckpointError, match=path.name):
        convert_scgpt(published)


def test_code_in_the_weights_is_not_run(published: Path, tmp_path: Path) -> None:
    torch.save({**weights(64), "extra": Payload(tmp_path / "ran")}, published / "best_model.pt")
    with pytest.raises(CheckpointError, match="Nothing was run"):
        convert_scgpt(published)
    (published / "best_model.pt").write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    with pytest.raises(CheckpointError, match=r"best_model\.pt"):
        convert_scgpt(published)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("vocab", "said"),
    [
        (names(59), "63 tokens"),
        (names(60) | {"MORE": 64}, "65 tokens"),
        (names(60) | {"SIM2": 0}, "more than once"),
        (names(60) | {"SIM2": -4}, "negative"),
        (names(60) | {"SIM2": 2**40}, "vocab.json"),
        (names(60) | {"SIM2": "1"}, "whole number"),
        (names(60) | {"SIM2": 1.0}, "whole number"),
        (names(60) | {"SIM2": True}, "whole number"),
        (list(names(60)), "must be a JSON object"),
    ],
)
def test_a_vocabulary_that_does_not_fit(tmp_path: Path, vocab: Any, said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        convert_scgpt(write(tmp_path / "bad", vocab, state=weights(64)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"nlayers": 3}, "nlayers 3"),
        ({"nlayers": 1}, "nlayers 1"),
        ({"embsize": 64}, "another shape"),
        ({"d_hid": 39}, "another shape"),
        ({"nheads": 5}, "multiple"),
        ({"nheads": "4"}, "nheads is '4'"),
        ({"nheads": None}, "lacks 'nheads'"),
        ({"dropout": True}, "dropout is True"),
        ({"dropout": 3}, "dropout is 3"),
        ({"n_bins": 1}, "n_bins"),
        ({"input_style": "log1p"}, "input_style"),
        ({"input_emb_style": "category"}, "input_emb_style"),
        ({"pre_norm": True}, "pre_norm"),
    ],
)
def test_settings_that_do_not_fit(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        convert_scgpt(write(tmp_path / "bad", args=ARGS | change))


def test_missing_and_foreign_tensors_are_named(tmp_path: Path) -> None:
    state = weights(64)
    short = {k: v for k, v in state.items() if k != "value_encoder.norm.bias"}
    with pytest.raises(CheckpointError, match=r"values\.norm\.bias"):
        convert_scgpt(write(tmp_path / "short", state=short))
    with pytest.raises(CheckpointError, match=r"encoder\.embedding\.weight"):
        convert_scgpt(write(tmp_path / "none", state={"weight": torch.zeros(2)}))
    odd = state | {"dsbn.bns.0.weight": torch.zeros(WIDTH)}
    with pytest.warns(TerrazzoWarning, match=r"dsbn\.bns\.0\.weight"):
        convert_scgpt(write(tmp_path / "odd", state=odd))


def test_on_the_command_line(
    published: Path, adata: anndata.AnnData, tmp_path: Path, capsys: Any
) -> None:
    def call(*words: Any) -> tuple[int, str]:
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    code, printed = call("convert", "scgpt", published, "--out", tmp_path / "checkpoint")
    assert (code, printed.count("\n")) == (0, 1)
    assert printed.endswith(f"ritten to {tmp_path / 'checkpoint'}\n")
    adata.write_h5ad(tmp_path / "slice.h5ad")
    code, _ = call(
        "embed",
        tmp_path / "slice.h5ad",
        "--model",
        tmp_path / "checkpoint",
        "--out",
        tmp_path / "out",
        "--seed",
        3,
    )
    assert code == 0
    assert anndata.read_h5ad(tmp_path / "out" / "slice.h5ad").obsm["X_scgpt"].shape == (200, WIDTH)
    code, printed = call(
        "embed", tmp_path / "slice.h5ad", "--model", published, "--out", tmp_path / "raw"
    )
    assert code == 2
    assert "terrazzo convert scgpt" in printed
    (published / "args.json").unlink()
    code, printed = call("convert", "scgpt", published, "--out", tmp_path / "second")
    assert (code, printed.count("\n")) == (2, 1)
    assert "args.json is missing" in printed
    assert not (tmp_path / "second").exists()


def test_it_takes_part_in_tables(published: Path, adata: anndata.AnnData, tmp_path: Path) -> None:
    from terrazzo.bench.entries import resolve
    from terrazzo.bench.samples import KEY

    folder = convert_scgpt(published).save_pretrained(tmp_path / "checkpoint")
    (system,) = [s for s in resolve(["scgpt"], [f"scgpt={folder}"]) if s.title == "scGPT"]
    assert not system.missing
    system.fit([])(adata)
    assert adata.obsm[KEY].shape == (200, WIDTH)
