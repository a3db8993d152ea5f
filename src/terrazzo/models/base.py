"""Base class of all models: construction, checkpoints, ``embed``."""

from __future__ import annotations

import abc
import datetime
import html
import json
import logging
import warnings
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch import nn

from terrazzo import keys, records
from terrazzo._version import __version__
from terrazzo.arrays import Bools, Vectors
from terrazzo.config import from_dict, to_dict
from terrazzo.errors import (
    CheckpointError,
    ConfigError,
    InputError,
    TerrazzoError,
    TerrazzoWarning,
    shortened,
)
from terrazzo.expression import median_depth
from terrazzo.genes import Coverage, Vocabulary
from terrazzo.models import checkpoint as ckpt
from terrazzo.models import hub
from terrazzo.models.card import LEAST_DEPTH, LICENSE, card
from terrazzo.models.estimate import Plan
from terrazzo.models.inputs import embed_each
from terrazzo.models.options import EmbedOptions, split_options
from terrazzo.progress import Progress
from terrazzo.slices import Slice

__all__ = ["Embedding", "FoundationModel", "Prepared", "joined", "require_counts"]

logger = logging.getLogger(__name__)

SHALLOW = (
    0.75  # share of the shallowest training slice's counts a cell; below it a slice gets a warning
)


@dataclass(frozen=True)
class Embedding:
    """Vectors of one slice, with their provenance.

    Attributes
    ----------
    vectors
        float32 ``(n_cells, d)``, rows as in the slice.
    empty
        bool ``(n_cells,)``: cells without a count that the model can use; they have a vector, too.
    coverage
        Share of the slice's genes and counts that the vocabulary covers.
    details
        More provenance, JSON-able.
    """

    vectors: Vectors
    empty: Bools
    coverage: Coverage
    details: dict[str, Any] = field(default_factory=dict)


class Prepared(abc.ABC):
    """One slice prepared for a model: its genes matched, its parts cut, once for plan and vectors.

    Attributes
    ----------
    settings
        Settings that decide the vectors beside model and slice, JSON-able; recorded in ``uns``.
    reads_counts
        False where only the histology is read.
    """

    settings: dict[str, Any]
    reads_counts: bool = True

    @cached_property
    def plan(self) -> Plan:
        """Size and estimated time of :meth:`embed`."""
        return self._plan()

    @abc.abstractmethod
    def _plan(self) -> Plan:
        """Make the plan."""

    @abc.abstractmethod
    def embed(self, bars: Progress | None = None) -> Embedding:
        """Return the vectors; ``bars`` show progress, None: none."""


