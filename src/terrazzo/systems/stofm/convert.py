"""Published weights of SToFM and Geneformer to checkpoints. Of pickled files only tensors are read, no code is run."""

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

__all__ = [
    "LAYER_NAMES",
    "PUBLISHED",
    "convert_geneformer",
    "convert_stofm",
    "save_geneformer",
    "save_stofm",
]

# Settings that the published weights were trained with
PUBLISHED = SubSliceConfig(geometry="published", partition="grid", mix="sum")

# Published name of a layer's part -> name in SE2Transformer
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

# Of BERT: its own pooler and language-model head, which are not used
UNUSED = ("pooler.", "cls.", "embeddings.position_ids")

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
WORDS = "embeddings.word_embeddings.weight"


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
    config_file = root / "config.json"
    se2_file = root / "se2transformer.pth"
    bert_folder = root / "cell_encoder" / "cell_bert"
    proj_file = root / "cell_encoder" / "cell_proj.bin"
    need(config_file, se2_file, bert_folder / "config.json", proj_file)
    vocabulary = Vocabulary.from_geneformer(gene_dictionaries)
    proj = read_pickled_tensors(proj_file)
    if set(proj) != {"weight", "bias"}:
        raise CheckpointError(
            f"{proj_file} must have one linear layer (weight, bias), not {sorted(proj)[:4]}."
        )
    output_dim = proj["weight"].shape[0]
    encoder, bert = _read_bert(bert_folder, pooling="cls", output_dim=output_dim)
    config = SToFMConfig(encoder, _se2_config(config_file), PUBLISHED)
    se2 = _rename_se2(read_pickled_tensors(se2_file))
    state = _prefixed("cell_encoder.bert.", bert)
    state.update(_prefixed("cell_encoder.proj.", proj))
    state.update(_prefixed("se2.", se2))
    model = SToFM(config, vocabulary, provenance=provenance("SToFM, published weights", root))
    return filled(model, state, root)


def convert_geneformer(published: str | Path, gene_dictionaries: str | Path) -> CellModel:
    """Read a Geneformer V1 checkpoint (transformers layout) as a cell encoder.

    Its vector is Geneformer's own: the mean over genes of the second-to-last layer. One embedding, the mean of all
    others, is appended for ``<cls>``, which Geneformer V1 does not have, so that domain adaptation can start from it.

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
    words = bert[WORDS]
    n_missing = vocabulary.n_tokens - len(words)
    if n_missing > 0:
        extra = words.mean(dim=0, keepdim=True).expand(n_missing, -1)
        bert[WORDS] = torch.cat([words, extra])
    config = CellModelConfig(encoder)
    model = CellModel(config, vocabulary, provenance=provenance("Geneformer", root))
    return filled(model, _prefixed("bert.", bert), root)


def _prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def _read_bert(
    folder: Path, *, pooling: Any, output_dim: int | None, vocab_size: int | None = None
) -> tuple[CellEncoderConfig, dict[str, Tensor]]:
    """Read a BERT folder of transformers: config of the cell encoder, and tensors named as in ``BertModel``."""
    data = ckpt.read_json(folder / "config.json")
    if data.get("model_type", "bert") != "bert":
        raise CheckpointError(f"{folder} has a {data['model_type']!r} model, not BERT.")
    if data.get("position_embedding_type", "absolute") != "absolute":
        raise CheckpointError(f"{folder}: only absolute position embeddings are supported.")
    tensors = _bert_tensors(folder)
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
    return config, tensors


def _bert_tensors(folder: Path) -> dict[str, Tensor]:
    """Read the tensors of BERT itself, by their names in ``BertModel``."""
    existing = [folder / name for name in WEIGHT_FILES if (folder / name).is_file()]
    if not existing:
        raise CheckpointError(f"{folder} has neither {' nor '.join(WEIGHT_FILES)}.")
    path = existing[0]
    if path.suffix == ".safetensors":
        published = ckpt.read_tensors(path)
    else:
        published = read_pickled_tensors(path)
    tensors = {}
    for name, tensor in published.items():
        inner = name.removeprefix("bert.")
        if not inner.startswith(UNUSED):
            tensors[inner] = tensor.float()
    return tensors


def _se2_config(path: Path) -> SE2Config:
    data = ckpt.read_json(path)
    activation = data.get("activation_fn", "gelu")
    is_pre_norm = data.get("pre_layernorm") or data.get("encoder_normalize_before")
    if activation != "gelu" or is_pre_norm:
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
    for published_name, tensor in published.items():
        name = published_name.replace("embedding_layer.", "embedding.")
        name = name.replace("token_type_embeddings.", "token_types.")
        name = name.replace("gaussian.means.weight", "gaussian.means")
        name = name.replace("gaussian.stds.weight", "gaussian.stds")
        if name.startswith("encoder.layers."):
            number, rest = name.removeprefix("encoder.layers.").split(".", 1)
            part, kind = rest.rsplit(".", 1)
            name = f"layers.{number}.{LAYER_NAMES.get(part, part)}.{kind}"
        if name in ("gaussian.means", "gaussian.stds"):
            tensor = tensor[0]
        out[name] = tensor
    return out


def save_stofm(
    published: Path, out: Path, *, gene_dictionaries: Path | None, overwrite: bool
) -> Path:
    """Convert SToFM's published weights to a folder; see :func:`terrazzo.convert`."""
    dictionaries = _needed(gene_dictionaries, "SToFM")
    model = convert_stofm(published, dictionaries)
    return model.save_pretrained(out, overwrite=overwrite)


def save_geneformer(
    published: Path, out: Path, *, gene_dictionaries: Path | None, overwrite: bool
) -> Path:
    """Convert Geneformer's published weights to a folder; see :func:`terrazzo.convert`."""
    dictionaries = _needed(gene_dictionaries, "Geneformer")
    model = convert_geneformer(published, dictionaries)
    return model.save_pretrained(out, overwrite=overwrite)


def _needed(gene_dictionaries: Path | None, title: str) -> Path:
    if gene_dictionaries is None:
        raise ConfigError(
            f"{title} needs Geneformer's dictionaries: pass their folder as gene_dictionaries= "
            "(--gene-dictionaries)."
        )
    return gene_dictionaries
