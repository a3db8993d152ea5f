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

HEADS = (  # what scGPT is trained with beside the encoder, and does not use for the vectors of cells
    "decoder.",
    "mvc_decoder.",
    "cls_decoder.",
    "flag_encoder.",
    "batch_encoder.",
    "grad_reverse_discriminator.",
)


NAMES = (  # published name -> name in nn.scgpt, first match
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
    vocabulary_file, args_file, weights_file = (
        root / n for n in ("vocab.json", "args.json", "best_model.pt")
    )
    need(vocabulary_file, args_file, weights_file)
    vocabulary = Vocabulary.from_scgpt(vocabulary_file, gene_dictionaries)
    args = ckpt.read_json(args_file)
    state = _renamed(read_pickled_tensors(weights_file))
    if "genes.weight" not in state:
        raise CheckpointError(f"{weights_file} lacks encoder.embedding.weight: it holds no scGPT.")
    rows = len(state["genes.weight"])
    if rows != vocabulary.n_tokens:
        raise CheckpointError(
            f"{vocabulary_file} has {vocabulary.n_tokens:,} tokens (<pad>, <cls> and <eoc> included), {weights_file} "
            f"embeddings for {rows:,}: they belong to different models."
        )
    config = _config(args, args_file, rows)
    _check_layers(state, config, args_file, weights_file)
    return filled(
        ScGPT(config, vocabulary, provenance=provenance("scGPT, published weights", root)),
        state,
        root,
    )


def _renamed(published: dict[str, Tensor]) -> dict[str, Tensor]:
    out = {}
    for name, tensor in published.items():
        if name.startswith(HEADS):
            continue
        rule = next(((old, new) for old, new in NAMES if re.match(old, name)), None)
        out[re.sub(*rule, name) if rule else name] = tensor
    return out


def _config(args: dict[str, Any], path: Path, vocab_size: int) -> ScGPTConfig:
    expected = {
        "input_style": "binned",
        "input_emb_style": "continuous",
        "pre_norm": False,
        "pad_token": "<pad>",
    }
    for key, wanted in expected.items():
        if args.get(key, wanted) != wanted:
            raise CheckpointError(
                f"{path}: {key} is {args[key]!r}; only {wanted!r}, as published, is supported."
            )

    def number(key: str, default: float | None = None) -> Any:
        value = args.get(key, default)
        if value is None:
            raise CheckpointError(f"{path} lacks {key!r}.")
        real = key in ("dropout", "pad_value")
        if isinstance(value, bool) or not isinstance(value, (int, float) if real else int):
            raise CheckpointError(
                f"{path}: {key} is {value!r}; it must be a {'' if real else 'whole '}number."
            )
        return value

    try:
        encoder = ScGPTEncoderConfig(
            vocab_size=vocab_size,
            hidden_size=number("embsize"),
            num_layers=number("nlayers"),
            num_heads=number("nheads"),
            ffn_size=number("d_hid"),
            dropout=float(number("dropout")),
            cls_value=float(number("pad_value")),
        )
        return ScGPTConfig(encoder, number("n_bins", 51), number("max_seq_len", 1200))
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _check_layers(
    state: dict[str, Tensor], config: ScGPTConfig, args_file: Path, weights_file: Path
) -> None:
    found = {int(name.split(".")[1]) for name in state if re.match(r"layers\.\d+\.", name)}
    if len(found) != config.encoder.num_layers:
        raise CheckpointError(
            f"{args_file} says nlayers {config.encoder.num_layers}, {weights_file} has {len(found)} layers: they "
            "belong to different models."
        )


def save_scgpt(
    published: Path, out: Path, *, gene_dictionaries: Path | None, overwrite: bool
) -> Path:
    """Convert scGPT's published weights to a folder; see :func:`terrazzo.convert`."""
    return convert_scgpt(published, gene_dictionaries).save_pretrained(out, overwrite=overwrite)