class FoundationModel(abc.ABC):
    """A model that computes one vector for each cell of a slice.

    A system's class sets the class variables, builds its network (:meth:`_build`) and prepares a slice
    (:meth:`prepare`); everything else is in this class.

    Parameters
    ----------
    config
        Hyperparameters (the class's ``config_class``).
    vocabulary
        The genes it knows.
    seed
        Seed of the random initial weights.
    provenance
        Where the weights come from; ``{"weights": "random"}`` says that they are untrained.

    Attributes
    ----------
    model_type
        Name of the class in checkpoints.
    default_key
        ``obsm`` key that ``embed`` writes.
    config_class, options_class
        Hyperparameters, and the options of ``embed``.
    title
        Name in texts and tables.
    citation
        What a user of the model cites; for the model card.
    limits
        Known limits, a sentence each; for the model card.
    """

    model_type: ClassVar[str]
    default_key: str
    config_class: ClassVar[type]
    options_class: type[EmbedOptions] = EmbedOptions
    title: str
    citation: str = ""
    limits: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        config: Any,
        vocabulary: Vocabulary,
        *,
        seed: int = 0,
        provenance: dict[str, Any] | None = None,
    ) -> None:
        self.config: Any = config
        self.vocabulary = vocabulary
        self.provenance = provenance or {"weights": "random", "seed": seed}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.module = self._build().eval()
        self._fingerprint: str | None = None

    @abc.abstractmethod
    def _build(self) -> nn.Module:
        """Return the neural module of the config."""

    @abc.abstractmethod
    def prepare(
        self, tissue: Slice, options: Any = None, *, obs: pd.DataFrame | None = None
    ) -> Prepared:
        """Match one slice to the vocabulary, and cut it into the model's inputs.

        Parameters
        ----------
        tissue
            The slice.
        options
            Of ``options_class``; None: its defaults.
        obs
            The AnnData's ``obs``, for options that name a column.

        Raises
        ------
        InputError, GeneError, ConfigError
            The slice, its genes, or the options cannot be used; the message says how to fix it.
        """

    def ready(
        self, tissue: Slice, options: Any = None, *, obs: pd.DataFrame | None = None
    ) -> Prepared:
        """Prepare one slice, as :meth:`prepare`, and warn where it is shallow (:meth:`check_depth`)."""
        prepared = self.prepare(tissue, options, obs=obs)
        if prepared.reads_counts:
            self.check_depth(tissue)
        return prepared

    def check_depth(self, tissue: Slice) -> None:
        """Warn where a slice has clearly fewer counts a cell than every slice that the weights were trained on."""
        least = self.provenance.get(LEAST_DEPTH)
        if not tissue.is_counts or not isinstance(least, int | float):
            return
        depth = median_depth(tissue.total_counts)
        if 0 < depth < SHALLOW * least:
            message = (
                f"{tissue.name}: a cell or spot has {depth:,.0f} counts (median), fewer than in any slice that these "
                f"weights were trained on (the shallowest: {least:,.0f}); compare its vectors with a baseline's"
            )
            warnings.warn(message, TerrazzoWarning, stacklevel=3)

    def embed(
        self,
        data: Any,
        *,
        key_added: str | None = None,
        progress: bool | None = None,
        **options: Any,
    ) -> Any:
        """Write one vector for every cell into ``obsm[default_key]`` (float32, n x d), with provenance in ``uns``.

        Nothing is dropped: n cells in, n rows out, same order.

        Parameters
        ----------
        data
            AnnData, SpatialData, path, or a list of these.
        key_added
            Another name for the ``obsm`` key.
        progress
            Show progress bars; None: in a terminal and in a notebook.
        **options
            The fields of the class's ``options_class`` (``SToFM.options_class``, ...; on the command line
            ``terrazzo embed --help SYSTEM``), and what :meth:`terrazzo.Slice.from_anndata` takes (``layer``,
            ``spatial_key``, ``organism``, ``image``, ...). ``slice_key``, the column of ``obs`` that tells sections
            apart: each is embedded as a slice of its own, and the rows come back in their places.

        Returns
        -------
        The AnnData (loaded, if ``data`` is a path), the SpatialData, or a list of them.

        Raises
        ------
        InputError, GeneError, ConfigError
            The slice, its genes, or the options cannot be used; the message says how to fix it.
        """
        model_options, slice_options = split_options(options)
        checked = self.options_class.checked(model_options, self.title)
        bars = Progress(progress)

        def embed_one(tissue: Slice, adata: AnnData) -> None:
            prepared = self.ready(tissue, checked, obs=adata.obs)
            embedding = prepared.embed(bars)
            self.write(adata, tissue, prepared, embedding, key_added)

        return embed_each(data, slice_options, embed_one)

    def plan(
        self,
        data: AnnData | Slice,
        *,
        key_added: str | None = None,
        progress: bool | None = None,
        **options: Any,
    ) -> Plan:
        """Return what :meth:`embed` would do with one slice and how long it would take; same options.

        Counts operations and measures this machine's matrix-product rate for a moment. ``key_added`` and ``progress``
        change nothing.
        """
        model_options, slice_options = split_options(options)
        checked = self.options_class.checked(model_options, self.title)
        if isinstance(data, Slice):
            return self.ready(data, checked).plan
        plans = []

        def plan_one(tissue: Slice, adata: AnnData) -> None:
            plans.append(self.ready(tissue, checked, obs=adata.obs).plan)

        embed_each(data, slice_options, plan_one)
        return plans[0] if len(plans) == 1 else Plan.summed(plans)

    def write(
        self,
        adata: AnnData,
        tissue: Slice,
        prepared: Prepared,
        embedding: Embedding,
        key_added: str | None = None,
    ) -> None:
        """Write vectors and their provenance into an AnnData."""
        key = key_added or self.default_key
        n_empty = int(embedding.empty.sum())
        if n_empty:
            logger.warning(
                "%s: %d cells have no counts that the model can use; they are flagged in obs[%r].",
                tissue.name,
                n_empty,
                keys.EMPTY,
            )
        adata.obs[keys.EMPTY] = embedding.empty
        records.write(adata, key, embedding.vectors, self.record(tissue, prepared, embedding))

    def record(self, tissue: Slice, prepared: Prepared, embedding: Embedding) -> dict[str, Any]:
        """Return the provenance of the vectors of a slice, for ``uns``."""
        return {
            "model": self.title,
            "model_type": self.model_type,
            "trained": self.trained,
            "checkpoint_sha256": self.fingerprint(),
            **self._origin_record(),
            "config": json.dumps(to_dict(self.config)),
            "terrazzo_version": __version__,
            "coverage": json.dumps(embedding.coverage.to_dict()),
            "settings": json.dumps(prepared.settings, sort_keys=True),
            "details": json.dumps(embedding.details),
            "n_empty": int(embedding.empty.sum()),
            "unit": tissue.unit,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }

    @property
    def trained(self) -> bool:
        """False where the weights are random."""
        return self.provenance.get("weights") != "random"

    @property
    def n_parameters(self) -> int:
        """Number of weights."""
        return sum(parameter.numel() for parameter in self.module.parameters())

    def _facts(self) -> dict[str, str]:
        """Return the main facts of the model, name to text."""
        source = self.provenance.get("source") or self.provenance.get("corpus") or ""
        started = self.provenance.get("started from")
        origin = str(source)
        if started:
            origin = f"{origin}, from {started}" if origin else str(started)
        facts = {
            "system": self.title,
            "parameters": f"{self.n_parameters:,}",
            "genes": f"{len(self.vocabulary):,}",
            "weights": str(self.provenance.get("weights", "unknown")),
            "from": origin,
            "device": str(self.device),
        }
        return {name: value for name, value in facts.items() if value}

    def __repr__(self) -> str:
        facts = self._facts()
        parts = ", ".join(f"{name}: {value}" for name, value in facts.items() if name != "system")
        return f"<{self.title} model, {parts}>"

    def _repr_html_(self) -> str:
        rows = []
        for name, value in self._facts().items():
            head = f"<th style='text-align:left'>{html.escape(name)}</th>"
            cell = f"<td style='text-align:left'>{html.escape(value)}</td>"
            rows.append(f"<tr>{head}{cell}</tr>")
        return f"<table>{''.join(rows)}</table>"

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.module.parameters()).device

    def to(self, device: str | torch.device) -> Self:
        """Move the weights to a device.

        Raises
        ------
        ConfigError
            This machine has no such device.
        """
        try:
            self.module.to(device)
        except (RuntimeError, AssertionError) as error:  # the second of a torch without CUDA
            available = "cpu, cuda" if torch.cuda.is_available() else "cpu"
            first_line = str(error).splitlines()[0]
            reason = first_line.split(" device type at start")[0][:200]
            raise ConfigError(
                f"device {str(device)!r} cannot be used; this machine has: {available}. ({reason})"
            ) from error
        return self

    def fingerprint(self) -> str:
        """Return a sha256 of hyperparameters, weights and vocabulary."""
        if self._fingerprint is None:
            self._fingerprint = ckpt.fingerprint(self._checkpoint())
        return self._fingerprint

    def _checkpoint(self) -> ckpt.Checkpoint:
        state = self.module.state_dict()
        return ckpt.Checkpoint(
            self.model_type, to_dict(self.config), state, self.vocabulary, self.provenance
        )

    def save_pretrained(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write a checkpoint folder (config, safetensors, vocabulary, model card), all of it or nothing.

        Raises
        ------
        OutputError
            The folder exists already, or cannot be written.
        """
        return ckpt.write(self._checkpoint(), folder, card=card(self), overwrite=overwrite)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        license: str | None = None,
        private: bool = True,
        revision: str | None = None,
        message: str | None = None,
        token: str | None = None,
    ) -> str:
        """Upload the checkpoint, with its model card, to the Hugging Face hub.

        Parameters
        ----------
        repo_id
            ``"organization/name"`` or ``"user/name"``; created if it does not exist.
        license
            Of the weights, an identifier of the hub such as ``"cc-by-4.0"``; recorded in the provenance. None: the
            license in the provenance, else "not stated".
        private
            Of a repository that is created; the visibility of an existing one is not changed.
        revision
            Branch, created if it does not exist; None: the main one.
        message
            Of the commit.
        token
            None: that of ``hf auth login``, or of ``HF_TOKEN``.

        Returns
        -------
        ``"organization/name@commit"``, which :func:`terrazzo.load` takes and which always means these weights.

        Raises
        ------
        OutputError
            No such name, no permission, no network, ``HF_HUB_OFFLINE=1``, or a license that the hub does not know.
        """
        if license is not None:
            self.provenance = {**self.provenance, LICENSE: license}
        return hub.push(
            self._checkpoint(),
            repo_id,
            card=card(self, repo_id),
            private=private,
            revision=revision,
            message=message,
            token=token,
        )

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, revision: str | None = None, device: str | None = None
    ) -> Self:
        """Load a checkpoint folder, weights that come with terrazzo, or a checkpoint from the Hugging Face hub.

        Parameters
        ----------
        source
            A folder; a name of :func:`terrazzo.list_models`; or ``"organization/name"`` on the hub, which may be
            ``"organization/name@revision"``. The name, and the commit of one on the hub, are recorded in the
            provenance, and with every embedding.
        revision
            Branch, tag or commit on the hub.
        device
            Where the weights go; None: the CPU.

        Raises
        ------
        CheckpointError
            The folder is incomplete, damaged, or has another kind of model; the checksum of weights that ship is wrong;
            the hub does not have it, or cannot be reached and the cache does not have it.
        """
        return cls.from_located(hub.locate(source, revision), source, device)

    @classmethod
    def from_located(cls, place: hub.Located, source: str | Path, device: str | None) -> Self:
        """Load a checkpoint that :func:`terrazzo.models.hub.locate` returned; ``source`` is its name in messages."""
        folder = place.folder
        checkpoint = ckpt.read(folder)
        if checkpoint.model_type != cls.model_type:
            raise CheckpointError(
                f"{source} holds a {checkpoint.model_type!r} model, not {cls.model_type!r}; "
                f"terrazzo.load({str(source)!r}) picks the right class."
            )
        where = f"{folder / ckpt.CONFIG}: model"
        config: Any = from_dict(cls.config_class, checkpoint.model, where)
        provenance = dict(checkpoint.provenance or {"weights": "unknown"})
        provenance.update(place.origin)
        expected = cls._expected(config, checkpoint.vocabulary, where)
        ckpt.check_tensors(expected, checkpoint.state, str(folder / ckpt.WEIGHTS))
        model = cls(config, checkpoint.vocabulary, provenance=provenance)
        model.module.load_state_dict(checkpoint.state)
        return model.to(device) if device else model

    @classmethod
    def _expected(cls, config: Any, vocabulary: Vocabulary, where: str) -> dict[str, torch.Tensor]:
        """Return the tensors that a model of these settings has, by name, without memory for them."""
        try:
            with torch.device("meta"):
                return cls(config, vocabulary).module.state_dict()
        except TerrazzoError:
            raise
        except (
            RuntimeError,
            ValueError,
            TypeError,
            ArithmeticError,
            LookupError,
            AttributeError,
        ) as error:
            reason = shortened(error, 200, quoted=False)
            raise CheckpointError(f"{where}: no model can be built of this ({reason}).") from error

    def _origin_record(self) -> dict[str, str]:
        record = {}
        for name in (hub.HUB, hub.COMMIT, hub.SHIPPED):
            if name in self.provenance:
                record[name] = str(self.provenance[name])
        return record


def require_counts(tissue: Slice, why: str) -> Slice:
    """Return a slice that has counts.

    Raises
    ------
    InputError
        It has normalized values; ``why`` says what a model does with counts.
    """
    if not tissue.is_counts:
        raise InputError(
            f"{tissue.name}: {tissue.source} holds normalized values; {why}. Pass the layer that holds raw counts "
            "(layer=, --layer)."
        )
    return tissue


def joined(blocks: dict[str, Vectors]) -> tuple[Vectors, dict[str, list[int]]]:
    """Return named blocks of vectors side by side, each of mean norm one, and the columns of each by name."""
    widths = [block.shape[1] for block in blocks.values()]
    ends = np.cumsum([0, *widths]).tolist()
    columns = {name: [ends[i], ends[i + 1]] for i, name in enumerate(blocks)}
    n_rows = len(next(iter(blocks.values())))
    vectors = np.empty((n_rows, ends[-1]), dtype=np.float32)
    for name, block in blocks.items():
        start, stop = columns[name]
        squares = np.einsum("ij,ij->i", block, block)  # no array as large as the vectors
        norm = float(np.sqrt(squares).mean())
        np.divide(block, np.float32(max(norm, 1e-12)), out=vectors[:, start:stop])
    return vectors, columns
