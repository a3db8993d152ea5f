"""What every model shares: construction, checkpoints, and the verb ``embed`` on whatever holds a slice."""

from __future__ import annotations

import abc
import datetime
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from anndata import AnnData
from numpy.typing import NDArray
from torch import nn

from terrazzo import keys
from terrazzo._version import __version__
from terrazzo.config import from_dict, to_dict
from terrazzo.errors import CheckpointError, ConfigError, InputError
from terrazzo.genes import Coverage, Vocabulary
from terrazzo.models import checkpoint as ckpt
from terrazzo.models import hub
from terrazzo.models.card import LICENSE, card
from terrazzo.slices import Opened, Slice, open_slice, open_spatialdata, split_choices

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Embedding:
    """The vectors of one slice and what there is to say about them.

    Attributes
    ----------
    vectors
        float32 ``(n_cells, d)``, rows as in the slice.
    empty
        bool ``(n_cells,)``: cells without a count that the model can use; they have a vector all the same.
    coverage
        How the slice's genes met the vocabulary.
    details
        More provenance, JSON-able.
    """

    vectors: NDArray[np.float32]
    empty: NDArray[np.bool_]
    coverage: Coverage
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What ``embed`` is about to do with one slice.

    Attributes
    ----------
    cells, subslices
        Sizes of the work.
    coverage
        Genes and counts that the vocabulary covers.
    seconds
        Estimated time, from operation counts and this machine's measured rate.
    faster
        What would make it faster, in words; empty where it is fast already.
    """

    cells: int
    subslices: int
    coverage: Coverage
    seconds: float
    faster: tuple[str, ...] = ()

    def __str__(self) -> str:
        hint = f" Faster: {'; '.join(self.faster)}." if self.faster else ""
        parts = (
            f" in {self.subslices:,} sub-slice{'s' if self.subslices != 1 else ''}"
            if self.subslices
            else ""
        )
        met = self.coverage
        covered = f"{met.n_matched:,} of {met.n_genes:,} genes, {met.share_counts:.1%} of counts"
        return f"{self.cells:,} cells{parts}; {covered}; about {duration(self.seconds)}.{hint}"


def duration(seconds: float) -> str:
    """Return a time span in words a person reads at a glance."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class FoundationModel(abc.ABC):
    """A model that gives each cell of a slice one vector.

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
    """

    model_type: ClassVar[str]
    default_key: ClassVar[str]
    config_class: ClassVar[type]
    title: ClassVar[str]
    citation: ClassVar[str] = ""  # whom a user of the model cites; for the model card
    limits: ClassVar[tuple[str, ...]] = ()  # a sentence each, likewise

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
        """Make the neural module from the config."""

    @abc.abstractmethod
    def embed(self, data: Any, **options: Any) -> Any:
        """Write one vector per cell; see the models."""

    @abc.abstractmethod
    def plan(self, data: Any, **options: Any) -> Plan:
        """Say what :meth:`embed` would do with one slice, and how long it would take; same options."""

    @property
    def trained(self) -> bool:
        """False where the weights are random."""
        return self.provenance.get("weights") != "random"

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.module.parameters()).device

    def to(self, device: str | torch.device) -> Self:
        """Move the weights to a device.

        Raises
        ------
        ConfigError
            There is no such device here.
        """
        try:
            self.module.to(device)
        except (
            RuntimeError,
            AssertionError,
        ) as error:  # torch asserts where it was built without CUDA
            here = "cpu, cuda" if torch.cuda.is_available() else "cpu"
            told = str(error).splitlines()[0].split(" device type at start")[0][:200]
            raise ConfigError(
                f"device {str(device)!r} cannot be used; here there is: {here}. ({told})"
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
        """Put the checkpoint, with its model card, on the Hugging Face hub.

        Parameters
        ----------
        repo_id
            ``"organization/name"`` or ``"user/name"``; made where it is not there.
        license
            Of the weights, an identifier of the hub such as ``"cc-by-4.0"``; kept in the provenance. None: what the
            provenance says already, else "not stated".
        private
            Of a repository that is made now; an existing one stays as visible as it is.
        revision
            Branch, made where it is not there; None: the main one.
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
        how: dict[str, Any] = {
            "private": private,
            "revision": revision,
            "message": message,
            "token": token,
        }
        return hub.push(self._checkpoint(), repo_id, card=card(self, repo_id), **how)

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, revision: str | None = None, device: str | None = None
    ) -> Self:
        """Load a checkpoint folder, or one from the Hugging Face hub.

        Parameters
        ----------
        source
            A folder, or ``"organization/name"``, or ``"organization/name@revision"``. The commit that a name stands for
            is kept in the provenance, and recorded with every embedding.
        revision
            Branch, tag or commit on the hub.
        device
            Where the weights go; None: the CPU.

        Raises
        ------
        CheckpointError
            The folder is incomplete, damaged, or holds another kind of model; the hub does not have it, or cannot be
            reached and the cache does not hold it.
        """
        return cls.from_located(hub.locate(source, revision), source, device)

    @classmethod
    def from_located(cls, place: hub.Located, source: str | Path, device: str | None) -> Self:
        """Load what :func:`terrazzo.models.hub.locate` found; ``source`` is what the user called it."""
        folder, held = place.folder, ckpt.read(place.folder)
        if held.model_type != cls.model_type:
            raise CheckpointError(
                f"{source} holds a {held.model_type!r} model, not {cls.model_type!r}; "
                f"terrazzo.load({str(source)!r}) picks the right class."
            )
        config: Any = from_dict(cls.config_class, held.model, f"{folder / ckpt.CONFIG}: model")
        origin = {**(held.provenance or {"weights": "unknown"}), **place.origin}
        model = cls(config, held.vocabulary, provenance=origin)
        ckpt.check_tensors(model.module.state_dict(), held.state, str(folder / ckpt.WEIGHTS))
        model.module.load_state_dict(held.state)
        return model.to(device) if device else model

    def _embed_all(
        self,
        data: Any,
        key: str,
        settings: dict[str, Any],
        slice_options: dict[str, Any],
        run: Callable[[Slice, AnnData], Embedding],
    ) -> Any:
        """Embed one or many, whatever form they have, and write the result where it belongs.

        Returns the AnnData (loaded, if a path was given; of a store its table), or a list of them, or the SpatialData.
        """
        if isinstance(data, Sequence) and not isinstance(data, str | bytes):
            return [self._embed_all(one, key, settings, slice_options, run) for one in data]
        if isinstance(data, AnnData):
            tissue = Slice.from_anndata(data, **slice_options)
            self._write(data, key, run(tissue, data), tissue, settings)
            return data
        opened, rest = _open(data, slice_options)
        tissue = opened.to_slice(**rest)
        self._write(opened.adata, key, run(tissue, opened.adata), tissue, settings)
        home = opened.bring_home()
        return home if isinstance(data, str | Path) else data

    def _hub_record(self) -> dict[str, str]:
        return {
            name: str(self.provenance[name])
            for name in (hub.HUB, hub.COMMIT)
            if name in self.provenance
        }

    def _write(
        self, adata: AnnData, key: str, result: Embedding, tissue: Slice, settings: dict[str, Any]
    ) -> None:
        adata.obsm[key] = result.vectors
        adata.obs[keys.EMPTY] = result.empty
        if result.empty.any():
            logger.warning(
                "%s: %d cells have no counts that the model can use; they are flagged in obs[%r].",
                tissue.name,
                int(result.empty.sum()),
                keys.EMPTY,
            )
        record = {
            "model": self.title,
            "model_type": self.model_type,
            "trained": self.trained,
            "checkpoint_sha256": self.fingerprint(),
            **self._hub_record(),
            "config": json.dumps(to_dict(self.config)),
            "terrazzo_version": __version__,
            "coverage": json.dumps(result.coverage.to_dict()),
            "settings": json.dumps(settings, sort_keys=True),
            "details": json.dumps(result.details),
            "n_empty": int(result.empty.sum()),
            "unit": tissue.unit,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        adata.uns[keys.UNS] = {**dict(adata.uns.get(keys.UNS, {})), key: record}


def counted(tissue: Slice, why: str) -> Slice:
    """Return a slice that holds counts.

    Raises
    ------
    InputError
        It holds normalized values; ``why`` says what a model does with counts.
    """
    if not tissue.is_counts:
        raise InputError(
            f"{tissue.name}: {tissue.source} holds normalized values; {why}. Pass the layer that holds raw counts "
            "(layer=, --layer)."
        )
    return tissue


def joined(
    blocks: dict[str, NDArray[np.float32]],
) -> tuple[NDArray[np.float32], dict[str, list[int]]]:
    """Return named blocks of vectors side by side, each of mean norm one, and the columns of each by name."""
    ends = np.cumsum([0] + [b.shape[1] for b in blocks.values()]).tolist()
    places = {name: [ends[i], ends[i + 1]] for i, name in enumerate(blocks)}
    out = np.empty((len(next(iter(blocks.values()))), ends[-1]), dtype=np.float32)
    for (start, stop), vectors in zip(places.values(), blocks.values(), strict=True):
        norm = float(
            np.sqrt(np.einsum("ij,ij->i", vectors, vectors)).mean()
        )  # no array as large as the vectors
        np.divide(vectors, np.float32(max(norm, 1e-12)), out=out[:, start:stop])
    return out, places


def _open(data: Any, options: dict[str, Any]) -> tuple[Opened, dict[str, Any]]:
    """Open what is no AnnData: a path, or a SpatialData, without importing it; and return the options that are left."""
    choices, rest = split_choices(options)
    if isinstance(data, str | Path):
        return open_slice(data, choices), rest
    if hasattr(data, "tables"):
        return open_spatialdata(data, choices), rest
    raise InputError(
        f"embed takes an AnnData, a SpatialData, a path, or a list of these, not {type(data).__name__}."
    )
