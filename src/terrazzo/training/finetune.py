"""Fine-tuning of all parameters: SToFM's cell encoder, its SE(2) Transformer and a label head (SToFM, B.1)."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from anndata import AnnData
from lightning import LightningModule, Trainer
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from terrazzo import keys
from terrazzo.errors import InputError, OutputError, TrainingError
from terrazzo.models.stofm import SToFM
from terrazzo.nn.heads import LabelHead
from terrazzo.progress import Progress
from terrazzo.tasks import targets
from terrazzo.tasks.probes import Probe
from terrazzo.tasks.readouts import MLPConfig, head_record, make
from terrazzo.tasks.splits import Split, all_rows
from terrazzo.training.scenes import Scene, prepare, refresh, subslice_vectors

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FineTuneConfig:
    """How all parameters are tuned.

    Attributes
    ----------
    encoder_lr, se2_lr, head_lr
        Peak learning rates: the lower a layer, the more carefully it is changed.
    weight_decay
        Of AdamW.
    max_epochs, patience
        Passes over the sub-slices; training stops after so many without a better loss on the validation cells.
    gradient_cells
        Cells of a sub-slice that are encoded again with gradient in a step; the others take part with stored vectors,
        renewed after every pass (as in pretraining's second phase, SToFM 3.3).
    """

    encoder_lr: float = 1e-4
    se2_lr: float = 3e-4
    head_lr: float = 1e-3
    weight_decay: float = 0.01
    max_epochs: int = 30
    patience: int = 6
    gradient_cells: int = 256


@dataclass(frozen=True, eq=False)
class FineTuned:
    """A tuned model and the probe that reads it.

    Attributes
    ----------
    model
        SToFM with the tuned weights.
    probe
        Its head.
    log
        Loss on the validation cells before training and after every pass.
    """

    model: SToFM
    probe: Probe
    log: tuple[float, ...] = field(default=())

    def predict(self, adata: AnnData, *, key_added: str = keys.X_STOFM, **slice_options: Any) -> NDArray[Any]:
        """Embed a slice with the tuned weights and return the class of every cell, object ``(n,)``."""
        self.model.embed(adata, key_added=key_added, progress=False, **slice_options)
        return self.probe.predict(adata, use_rep=f"{key_added}:all")

    def save(self, folder: str | Path) -> Path:
        """Write the checkpoint ``model/`` and the head ``probe/`` into a new folder.

        Raises
        ------
        OutputError
            The folder exists already, or cannot be written.
        """
        target = Path(folder)
        if target.exists() and any(target.iterdir()):
            raise OutputError(f"{target} holds something already; pass another folder.")
        target.mkdir(parents=True, exist_ok=True)
        self.model.save_pretrained(target / "model")
        self.probe.save(target / "probe")
        return target

    @classmethod
    def load(cls, folder: str | Path) -> FineTuned:
        """Read what :meth:`save` wrote.

        Raises
        ------
        CheckpointError
            Not such a folder, or a damaged one.
        """
        return cls(SToFM.from_pretrained(Path(folder) / "model"), Probe.load(Path(folder) / "probe"))


def finetune(
    model: SToFM,
    data: targets.Data,
    *,
    label: str,
    config: FineTuneConfig | None = None,
    split: Split | None = None,
    seed: int = 0,
    progress: bool | None = None,
    orthologs: Any = None,
) -> FineTuned:
    """Tune all parameters of a model on labelled slices.

    The head starts as a probe of the frozen vectors, so that the first steps do not spoil the weights with a random
    head's gradients; what is kept is the state with the lowest loss on the validation cells, the start included.

    Parameters
    ----------
    model
        Left as it is.
    data
        One slice or several, with raw counts.
    label
        Column of ``obs``.
    config
        Settings.
    split
        Rows (of the slices stacked) to learn from and to stop by; None: all labelled ones, 10 % of them to stop by.
    seed
        Of the order, the cells encoded again, dropout and the head's start.
    progress
        Show a bar.
    orthologs
        As in :meth:`terrazzo.SToFM.embed`.

    Raises
    ------
    InputError
        The slices or their labels cannot be used.
    TrainingError
        The loss is not a number.
    """
    chosen, slices = config or FineTuneConfig(), targets.as_list(data)
    target = targets.read_classes(slices, label)
    rows = split or all_rows(target.known, seed=seed)
    tuned = SToFM(model.config, model.vocabulary, provenance=_provenance(model, label, chosen, slices))
    tuned.module.load_state_dict(copy.deepcopy(model.module.state_dict()))
    tuned.to(model.device)
    scenes = _scenes(tuned, slices, target.values, rows, orthologs)
    readout = _frozen_head(tuned, scenes, len(target.names), seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        run = FineTuning(tuned, readout, scenes, chosen, seed)
        trainer = Trainer(
            max_epochs=chosen.max_epochs, accelerator="auto", devices=1, logger=False, enable_checkpointing=False,
            enable_progress_bar=Progress(progress).enabled, enable_model_summary=False, gradient_clip_val=1.0,
            num_sanity_val_steps=0,
        )  # fmt: skip
        trainer.fit(run, run.loader())
    tuned.module.eval()
    probe = Probe(
        run.readout(), target.names, keys.X_STOFM, label, (),
        {"head": head_record("mlp3"), "seed": seed, "fine_tuned": asdict(chosen), "notes": list(target.notes)},
    )  # fmt: skip
    return FineTuned(tuned, probe, tuple(run.log_of_losses))


class FineTuning(LightningModule):
    """Cross-entropy of the training cells of a sub-slice; keeps the best state by the validation cells."""

    shift: Tensor
    scale: Tensor

    def __init__(self, model: SToFM, readout: Any, scenes: list[Scene], config: FineTuneConfig, seed: int) -> None:
        super().__init__()
        self.model, self.scenes, self.config, self.start = model, scenes, config, readout
        self.trained = model.module
        state = readout.state()
        self.head = LabelHead(readout.input_dim, readout.n_outputs, *_head_shape())
        weights = {k.removeprefix("module."): torch.tensor(v) for k, v in state.items() if k.startswith("module.")}
        self.head.load_state_dict(weights)
        self.register_buffer("shift", torch.tensor(state["shift"], dtype=torch.float32))
        self.register_buffer("scale", torch.tensor(state["scale"], dtype=torch.float32))
        self.rng = np.random.default_rng([seed, 7])
        self.log_of_losses: list[float] = []
        self._best: dict[str, Tensor] = {}
        self._waited = 0

    def loader(self) -> DataLoader:
        """Return the sub-slices with a training cell, as (scene, sub-slice), in random order."""
        items = [
            (i, j)
            for i, scene in enumerate(self.scenes)
            for j, sub in enumerate(scene.subslices)
            if scene.train[sub.cells[: sub.n_core]].any()
        ]
        order = torch.Generator().manual_seed(int(self.rng.integers(2**31)))
        return DataLoader(items, batch_size=None, shuffle=True, generator=order, collate_fn=None)  # type: ignore[arg-type]

    def scores(self, scene: Scene, number: int, gradient: bool) -> tuple[Tensor, NDArray[np.int64]]:
        """Return the class scores of a sub-slice's cells, and which cells they are."""
        sub = scene.subslices[number]
        cells = sub.cells[: sub.n_core]
        again = np.empty(0, dtype=np.int64)
        if gradient:
            learnt = np.flatnonzero(scene.train[cells])
            again = np.sort(self.rng.permutation(learnt)[: self.config.gradient_cells])
        vectors = subslice_vectors(self.model, scene, sub, again)
        return self.head((vectors - self.shift) / self.scale), cells

    def training_step(self, batch: tuple[int, int], batch_index: int) -> Tensor:
        """One sub-slice."""
        scene = self.scenes[batch[0]]
        scores, cells = self.scores(scene, batch[1], gradient=True)
        learnt = torch.from_numpy(scene.train[cells]).to(scores.device)
        codes = torch.from_numpy(scene.codes[cells]).to(scores.device)
        loss = F.cross_entropy(scores[learnt], codes[learnt])
        if not torch.isfinite(loss):
            raise TrainingError(f"the loss is not a number, in {scene.name}; lower the learning rates.")
        return loss

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """Return the mean loss of the validation cells, with vectors renewed."""
        self.eval()
        total, count = 0.0, 0
        for scene in self.scenes:
            refresh(self.model, scene)
            for number in range(len(scene.subslices)):
                scores, cells = self.scores(scene, number, gradient=False)
                here = scene.validation[cells]
                if here.any():
                    codes = torch.from_numpy(scene.codes[cells][here]).to(scores.device)
                    total += float(F.cross_entropy(scores[torch.from_numpy(here)], codes, reduction="sum"))
                    count += int(here.sum())
        self.train()
        return total / max(count, 1)

    def on_fit_start(self) -> None:
        """Take the start as the first candidate."""
        self._judge()

    def on_train_epoch_end(self) -> None:
        """Keep the state if it is better; stop if nothing has been for a while."""
        self._judge()
        self.trainer.should_stop = self._waited >= self.config.patience

    def on_fit_end(self) -> None:
        """Go back to the best state."""
        self.load_state_dict(self._best)
        for scene in self.scenes:
            refresh(self.model, scene)

    def _judge(self) -> None:
        loss = self.held_out_loss()
        better = not self.log_of_losses or loss < min(self.log_of_losses)
        self.log_of_losses.append(loss)
        self._waited = 0 if better else self._waited + 1
        if better:
            self._best = {k: v.detach().clone() for k, v in self.state_dict().items()}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW, each part with its own learning rate."""
        config, parts = self.config, self.model.module
        groups: list[tuple[nn.Module, float]] = [
            (parts.cell_encoder, config.encoder_lr), (parts.se2, config.se2_lr), (self.head, config.head_lr)
        ]  # fmt: skip
        return torch.optim.AdamW(
            [{"params": list(part.parameters()), "lr": lr} for part, lr in groups], weight_decay=config.weight_decay
        )

    def readout(self) -> Any:
        """Return the head as a read-out of :mod:`terrazzo.tasks`."""
        weights = {f"module.{k}": v.detach().cpu().numpy() for k, v in self.head.state_dict().items()}
        return make("mlp3", "classes", self.start.n_outputs).load_state({**self.start.state(), **weights})


def _head_shape() -> tuple[tuple[int, ...], str, float]:
    config: Any = head_config()
    return tuple(config.hidden), config.activation, config.dropout


def head_config() -> MLPConfig:
    """Return the settings of the head, those of the probe ``"mlp3"``."""
    found: Any = make("mlp3", "classes", 2).config
    return found


def _scenes(
    model: SToFM, slices: Sequence[AnnData], codes: NDArray[np.int64], rows: Split, orthologs: Any
) -> list[Scene]:
    train, validation = np.zeros(len(codes), dtype=bool), np.zeros(len(codes), dtype=bool)
    train[rows.train], validation[rows.validation] = True, True
    out, start = [], 0
    for adata in slices:
        here = slice(start, start + adata.n_obs)
        out.append(prepare(model, adata, codes[here], train[here], validation[here], orthologs=orthologs))
        start += adata.n_obs
    if not any(scene.train.any() for scene in out):
        raise InputError("no cell with a label is left to learn from.")
    return out


def _frozen_head(model: SToFM, scenes: list[Scene], n_classes: int, seed: int) -> Any:
    """Fit the head to the vectors as they are."""
    x, y, train, validation = [], [], [], []
    for scene in scenes:
        vectors = np.zeros((len(scene.codes), 0), dtype=np.float32)
        for sub in scene.subslices:
            with torch.no_grad():
                found = subslice_vectors(model, scene, sub, np.empty(0, dtype=np.int64)).cpu().numpy()
            if not vectors.shape[1]:
                vectors = np.zeros((len(scene.codes), found.shape[1]), dtype=np.float32)
            vectors[sub.cells[: sub.n_core]] = found
        x.append(vectors)
        y.append(scene.codes)
        train.append(scene.train)
        validation.append(scene.validation)
    rows, stop = np.concatenate(train), np.concatenate(validation)
    stacked, codes = np.concatenate(x), np.concatenate(y)
    readout = make("mlp3", "classes", n_classes)
    return readout.fit(stacked[rows], codes[rows], stacked[stop], codes[stop], seed)


def _provenance(model: SToFM, label: str, config: FineTuneConfig, slices: Sequence[AnnData]) -> dict[str, Any]:
    return {
        "weights": "fine-tuned", "from_sha256": model.fingerprint(), "label": label,
        "cells": sum(len(a) for a in slices), "settings": asdict(config), "before": model.provenance,
    }  # fmt: skip
