"""Sequences of gene tokens: those of many cells, batches of almost equal length, encoding with measured precision."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from terrazzo.arrays import Int32s, Ints, Vectors
from terrazzo.errors import ConfigError
from terrazzo.genes import Vocabulary
from terrazzo.models.estimate import Precision
from terrazzo.progress import Progress
from terrazzo.sparse import merge_columns

__all__ = [
    "PADDING",
    "Tokens",
    "check_vocabulary",
    "encode_measured",
    "length_batches",
    "merge_tokens",
    "pack",
    "padding_mask",
]

PADDING = 0.03  # share of a batch that may be padding before a shorter cell begins the next batch

SAMPLE = 16  # cells on which the error of bfloat16 is measured


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

    flat: Int32s
    offsets: Ints

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Ints:
        """Number of tokens of each cell, int64 ``(n_cells,)``."""
        return np.diff(self.offsets)

    def __getitem__(self, cell: int) -> Int32s:
        return self.flat[self.offsets[cell] : self.offsets[cell + 1]]

    def take(self, cells: Ints) -> Tokens:
        """Return the sequences of these cells, in this order."""
        lengths = self.lengths[cells]
        offsets = _offsets(lengths)
        shift = self.offsets[cells] - offsets[:-1]
        source = np.arange(offsets[-1]) + np.repeat(shift, lengths)
        return Tokens(self.flat[source], offsets)

    @classmethod
    def join(cls, parts: Sequence[Tokens]) -> Tokens:
        """Return the sequences of several, one after the other."""
        flat = np.concatenate([part.flat for part in parts])
        lengths = np.concatenate([part.lengths for part in parts])
        return cls(flat, _offsets(lengths))

    def digests(self) -> NDArray[np.uint64]:
        """Return a 64-bit digest of each cell's sequence: equal sequences, equal digests, in any slice."""
        raw = self.flat.tobytes()
        bounds = (self.offsets * self.flat.itemsize).tolist()
        numbers = []
        for start, end in pairwise(bounds):
            digest = hashlib.blake2b(raw[start:end], digest_size=8)
            numbers.append(int.from_bytes(digest.digest(), "little"))
        return np.array(numbers, dtype=np.uint64)


def _offsets(lengths: Ints) -> Ints:
    """Return where each sequence begins, and where the last ends."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def merge_tokens(counts: sparse.csr_matrix, token: Int32s) -> tuple[sparse.csr_matrix, Int32s]:
    """Sum columns that share a token into the first of them, and leave the token to it alone (upstream repeats it)."""
    matched = np.flatnonzero(token >= 0)
    _, first, inverse = np.unique(token[matched], return_index=True, return_inverse=True)
    if len(first) == len(matched):
        return counts, token
    first_columns = matched[first]
    target = np.arange(len(token))
    target[matched] = first_columns[inverse]
    merged_token = np.full_like(token, -1)
    merged_token[first_columns] = token[first_columns]
    return merge_columns(counts, target, len(token)), merged_token


def length_batches(lengths: Ints, batch_tokens: int) -> Iterator[Ints]:
    """Yield index sets of cells of almost the same length, longest first.

    A batch has at most ``batch_tokens`` tokens (one cell at least) and at most 3 % padding; cells of length 0 are
    left out.
    """
    longest_first = np.argsort(-lengths, kind="stable")
    order = longest_first[: np.count_nonzero(lengths)]
    start = 0
    while start < len(order):
        longest = int(lengths[order[start]])
        most = max(1, batch_tokens // longest)
        candidates = lengths[order[start : start + most]]
        n_cells = np.arange(1, len(candidates) + 1)
        padding = longest * n_cells - np.cumsum(candidates)
        fits = np.flatnonzero(padding <= PADDING * longest * n_cells)
        stop = start + int(fits[-1]) + 1
        yield order[start:stop]
        start = stop


def pack(flat: Int32s | Vectors, offsets: Ints, cells: Ints, lead: Sequence[float]) -> Tensor:
    """Return the sequences of some cells, ``lead`` in front and zeros behind: int64 or float32 ``(batch, longest)``."""
    n_lead = len(lead)
    lengths = offsets[cells + 1] - offsets[cells] + n_lead
    shape = (len(cells), int(lengths.max()))
    dtype = np.int64 if np.issubdtype(flat.dtype, np.integer) else np.float32
    packed: NDArray[Any] = np.zeros(shape, dtype=dtype)
    packed[:, :n_lead] = lead
    for row, cell in enumerate(cells):
        packed[row, n_lead : lengths[row]] = flat[offsets[cell] : offsets[cell + 1]]
    return torch.from_numpy(packed)


def padding_mask(lengths: Ints) -> Tensor | None:
    """Return int64 ``(batch, longest)``, 1 on tokens and 0 on padding; None where nothing is padding."""
    longest = lengths.max()
    if lengths.min() == longest:
        return None
    is_token = np.arange(longest) < lengths[:, None]
    return torch.from_numpy(is_token.astype(np.int64))


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
    encode: Callable[..., Vectors],
    n_cells: int,
    precision: Precision,
    progress: Progress,
) -> tuple[Vectors, dict[str, Any]]:
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
        steps = np.linspace(0, n_cells - 1, SAMPLE)
        rows = np.unique(steps.astype(np.int64))
        details["bfloat16_min_cosine"] = _least_cosine(encode(rows), vectors[rows])
    return vectors, details


def _least_cosine(exact: Vectors, rough: Vectors) -> float:
    """Return the least cosine between two vectors of one cell; an empty cell may have no direction."""
    norms = np.linalg.norm(exact, axis=1) * np.linalg.norm(rough, axis=1)
    products = (exact * rough).sum(axis=1)
    some = norms > 0
    cosine = products[some] / norms[some]
    return float(cosine.min(initial=1.0))
