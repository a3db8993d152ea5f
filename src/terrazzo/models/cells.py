"""The cell encoder by itself: Geneformer as published, or SToFM's gene scale, as a model of its own.

It sees one cell at a time and no tissue: the baseline that SToFM's tables call "cell encoder" and "Geneformer".
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from anndata import AnnData
from numpy.typing import NDArray
from torch import nn

from terrazzo import keys
from terrazzo.errors import ConfigError
from terrazzo.genes import Coverage, GeneMatch, Vocabulary
from terrazzo.models.base import Embedding, FoundationModel, Plan, duration
from terrazzo.nn.cell_encoder import CellEncoder, CellEncoderConfig
from terrazzo.progress import Progress
from terrazzo.slices import Slice
from terrazzo.units.spots import Tokens, rank_tokens

logger = logging.getLogger(__name__)

Precision = Literal["float32", "bfloat16"]
SAMPLE = 16  # cells on which the error of bfloat16 is measured before it is used
ENCODER_SHARE = 0.7  # share of the matrix-product rate that the encoder reaches, for estimates
LONG_FLOPS = 1e12  # below this no machine is slow; measuring it would cost more than it tells
SLOW_SECONDS = 60.0  # advice is given for jobs longer than this


@dataclass(frozen=True)
class CellModelConfig:
    """Hyperparameters of a cell encoder on its own."""

    cell_encoder: CellEncoderConfig = field(default_factory=CellEncoderConfig)


def tokenise(tissue: Slice, match: GeneMatch, max_length: int) -> Tokens:
    """Return the ranked genes of every cell of a slice, as this model's vocabulary numbers them."""
    return rank_tokens(tissue.counts, match.column_token, match.column_median, max_length)


def check_vocabulary(n_embeddings: int, vocabulary: Vocabulary, setting: str = "cell_encoder.vocab_size") -> int:
    """Return the token that opens a sequence.

    Raises
    ------
    ConfigError
        There are fewer embeddings than the vocabulary has tokens, or there is no ``<cls>``.
    """
    if vocabulary.n_tokens > n_embeddings:
        raise ConfigError(
            f"The vocabulary has {vocabulary.n_tokens:,} tokens, the cell encoder only {n_embeddings:,}: "
            f"set {setting} to the vocabulary's n_tokens."
        )
    if "<cls>" not in vocabulary.special:
        raise ConfigError("The vocabulary has no <cls> token; make it with Vocabulary.from_slices or from_geneformer.")
    return vocabulary.special["<cls>"]


def encode_cells(
    encoder: CellEncoder,
    tokens: Tokens,
    cls_token: int,
    precision: Precision,
    progress: Progress,
) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """Encode all cells; with bfloat16 also measure its error on a few of them.

    Returns
    -------
    float32 ``(n_cells, output_dim)``, and details for the provenance.
    """

    def encode(rows: NDArray[np.int64] | None, **how: Any) -> NDArray[np.float32]:
        part = tokens if rows is None else tokens.take(rows)
        return encoder.encode(part.flat, part.offsets, cls_token=cls_token, **how)

    return encode_measured(encode, len(tokens), precision, progress)


def encode_measured(
    encode: Callable[..., NDArray[np.float32]], n_cells: int, precision: Precision, progress: Progress
) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """Encode all cells; with bfloat16 also measure its error on a few of them.

    Parameters
    ----------
    encode
        Takes the cells (None: all of them), ``precision`` and ``advance``; returns their vectors.

    Returns
    -------
    float32 ``(n_cells, d)``, and details for the provenance.
    """
    if precision not in ("float32", "bfloat16"):
        raise ConfigError(f"precision is {precision!r}; it must be 'float32' or 'bfloat16'.")
    details: dict[str, Any] = {"precision": precision}
    with progress.stage("encode cells", n_cells) as advance:
        vectors = encode(None, precision=precision, advance=advance)
    if precision == "bfloat16":
        rows = np.unique(np.linspace(0, n_cells - 1, SAMPLE).astype(np.int64))
        exact = encode(rows)
        norms = np.linalg.norm(exact, axis=1) * np.linalg.norm(vectors[rows], axis=1)
        cosine = (exact * vectors[rows]).sum(axis=1)[norms > 0] / norms[norms > 0]  # an empty cell may have none
        details["bfloat16_min_cosine"] = float(cosine.min(initial=1.0))
    return vectors, details


def matmul_rate(precision: Precision = "float32", device: torch.device | None = None) -> float:
    """Measure this machine's matrix-product rate, in operations a second (takes about 50 ms)."""
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    left = torch.ones(1024, 512, dtype=dtype, device=device)
    right = torch.ones(512, 512, dtype=dtype, device=device)
    for _ in range(2):
        left @ right
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < 0.05:
        float((left @ right)[0, 0])
        done += 1
    return done * 2 * 1024 * 512 * 512 / (time.perf_counter() - start)


