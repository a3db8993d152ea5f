"""Published weights to checkpoint folders. Pickled containers are read for tensors only; code in them is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from terrazzo.errors import CheckpointError, ConfigError
from terrazzo.genes import Vocabulary
from terrazzo.models import checkpoint as ckpt
from terrazzo.models.published import filled, need, provenance, read_pickled_tensors
from terrazzo.systems.stofm.cell_encoder import CellEncoderConfig
from terrazzo.systems.stofm.cell_model import CellModel, CellModelConfig
from terrazzo.systems.stofm.config import SToFMConfig
from terrazzo.systems.stofm.model import SToFM
from terrazzo.systems.stofm.se2 import SE2Config
from terrazzo.systems.stofm.subslices import SubSliceConfig

PUBLISHED = SubSliceConfig(
    geometry="published", partition="grid", mix="sum"
)  # what published weights were trained with


LAYER_NAMES = {
    "self_attn.q_proj": "query",
    "self_attn.k_proj": "key",
    "self_attn.v_proj": "value",
    "self_attn.out_proj": "out",
    "self_attn_layer_norm": "attention_norm",
    "final_layer_norm": "final_norm",
    "fc1": "fc1",
    "fc2": "fc2",
}


def convert_stofm(published: str | Path, gene_dictionaries: str | Path) -> SToFM:
    """Read SToFM's published weights.

    Parameters
    ----------
    published
        Folder with ``config.json``, ``se2transformer.pth``, ``cell_encoder/cell_bert/`` and
        ``cell_encoder/cell_proj.bin``.
    gene_dictionaries
        Folder with Geneformer's ``token_dictionary.pkl``, ``gene_median_dictionary.pkl``, ``gene_name_id_dict.pkl``.

    Returns
    -------
    A model that gives the published outputs (``geometry="published"``, grid split).

    Raises
    ------
    CheckpointError
        A file is missing, damaged, tries to run code, or describes a model that this one cannot express.
    """
    root = Path(published)
    config_file, se2_file = root / "config.json", root / "se2transformer.pth"
    bert_dir, proj_file = (
        root / "cell_encoder" / "cell_bert",
        root / "cell_encoder" / "cell_proj.bin",
    )
    need(config_file, se2_file, bert_dir / "config.json", proj_file)
    vocabulary = Vocabulary.from_geneformer(gene_dictionaries)
    proj = read_pickled_tensors(proj_file)
    if set(proj) != {"weight", "bias"}:
        raise CheckpointError(
            f"{proj_file} must hold one linear layer (weight, bias), not {sorted(proj)[:4]}."
        )
    encoder, bert = _read_bert(bert_dir, pooling="cls", output_dim=proj["weight"].shape[0])
    config = SToFMConfig(encoder, _se2_config(config_file), PUBLISHED)
    state = {f"cell_encoder.bert.{k}": v for k, v in bert.items()}
    state |= {f"cell_encoder.proj.{k}": v for k, v in proj.items()}
    state |= {f"se2.{k}": v for k, v in _rename_se2(read_pickled_tensors(se2_file)).items()}
    model = SToFM(config, vocabulary, provenance=provenance("SToFM, published weights", root))
    return filled(model, state, root)


def convert_geneformer(published: str | Path, gene_dictionaries: str | Path) -> CellModel:
    """Read a Geneformer V1 checkpoint (transformers layout) as a cell encoder.

    Its vector is Geneformer's own read-out: the mean over genes of the second-to-last layer. One embedding, the mean of
    all others, is appended for ``<cls>``, which Geneformer V1 does not have, so that domain adaptation can start here.

    Parameters
    ----------
    published
        Folder with ``config.json`` and ``model.safetensors`` or ``pytorch_model.bin``.
    gene_dictionaries
        As for :func:`convert_stofm`.
    """
    root = Path(published)
    need(root / "config.json")
    vocabulary = Vocabulary.from_geneformer(gene_dictionaries)
    encoder, bert = _read_bert(
        root, pooling="mean", output_dim=None, vocab_size=vocabulary.n_tokens
    )
    words = bert["embeddings.word_embeddings.weight"]
    if len(words) < vocabulary.n_tokens:
        extra = words.mean(dim=0, keepdim=True).expand(vocabulary.n_tokens - len(words), -1)
        bert["embeddings.word_embeddings.weight"] = torch.cat([words, extra])
    model = CellModel(
        CellModelConfig(encoder), vocabulary, provenance=provenance("Geneformer", root)
    )
    return filled(model, {f"bert.{k}": v for k, v in bert.items()}, root)


def _read_bert(
    folder: Path, *, pooling: Any, output_dim: int | None, vocab_size: int | None = None
) -> tuple[CellEncoderConfig, dict[str, Tensor]]:
    """Read a transformers BERT folder: our config, and tensors named as in ``BertModel``."""
    data = ckpt.read_json(folder / "config.json")
    if data.get("model_type", "bert") != "bert":
        raise CheckpointError(f"{folder} holds a {data['model_type']!r} model, not BERT.")
    if data.get("position_embedding_type", "absolute") != "absolute":
        raise CheckpointError(f"{folder}: only absolute position embeddings are supported.")
    weights = next(
        (folder / n for n in ("model.safetensors", "pytorch_model.bin") if (folder / n).is_file()),
        None,
    )
    if weights is None:
        raise CheckpointError(f"{folder} has neither model.safetensors nor pytorch_model.bin.")
    read = ckpt.read_tensors if weights.suffix == ".safetensors" else read_pickled_tensors
    state = {k.removeprefix("bert."): v.float() for k, v in read(weights).items()}
    ignored = (
        "pooler.",
        "cls.",
        "embeddings.position_ids",
    )  # BERT's own pooler and language-model head: unused
    state = {k: v for k, v in state.items() if not k.startswith(ignored)}
    try:
        config = CellEncoderConfig(
            vocab_size=max(data["vocab_size"], vocab_size or 0),
            hidden_size=data["hidden_size"],
            num_layers=data["num_hidden_layers"],
            num_heads=data["num_attention_heads"],
            intermediate_size=data["intermediate_size"],
            max_length=data["max_position_embeddings"],
            output_dim=output_dim or data["hidden_size"],
            dropout=data.get("hidden_dropout_prob", 0.0),
            attention_dropout=data.get("attention_probs_dropout_prob", 0.0),
            activation=data["hidden_act"],
            layer_norm_eps=data["layer_norm_eps"],
            pooling=pooling,
        )
    except KeyError as error:
        raise CheckpointError(f"{folder / 'config.json'} lacks {error}.") from error
    return config, state


def _se2_config(path: Path) -> SE2Config:
    data = ckpt.read_json(path)
    if (
        data.get("activation_fn", "gelu") != "gelu"
        or data.get("pre_layernorm")
        or data.get("encoder_normalize_before")
    ):
        raise CheckpointError(f"{path}: only post-LayerNorm with GELU, as published, is supported.")
    try:
        return SE2Config(
            input_dim=data["input_dim"],
            hidden_size=data["hidden_size"],
            num_layers=data["num_hidden_layers"],
            num_heads=data["num_attention_heads"],
            ffn_size=data["ffn_embedding_dim"],
            num_kernels=data["gaussian_hidden_dim"],
            dropout=data.get("dropout", 0.1),
            attention_dropout=data.get("attention_dropout", 0.1),
            activation_dropout=data.get("activation_dropout", 0.1),
        )
    except KeyError as error:
        raise CheckpointError(f"{path} lacks {error}.") from error


def _rename_se2(published: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give the published tensors the names of :class:`~terrazzo.systems.stofm.se2.SE2Transformer`."""
    out = {}
    for name, tensor in published.items():
        name = name.replace("embedding_layer.", "embedding.").replace(
            "token_type_embeddings.", "token_types."
        )
        name = name.replace("gaussian.means.weight", "gaussian.means").replace(
            "gaussian.stds.weight", "gaussian.stds"
        )
        if name.startswith("encoder.layers."):
            number, rest = name.removeprefix("encoder.layers.").split(".", 1)
            part, kind = rest.rsplit(".", 1)
            name = f"layers.{number}.{LAYER_NAMES.get(part, part)}.{kind}"
        out[name] = tensor[0] if name in ("gaussian.means", "gaussian.stds") else tensor
    return out


def save_stofm(
    published: Path, out: Path, *, gene_dictionaries: Path | None, overwrite: bool
) -> Path:
    """Convert SToFM's published weights to a folder; see :func:`terrazzo.convert`."""
    dictionaries = _needed(gene_dictionaries, "SToFM")
    return convert_stofm(published, dictionaries).save_pretrained(out, overwrite=overwrite)


def save_geneformer(
    published: Path, out: Path, *, gene_dictionaries: Path | None, overwrite: bool
) -> Path:
    """Convert Geneformer's published weights to a folder; see :func:`terrazzo.convert`."""
    dictionaries = _needed(gene_dictionaries, "Geneformer")
    return convert_geneformer(published, dictionaries).save_pretrained(out, overwrite=overwrite)


def _needed(gene_dictionaries: Path | None, title: str) -> Path:
    if gene_dictionaries is None:
        raise ConfigError(
            f"{title} needs Geneformer's dictionaries: pass their folder as gene_dictionaries= "
            "(--gene-dictionaries)."
        )
    return gene_dictionaries
