"""Published weights: converted where they are what they claim to be, and never run."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import terrazzo as tz
from terrazzo.errors import CheckpointError, TerrazzoWarning
from terrazzo.models.published import read_pickled_tensors
from terrazzo.systems.stofm.convert import LAYER_NAMES, convert_geneformer, convert_stofm

GENES = 60


class Payload:
    """Unpickling it would make a folder: harmless, and seen."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.target),))


@pytest.fixture
def dictionaries(tmp_path: Path, simulated: Any) -> Path:
    """Geneformer's three dictionaries, tiny, for the genes of the simulated tissue."""
    folder = tmp_path / "dictionaries"
    folder.mkdir()
    ids = simulated().var["ensembl_id"].tolist()
    rng = np.random.default_rng(0)
    contents = {
        "token_dictionary": {
            "<pad>": 0,
            "<mask>": 1,
            **{gene: i + 2 for i, gene in enumerate(ids)},
        },
        "gene_median_dictionary": {gene: float(rng.uniform(1, 9)) for gene in ids},
        "gene_name_id_dict": {f"SIM{i + 1}": gene for i, gene in enumerate(ids)},
    }
    for name, content in contents.items():
        (folder / f"{name}.pkl").write_bytes(pickle.dumps(content))
    return folder


def write_published(folder: Path, model: Any) -> Path:
    """Write a model of ours in the published layout."""
    bert = folder / "cell_encoder" / "cell_bert"
    bert.mkdir(parents=True)
    c, s = model.config.cell_encoder, model.config.se2
    (bert / "config.json").write_text(json.dumps(c.bert().to_dict() | {"model_type": "bert"}))
    state = {k: v.clone() for k, v in model.module.state_dict().items()}
    extra = {
        "pooler.dense.weight": torch.zeros(2, 2)
    }  # published: BERT's own pooler, which is not used
    tensors = {k.removeprefix("cell_encoder.bert."): v for k, v in state.items() if ".bert." in k}
    save_file(tensors | extra, bert / "model.safetensors")
    proj = {k.rsplit(".", 1)[1]: v for k, v in state.items() if "encoder.proj" in k}
    torch.save(proj, folder / "cell_encoder" / "cell_proj.bin")
    back = {ours: theirs for theirs, ours in LAYER_NAMES.items()}
    se2 = {}
    for name, tensor in state.items():
        if not name.startswith("se2."):
            continue
        name = name.removeprefix("se2.")
        if name in ("gaussian.means", "gaussian.stds"):
            name, tensor = f"{name}.weight", tensor[None]
        name = name.replace("embedding.", "embedding_layer.").replace(
            "token_types.", "token_type_embeddings."
        )
        if name.startswith("layers."):
            _, number, part, kind = name.split(".")
            name = f"encoder.layers.{number}.{back[part]}.{kind}"
        se2[name] = tensor
    torch.save(se2, folder / "se2transformer.pth")
    config = {
        "input_dim": s.input_dim,
        "hidden_size": s.hidden_size,
        "num_hidden_layers": s.num_layers,
        "num_attention_heads": s.num_heads,
        "ffn_embedding_dim": s.ffn_size,
        "gaussian_hidden_dim": s.num_kernels,
        "activation_fn": "gelu",
        "pre_layernorm": False,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def published(tmp_path: Path, dictionaries: Path, small_config: Any, loud: Any) -> tuple[Path, Any]:
    vocabulary = tz.Vocabulary.from_geneformer(dictionaries)
    model = tz.SToFM(
        small_config(
            vocabulary.n_tokens, geometry="published", partition="grid", mix="sum", n_neighbors=50
        ),
        vocabulary,
    )
    loud(model.module)
    return write_published(tmp_path / "published", model), model


def test_stofm_goes_there_and_back(
    published: tuple[Path, Any], dictionaries: Path, simulated: Any
) -> None:
    folder, model = published
    found = convert_stofm(folder, dictionaries)
    assert found.config.cell_encoder == model.config.cell_encoder
    assert found.config.se2 == model.config.se2
    assert (found.config.subslices.geometry, found.config.subslices.partition) == (
        "published",
        "grid",
    )
    assert found.trained
    for name, tensor in model.module.state_dict().items():
        assert torch.equal(found.module.state_dict()[name], tensor), name
    adata = simulated()
    adata.obs["given"] = np.arange(adata.n_obs) % 4
    first, second = (
        m.embed(adata.copy(), clusters="given", subslice_size=100, progress=False).obsm["X_stofm"]
        for m in (model, found)
    )
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "se2transformer.pth",
        "cell_encoder/cell_proj.bin",
        "cell_encoder/cell_bert/config.json",
        "cell_encoder/cell_bert/model.safetensors",
    ],
)
def test_a_missing_or_truncated_file(
    published: tuple[Path, Any], dictionaries: Path, name: str
) -> None:
    path = published[0] / name
    content = path.read_bytes()
    for share in (0.0, 0.02, 0.5, 0.99):
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(CheckpointError, match=path.name):
            convert_stofm(published[0], dictionaries)
    path.unlink()
    with pytest.raises(CheckpointError, match=path.name):
        convert_stofm(published[0], dictionaries)


