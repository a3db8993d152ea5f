"""scGPT's published weights to a checkpoint: vocab.json, args.json, best_model.pt; tensors only."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from terrazzo.errors import CheckpointError, ConfigError
from terrazzo.genes import Vocabulary
from terrazzo.models import checkpoint as ckpt
from terrazzo.models.published import filled, need, provenance, read_pickled_tensors
from terrazzo.systems.scgpt.model import ScGPT, ScGPTConfig
from terrazzo.systems.scgpt.network import ScGPTEncoderConfig

__all__ = ["convert_scgpt", "save_scgpt"]

# Parts of published weights that are trained beside the encoder, and not used for the vectors of cells
HEADS = (
    "decoder.",
    "mvc_decoder.",
    "cls_decoder.",
    "flag_encoder.",
    "batch_encoder.",
    "grad_reverse_discriminator.",
)

# Published name -> name in ScGPTEncoder, first match
NAMES = (
    (r"^encoder\.embedding\.", "genes."),
    (r"^encoder\.enc_norm\.", "gene_norm."),
    (r"^value_encoder\.", "values."),
    (
        r"^transformer_encoder\.layers\.(\d+)\.self_attn\.(?:_impl\.)?Wqkv\.",
        r"layers.\1.self_attn.in_proj_",
    ),
    (
        r"^transformer_encoder\.layers\.(\d+)\.self_attn\._impl\.out_proj\.",
        r"layers.\1.self_attn.out_proj.",
    ),
    (r"^transformer_encoder\.layers\.", "layers."),
)

# Settings of args.json with one supported value
EXPECTED = {
    "input_style": "binned",
    "input_emb_style": "continuous",
    "pre_norm": False,
    "pad_token": "<pad>",
}


def convert_scgpt(published: str | Path, gene_dictionaries: str | Path | None = None) -> ScGPT:
    """Read scGPT's published weights.

    Parameters
    ----------
    published
        Folder with ``vocab.json`` (symbol -> token), ``args.json`` and ``best_model.pt``, attention in the layout of
        flash-attention (``self_attn.Wqkv``) or of torch (``self_attn.in_proj_``).
    gene_dictionaries
        Folder with Geneformer's ``gene_name_id_dict.pkl``, so that genes are also known by Ensembl id; None: by symbol.

    Returns
    -------
    A model that follows scGPT's published path from counts to the vectors of cells.

    Raises
    ------
    CheckpointError
        A file is missing, damaged, tries to run code, does not fit the others, or describes a model that this one
        cannot express.
    """
    root = Path(published)
    vocabulary_file = root / "vocab.json"
    args_file = root / "args.json"
    weights_file = root / "best_model.pt"
    need(vocabulary_file, args_file, weights_file)
    vocabulary = Vocabulary.from_scgpt(vocabulary_file, gene_dictionaries)
    args = ckpt.read_json(args_file)
    state = _renamed(read_pickled_tensors(weights_file))
    if "genes.weight" not in state:
        raise CheckpointError(f"{weights_file} lacks encoder.embedding.weight: it is not scGPT.")
    rows = len(state["genes.weight"])
    if rows != vocabulary.n_tokens:
        raise CheckpointError(
            f"{vocabulary_file} has {vocabulary.n_tokens:,} tokens (<pad>, <cls> and <eoc> included), {weights_file} "
            f"embeddings for {rows:,}: they belong to different models."
        )
    config = _config(args, args_file, rows)
    _check_layers(state, config, args_file, weights_file)
    model = ScGPT(config, vocabulary, provenance=provenance("scGPT, published weights", root))
    return filled(model, state, root)


def _renamed(published: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the encoder's tensors by their names in :class:`ScGPTEncoder`."""
    return {
        _new_name(name): tensor for name, tensor in published.items() if not name.startswith(HEADS)
    }


def _new_name(name: str) -> str:
    for pattern, replacement in NAMES:
        if re.match(pattern, name):
            return re.sub(pattern, replacement, name)
    return name


def _config(args: dict[str, Any], path: Path, vocab_size: int) -> ScGPTConfig:
    """Return the hyperparameters that ``args.json`` has, checked."""
    for key, expected in EXPECTED.items():
        if args.get(key, expected) != expected:
            raise CheckpointError(
                f"{path}: {key} is {args[key]!r}; only {expected!r}, as published, is supported."
            )

    def whole(key: str, default: int | None = None) -> int:
        value = args.get(key, default)
        if value is None:
            raise CheckpointError(f"{path} lacks {key!r}.")
        if isinstance(value, bool) or not isinstance(value, int):
            raise CheckpointError(f"{path}: {key} is {value!r}; it must be a whole number.")
        return value

    def real(key: str) -> float:
        value = args.get(key)
        if value is None:
            raise CheckpointError(f"{path} lacks {key!r}.")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise CheckpointError(f"{path}: {key} is {value!r}; it must be a number.")
        return float(value)

    try:
        encoder = ScGPTEncoderConfig(
            vocab_size=vocab_size,
            hidden_size=whole("embsize"),
            num_layers=whole("nlayers"),
            num_heads=whole("nheads"),
            ffn_size=whole("d_hid"),
            dropout=real("dropout"),
            cls_value=real("pad_value"),
        )
        return ScGPTConfig(encoder, whole("n_bins", 51), whole("max_seq_len", 1200))
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _check_layers(
    state: dict[str, Tensor], config: ScGPTConfig, args_file: Path, weights_file: Path
) -> None:
    numbers = [name.split(".")[1] for name in state if re.match(r"layers\.\d+\.", name)]
    n_layers = len(set(numbers))
    expected = config.encoder.num_layers
    if n_layers != expected:
        raise CheckpointError(
            f"{args_file} has nlayers {expected}, {weights_file} {n_layers} layers: they belong to different models."
        )


def save_scgpt(
    published: Path, out: Path, *, gene_dictionaries: Path | None, overwrite: bool
) -> Path:
    """Convert scGPT's published weights to a folder; see :func:`terrazzo.convert`."""
    model = convert_scgpt(published, gene_dictionaries)
    return model.save_pretrained(out, overwrite=overwrite)
