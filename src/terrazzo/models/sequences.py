"""Sequences of genes: tokens of many cells, batches of almost equal length, encoding with measured precision."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from terrazzo.errors import ConfigError
from terrazzo.genes import Vocabulary
from terrazzo.models.estimate import Precision
from terrazzo.progress import Progress
from terrazzo.sparse import merge_columns


@dataclass(frozen=True)
class Tokens:
    """Token sequences of many cells, one after the other, without ``<cls>``.

    Attributes
    ----------
    flat
        int32, all tokens.
    offsets
        int64 ``(n_cells + 1,)``: cell ``i`` is ``flat[offsets[i]:offsets[i + 1]]``.
    """

    flat: NDArray[np.int32]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of tokens of each cell, int64 ``(n_cells,)``."""
        return np.diff(self.offsets)

    def __getitem__(self, cell: int) -> NDArray[np.int32]:
        return self.flat[self.offsets[cell] : self.offsets[cell + 1]]

    def take(self, cells: NDArray[np.int64]) -> Tokens:
        """Return the sequences of these cells, in this order."""
        lengths = self.lengths[cells]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        source = np.repeat(self.offsets[cells] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return Tokens(self.flat[source], offsets)

    @classmethod
    def join(cls, parts: Sequence[Tokens]) -> Tokens:
        """Return the sequences of several, one after the other."""
        flat = np.concatenate([part.flat for part in parts])
        lengths = np.concatenate([part.lengths for part in parts])
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return cls(flat, offsets)

    def digests(self) -> NDArray[np.uint64]:
        """Return a 64-bit digest of each cell's sequence: equal sequences, equal digests, in any slice."""
        raw, bounds = self.flat.tobytes(), self.offsets * self.flat.itemsize
        out = [
            int.from_bytes(hashlib.blake2b(raw[a:b], digest_size=8).digest(), "little")
            for a, b in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
        ]
        return np.array(out, dtype=np.uint64)


def merge_tokens(
    counts: sparse.csr_matrix, token: NDArray[np.int32]
) -> tuple[sparse.csr_matrix, NDArray[np.int32]]:
    """Sum columns that share a token into the first of them, whose alone the token then is (upstream repeats it)."""
    matched = np.flatnonzero(token >= 0)
    _, first, inverse = np.unique(token[matched], return_index=True, return_inverse=True)
    if len(first) == len(matched):
        return counts, token
    target = np.arange(len(token))
    target[matched] = matched[first][inverse]
    alone = np.full_like(token, -1)
    alone[matched[first]] = token[matched[first]]
    return merge_columns(counts, target, len(token)), alone


PADDING = 0.03  # share of a batch that may be padding before a shorter cell opens the next batch


def length_batches(lengths: NDArray[np.int64], batch_tokens: int) -> Iterator[NDArray[np.int64]]:
    """Yield index sets of cells of almost the same length, longest first.

    A batch holds at most ``batch_tokens`` tokens (one cell at least) and at most 3 % padding; cells of length 0 are
    left out.
    """
    order = np.argsort(-lengths, kind="stable")[: np.count_nonzero(lengths)]
    start = 0
    while start < len(order):
        longest = int(lengths[order[start]])
        stop = min(len(order), start + max(1, batch_tokens // longest))
        taken = lengths[order[start:stop]]
        padding = longest * np.arange(1, len(taken) + 1) - np.cumsum(taken)
        stop = (
            start
            + int(np.flatnonzero(padding <= PADDING * longest * np.arange(1, len(taken) + 1))[-1])
            + 1
        )
        yield order[start:stop]
        start = stop


def pack(
    flat: NDArray[np.int32] | NDArray[np.float32],
    offsets: NDArray[np.int64],
    cells: NDArray[np.int64],
    lead: Sequence[float],
) -> Tensor:
    """Return the sequences of some cells, ``lead`` in front and zeros behind: int64 or float32 ``(batch, longest)``."""
    lengths = offsets[cells + 1] - offsets[cells] + len(lead)
    dtype = np.int64 if np.issubdtype(flat.dtype, np.integer) else np.float32
    out: NDArray[Any] = np.zeros((len(cells), int(lengths.max())), dtype=dtype)
    out[:, : len(lead)] = lead
    for row, cell in enumerate(cells):
        out[row, len(lead) : lengths[row]] = flat[offsets[cell] : offsets[cell + 1]]
    return torch.from_numpy(out)


def padding_mask(lengths: NDArray[np.int64]) -> Tensor | None:
    """Return int64 ``(batch, longest)``, 1 on tokens and 0 on padding; None where nothing is padding."""
    if lengths.min() == lengths.max():
        return None
    return torch.from_numpy((np.arange(lengths.max()) < lengths[:, None]).astype(np.int64))


SAMPLE = 16  # cells on which the error of bfloat16 is measured before it is used


def check_vocabulary(
    n_embeddings: int, vocabulary: Vocabulary, setting: str = "cell_encoder.vocab_size"
) -> int:
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
        raise ConfigError(
            "The vocabulary has no <cls> token; make it with Vocabulary.from_slices or from_geneformer."
        )
    return vocabulary.special["<cls>"]


def encode_measured(
    encode: Callable[..., NDArray[np.float32]],
    n_cells: int,
    precision: Precision,
    progress: Progress,
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
        cosine = (exact * vectors[rows]).sum(axis=1)[norms > 0] / norms[
            norms > 0
        ]  # an empty cell may have none
        details["bfloat16_min_cosine"] = float(cosine.min(initial=1.0))
    return vectors, details