def test_damaged_bytes_never_escape_as_another_error(
    published: tuple[Path, Any], tmp_path: Path
) -> None:
    content = (published[0] / "cell_encoder" / "cell_proj.bin").read_bytes()
    whole = read_pickled_tensors(published[0] / "cell_encoder" / "cell_proj.bin")
    rng = np.random.default_rng(0)
    path = tmp_path / "damaged.bin"
    refused = 0
    for _ in range(150):
        bad = bytearray(content)
        for place in rng.integers(0, len(bad), 3):
            bad[place] = rng.integers(0, 256)
        path.write_bytes(bad)
        try:
            found = read_pickled_tensors(path)
        except CheckpointError:
            refused += 1
        else:  # damage in the padding, or in the numbers, cannot be seen
            assert set(found) <= {"weight", "bias"} or len(found) == len(whole)
    assert refused > 10


def write_legacy(path: Path, content: Any) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def write_plain(path: Path, content: Any) -> None:
    path.write_bytes(pickle.dumps(content))


def write_zip(path: Path, content: Any) -> None:
    torch.save(content, path)


@pytest.mark.parametrize("write", [write_zip, write_legacy, write_plain])
@pytest.mark.parametrize("name", ["se2transformer.pth", "cell_encoder/cell_proj.bin"])
def test_a_malicious_pth_is_refused_and_not_run(
    published: tuple[Path, Any], dictionaries: Path, tmp_path: Path, write: Any, name: str
) -> None:
    target = tmp_path / "owned"
    write(published[0] / name, {"weight": torch.zeros(2, 2), "bias": Payload(target)})
    with pytest.raises(CheckpointError, match="refused"):
        convert_stofm(published[0], dictionaries)
    assert not target.exists()


def test_the_payload_would_run_if_it_were_let(tmp_path: Path) -> None:
    """Otherwise the tests above prove nothing."""
    buffer = io.BytesIO(pickle.dumps(Payload(tmp_path / "owned")))
    pickle.load(buffer)
    assert (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    "name", ["token_dictionary", "gene_median_dictionary", "gene_name_id_dict"]
)
def test_a_malicious_dictionary_is_refused_and_not_run(
    published: tuple[Path, Any], dictionaries: Path, tmp_path: Path, name: str
) -> None:
    target = tmp_path / "owned"
    (dictionaries / f"{name}.pkl").write_bytes(pickle.dumps({"ENSG00000000001": Payload(target)}))
    with pytest.raises(CheckpointError, match=name):
        convert_stofm(published[0], dictionaries)
    assert not target.exists()
    (dictionaries / f"{name}.pkl").unlink()
    with pytest.raises(CheckpointError, match=name):
        convert_stofm(published[0], dictionaries)


@pytest.mark.parametrize(
    "content",
    [[1, 2], {"weight": 3}, {"weight": "text"}, torch.zeros(3), {"a": {"b": torch.zeros(1)}}],
)
def test_what_is_no_state_dict(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="state dict"):
        read_pickled_tensors(tmp_path / "x.pth")


def test_a_zip_that_is_no_checkpoint(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as file:
        file.writestr("hello.txt", "hello")
    with pytest.raises(CheckpointError):
        read_pickled_tensors(tmp_path / "x.pth")


def test_half_precision_weights_become_float32(tmp_path: Path) -> None:
    torch.save(
        {"weight": torch.ones(2, dtype=torch.float16), "n": torch.tensor([3])}, tmp_path / "x.pth"
    )
    found = read_pickled_tensors(tmp_path / "x.pth")
    assert found["weight"].dtype == torch.float32
    assert found["n"].dtype == torch.int64


def change_json(path: Path, **values: Any) -> None:
    data = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in (data | values).items() if v is not ...}))