def advice(seconds: float, device: torch.device, precision: Precision, rates: tuple[float, float]) -> tuple[str, ...]:
    """Say what would make a long job shorter on this machine."""
    if seconds < SLOW_SECONDS:
        return ()
    out = []
    if device.type == "cpu" and torch.cuda.is_available():
        out.append('move the model to the GPU: model.to("cuda") or --device cuda')
    elif device.type == "cpu":
        out.append("a GPU")
    if precision == "float32" and rates[1] > 1.5 * rates[0]:
        out.append(f"precision='bfloat16' (measured here: {rates[1] / rates[0]:.1f} times the matrix-product rate)")
    out.append("a smaller model (the presets `small` and `tiny`)")
    return tuple(out)


class Counting(Protocol):
    """An encoder that knows what sequences cost."""

    def flops(self, lengths: NDArray[np.int64]) -> float:
        """Return the operations that sequences of these lengths, ``<cls>`` included, take."""


def warn_if_long(
    encoder: Counting, lengths: NDArray[np.int64], precision: Precision, device: torch.device, name: str
) -> None:
    """Log, before a long encoding begins, how long it will take and what would make it faster.

    ``lengths`` are those of the sequences, int64 ``(n_cells,)``, ``<cls>`` included.
    """
    if encoder.flops(lengths) < LONG_FLOPS:
        return
    seconds, rates = encoding_time(encoder, lengths, precision, device)
    if seconds >= SLOW_SECONDS:
        hints = "; ".join(advice(seconds, device, precision, rates))
        logger.warning(
            "%s: %s cells will take about %s. Faster: %s.", name, f"{len(lengths):,}", duration(seconds), hints
        )


def encoding_time(
    encoder: Counting, lengths: NDArray[np.int64], precision: Precision, device: torch.device
) -> tuple[float, tuple[float, float]]:
    """Estimate the seconds that sequences take; also the rates measured (float32, bfloat16)."""
    rates = (matmul_rate("float32", device), matmul_rate("bfloat16", device))
    return encoder.flops(lengths) / (rates[precision == "bfloat16"] * ENCODER_SHARE), rates


def plan_encoder(
    model: FoundationModel, encoder: CellEncoder, tissue: Slice, orthologs: Any, precision: Precision
) -> tuple[float, Coverage, tuple[float, float]]:
    """Estimate the cell encoder's seconds on a slice; also the coverage and the rates (float32, bfloat16)."""
    match = model.vocabulary.match(tissue, orthologs=orthologs)
    lengths = tokenise(tissue, match, encoder.config.max_length).lengths + 1
    seconds, rates = encoding_time(encoder, lengths, precision, model.device)
    return seconds, match.coverage, rates


class CellModel(FoundationModel):
    """A cell encoder alone: one vector per cell from its own genes, no neighbourhood.

    Parameters
    ----------
    config
        :class:`CellModelConfig`.
    vocabulary
        Genes, tokens and medians.
    seed
        Seed of random initial weights.
    provenance
        Where the weights come from.
    """

    model_type: ClassVar[str] = "cell_encoder"
    default_key: ClassVar[str] = keys.X_CELL
    config_class: ClassVar[type] = CellModelConfig
    title: ClassVar[str] = "Cell encoder"
    limits: ClassVar[tuple[str, ...]] = ("A cell is seen alone: its neighbourhood changes nothing.",)
    module: CellEncoder

    def _build(self) -> nn.Module:
        self.cls_token = check_vocabulary(self.config.cell_encoder.vocab_size, self.vocabulary)
        return CellEncoder(self.config.cell_encoder)

    def embed(
        self,
        data: Any,
        *,
        key_added: str | None = None,
        precision: Precision = "float32",
        orthologs: Any = None,
        progress: bool | None = None,
        **slice_options: Any,
    ) -> Any:
        """Write ``obsm["X_cell"]``; arguments as in :meth:`terrazzo.SToFM.embed`."""
        bars = Progress(progress)

        def run(tissue: Slice, adata: AnnData) -> Embedding:
            match = self.vocabulary.match(tissue, orthologs=orthologs)
            tokens = tokenise(tissue, match, self.config.cell_encoder.max_length)
            warn_if_long(self.module, tokens.lengths + 1, precision, self.device, tissue.name)
            vectors, details = encode_cells(self.module, tokens, self.cls_token, precision, bars)
            return Embedding(vectors, tokens.lengths == 0, match.coverage, details)

        return self._embed_all(data, key_added or self.default_key, {"precision": precision}, slice_options, run)

    def plan(self, data: Any, *, precision: Precision = "float32", orthologs: Any = None, **options: Any) -> Plan:
        """Say what :meth:`embed` would do and how long it would take; same options."""
        slice_options = {k: v for k, v in options.items() if k not in ("key_added", "progress")}
        tissue = data if isinstance(data, Slice) else Slice.from_anndata(data, **slice_options)
        seconds, coverage, rates = plan_encoder(self, self.module, tissue, orthologs, precision)
        return Plan(tissue.n_cells, 0, coverage, seconds, advice(seconds, self.device, precision, rates))