@pytest.mark.parametrize(
    ("name", "values", "says"),
    [
        ("config.json", {"activation_fn": "relu"}, "GELU"),
        ("config.json", {"pre_layernorm": True}, "post-LayerNorm"),
        ("config.json", {"gaussian_hidden_dim": ...}, "gaussian_hidden_dim"),
        ("config.json", {"gaussian_hidden_dim": 99}, "another shape"),
        ("config.json", {"num_hidden_layers": 3}, "lacks"),
        ("cell_encoder/cell_bert/config.json", {"model_type": "gpt2"}, "gpt2"),
        (
            "cell_encoder/cell_bert/config.json",
            {"position_embedding_type": "relative_key"},
            "absolute",
        ),
        ("cell_encoder/cell_bert/config.json", {"hidden_act": ...}, "hidden_act"),
    ],
)
def test_models_that_cannot_be_expressed(
    published: tuple[Path, Any], dictionaries: Path, name: str, values: dict[str, Any], says: str
) -> None:
    change_json(published[0] / name, **values)
    with pytest.raises(CheckpointError, match=says):
        convert_stofm(published[0], dictionaries)


def test_foreign_tensors_are_named_and_left_out(
    published: tuple[Path, Any], dictionaries: Path
) -> None:
    path = published[0] / "se2transformer.pth"
    state = read_pickled_tensors(path)
    torch.save(state | {"lm_head.weight": torch.zeros(2)}, path)
    with pytest.warns(TerrazzoWarning, match=r"1 tensors have no place.*lm_head"):
        found = convert_stofm(published[0], dictionaries)
    assert torch.equal(found.module.se2.embedding.weight, published[1].module.se2.embedding.weight)


def test_a_projection_of_another_kind(published: tuple[Path, Any], dictionaries: Path) -> None:
    torch.save({"0.weight": torch.zeros(2, 2)}, published[0] / "cell_encoder" / "cell_proj.bin")
    with pytest.raises(CheckpointError, match="one linear layer"):
        convert_stofm(published[0], dictionaries)


@pytest.mark.parametrize("layout", ["safetensors", "bin"])
def test_geneformer_from_what_transformers_saved(
    tmp_path: Path, dictionaries: Path, simulated: Any, layout: str
) -> None:
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=GENES + 2,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
        hidden_act="relu",
        pad_token_id=0,
        hidden_dropout_prob=0.02,
    )
    theirs = BertForMaskedLM(config).eval()
    folder = tmp_path / "geneformer"
    theirs.save_pretrained(folder)
    if layout == "bin":
        torch.save(theirs.state_dict(), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    model = convert_geneformer(folder, dictionaries)
    assert model.trained
    assert model.vocabulary.special["<cls>"] == GENES + 2  # Geneformer V1 has none: appended
    words = model.module.bert.embeddings.word_embeddings.weight
    torch.testing.assert_close(words[-1], theirs.bert.embeddings.word_embeddings.weight.mean(dim=0))
    adata = simulated()
    found = model.embed(adata, progress=False).obsm["X_cell"]
    match = model.vocabulary.match(tz.Slice.from_anndata(adata))
    counts = adata.X.toarray()
    for cell in (0, 7, 100):
        score = counts[cell] / match.column_median
        genes = [g for g in np.argsort(-score, kind="stable") if counts[cell, g] > 0]
        ids = torch.tensor([match.column_token[genes].tolist()])
        with torch.no_grad():
            states = theirs.bert(ids, output_hidden_states=True).hidden_states[-2][0]
        np.testing.assert_allclose(found[cell], states.mean(dim=0).numpy(), rtol=0, atol=1e-5)
    saved = tz.load(model.save_pretrained(tmp_path / "checkpoint"))
    np.testing.assert_array_equal(saved.embed(adata.copy(), progress=False).obsm["X_cell"], found)


def test_geneformer_without_its_files(tmp_path: Path, dictionaries: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        convert_geneformer(tmp_path / "nothing", dictionaries)


def test_a_folder_is_not_changed_by_reading_it(
    published: tuple[Path, Any], dictionaries: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(published[0], copy)
    convert_stofm(published[0], dictionaries)
    for path in copy.rglob("*"):
        other = published[0] / path.relative_to(copy)
        assert path.is_dir() or path.read_bytes() == other.read_bytes()
    assert len(list(copy.rglob("*"))) == len(list(published[0].rglob("*")))
