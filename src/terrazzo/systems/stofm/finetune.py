"""Fine-tuning of all parameters: SToFM's cell encoder, its SE(2) Transformer and a label head (SToFM, B.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from anndata import AnnData
from lightning import LightningModule, Trainer
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from terrazzo import keys
from terrazzo.arrays import Ints
from terrazzo.errors import ConfigError, InputError, OutputError, TrainingError
from terrazzo.files import whole_folder
from terrazzo.models.checkpoint import is_checkpoint
from terrazzo.progress import Progress
from terrazzo.slices.parts import takes_all
from terrazzo.systems.stofm.labeled import (
    LabeledSlice,
    prepare,
    refresh,
    slice_vectors,
    subslice_vectors,
)
from terrazzo.systems.stofm.model import SToFM
from terrazzo.tasks import targets
from terrazzo.tasks.by_section import slices_of
from terrazzo.tasks.experiments import make_head
from terrazzo.tasks.heads import head_config, head_record, statistics
from terrazzo.tasks.mlp import LabelHead
from terrazzo.tasks.probe_files import is_probe
from terrazzo.tasks.probes import Probe
from terrazzo.tasks.splits import Split, all_rows
from terrazzo.training.recipe import OptimConfig
from terrazzo.training.resuming import seed_everything
from terrazzo.training.run import interruptible, own_streams, quiet
from terrazzo.training.stage import rate

__all__ = [
    "FineTuneConfig",
    "FineTuned",
    "FineTuning",
    "Step",
    "Steps",
    "finetune",
    "free_folder",
]

# That of the probes: full fine-tuning differs from a probe in the weights below the head alone.
HEAD = "mlp3"

LEAST_CELLS = 16  # of a step, from which it uses their own mean and sd
LEAST_SD = 0.02  # of a step, in that of all training cells


@dataclass(frozen=True)
class FineTuneConfig:
    """Settings of fine-tuning.

    Attributes
    ----------
    encoder_lr, se2_lr, head_lr
        Peak learning rates: the lower a layer, the more carefully it is changed. They rise from zero over the first
        tenth of the steps and fall to zero over the others: the head reads small differences between vectors, and a
        first step at full rate would drown them.
    weight_decay
        Of AdamW.
    max_epochs, patience
        Passes over the training cells; training stops after so many without a better loss on the validation cells.
    batch_cells
        Training cells of a sub-slice that are scored in a step, and encoded again with gradient; the others take part
        with stored vectors, renewed after every pass (as in pretraining's second phase, SToFM 3.3).
    dropout
        Dropout of the model's own layers; None: where its weights were trained. Cells of a random model differ by less
        than the noise of dropout.

    Raises
    ------
    ConfigError
        An impossible value.
    """

    encoder_lr: float = 1e-4
    se2_lr: float = 3e-4
    head_lr: float = 1e-3
    weight_decay: float = 0.01
    max_epochs: int = 12
    patience: int = 6
    batch_cells: int = 64
    dropout: bool | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ("max_epochs", "patience", "batch_cells"):
            value = getattr(self, name)
            if value < 1:
                raise ConfigError(f"{name} of fine-tuning is {value}; it must be at least 1.")
        for name in ("encoder_lr", "se2_lr", "head_lr", "weight_decay"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise ConfigError(f"{name} of fine-tuning is {value}; it must be a number from 0.")


@dataclass(frozen=True, eq=False)
class FineTuned:
    """A tuned model and its probe.

    Attributes
    ----------
    model
        SToFM with the tuned weights.
    probe
        Its head, which predicts classes from the model's vectors.
    log
        Loss on the validation cells before training and after every pass.
    ended
        Why training ended, and after how many steps; one line.
    """

    model: SToFM
    probe: Probe
    log: tuple[float, ...] = field(default=())
    ended: str = ""

    def predict(
        self, adata: AnnData, *, key_added: str = keys.X_STOFM, **options: Any
    ) -> NDArray[Any]:
        """Embed a slice (``options``: of ``embed``) and return the class of every cell, object ``(n,)``."""
        self.model.embed(adata, key_added=key_added, **options)
        return self.probe.predict(adata, use_rep=f"{key_added}:all")

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write the checkpoint ``model/`` and the head ``probe/`` into a new folder.

        Parameters
        ----------
        folder
            A new or empty one.
        overwrite
            Replace what this method wrote there before, if nothing was added to it.

        Raises
        ------
        OutputError
            The folder exists already, or cannot be written.
        """
        target = free_folder(folder, overwrite=overwrite)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with whole_folder(target) as draft:
                self.model.save_pretrained(draft / "model")
                self.probe.save(draft / "probe")
        except OSError as error:
            if isinstance(error, OutputError):
                raise
            raise OutputError(f"{target} cannot be written ({error.strerror or error}).") from error
        return target

    @classmethod
    def load(cls, folder: str | Path) -> FineTuned:
        """Read what :meth:`save` wrote.

        Raises
        ------
        CheckpointError
            Not such a folder, or a damaged one.
        """
        # resolved: a relative path that does not exist could be a name on the hub
        source = Path(folder).resolve()
        model = SToFM.from_pretrained(source / "model")
        probe = Probe.load(source / "probe")
        return cls(model, probe)


def free_folder(folder: str | Path, *, overwrite: bool = False) -> Path:
    """Return the path of a folder that does not exist yet, or is empty; or has an older result, with ``overwrite``.

    Raises
    ------
    OutputError
        It is a file, or not empty.
    """
    target = Path(folder)
    if not target.exists():
        return target
    if overwrite and _is_tuned(target):
        return target
    if not target.is_dir() or any(target.iterdir()):
        raise OutputError(f"{target} exists already, and is not an empty folder; pass another.")
    return target


def _is_tuned(folder: Path) -> bool:
    """Return whether a folder has a tuned model and its head, and nothing else."""
    if not folder.is_dir() or {path.name for path in folder.iterdir()} != {"model", "probe"}:
        return False
    return is_checkpoint(folder / "model") and is_probe(folder / "probe")


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
    slice_key: str | None = None,
) -> FineTuned:
    """Tune all parameters of a model on labeled slices.

    The head starts as a probe of the frozen vectors, so that the first steps do not spoil the weights with a random
    head's gradients. The result is the state with the lowest loss on the validation cells, the start included.

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
        Rows (of the slices stacked) to learn from and to stop by; None: all labeled ones, 10 % of them to stop by.
    seed
        Of the order, the groups of cells, and the head's start.
    progress
        Show a bar.
    orthologs
        As in :meth:`terrazzo.SToFM.embed`.
    slice_key
        Column of ``obs`` that tells the sections of an AnnData apart, each of which is a slice; "none": all its cells
        are one, whatever tells them apart.

    Raises
    ------
    InputError
        The slices or their labels cannot be used.
    TrainingError
        The loss is not a number.
    """
    slices = slices_of(data, slice_key)
    target = targets.read_classes(slices, label)
    rows = split or all_rows(target.known, seed=seed)
    config = config or FineTuneConfig()
    if config.dropout is None:
        config = replace(config, dropout=model.trained)
    provenance = _provenance(model, label, config, slices)
    tuned = SToFM(model.config, model.vocabulary, provenance=provenance)
    tuned.module.load_state_dict(model.module.state_dict())
    tuned.to(model.device)
    one_slice = slice_key if takes_all(slice_key) else None
    labeled = _labeled_slices(
        tuned,
        slices,
        target.values,
        rows,
        orthologs=orthologs,
        progress=progress,
        slice_key=one_slice,
    )
    frozen_head = _frozen_head(tuned, labeled, len(target.names), seed)
    with own_streams(), quiet(), interruptible():
        seed_everything(seed)
        run = FineTuning(tuned, frozen_head, labeled, config, seed)
        _fit(run, progress)
    tuned.to(model.device).module.eval()
    info = {
        "head": head_record(HEAD),
        "seed": seed,
        "fine_tuned": asdict(config),
        "notes": list(target.notes),
        "ended": run.ended(),
    }
    probe = Probe(run.tuned_head(), target.names, keys.X_STOFM, label, info=info)
    return FineTuned(tuned, probe, tuple(run.log_of_losses), run.ended())


def _fit(run: FineTuning, progress: bool | None) -> None:
    max_epochs = run.config.max_epochs
    trainer = Trainer(
        max_epochs=max_epochs,
        accelerator="auto",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=1.0,
    )
    n_steps = len(run.steps) * max_epochs
    with Progress(progress).stage("fine-tune", n_steps, "steps") as advance:
        run.advance = advance
        trainer.fit(run, run.steps)


class Step(NamedTuple):
    """Training cells that are scored in one step: cells of one sub-slice of one slice, by their place in it."""

    slice: int
    subslice: int
    cells: Ints


@dataclass(frozen=True)
class _TrainingCells:
    """The training cells of one sub-slice, by their place in it, and the number of steps that they are divided into."""

    slice: int
    subslice: int
    cells: Ints
    n_steps: int


class Steps:
    """Steps of a pass: each training cell once, in groups of one sub-slice, drawn anew for every pass.

    Parameters
    ----------
    labeled
        The slices.
    size
        Most cells of a step.
    rng
        Draws the groups and their order.
    """

    def __init__(
        self, labeled: Sequence[LabeledSlice], size: int, rng: np.random.Generator
    ) -> None:
        self.rng = rng
        self._subslices: list[_TrainingCells] = []
        for number, one in enumerate(labeled):
            for sub_number, sub in enumerate(one.subslices):
                core = sub.cells[: sub.n_core]
                cells = np.flatnonzero(one.train[core])
                if len(cells):
                    n_steps = -(-len(cells) // size)
                    self._subslices.append(_TrainingCells(number, sub_number, cells, n_steps))

    def __len__(self) -> int:
        return sum(one.n_steps for one in self._subslices)

    def __iter__(self) -> Iterator[Step]:
        """Yield the steps of a new pass."""
        steps = []
        for one in self._subslices:
            shuffled = self.rng.permutation(one.cells)
            for part in np.array_split(shuffled, one.n_steps):
                steps.append(Step(one.slice, one.subslice, np.sort(part)))
        order = self.rng.permutation(len(steps))
        return iter([steps[number] for number in order])


class FineTuning(LightningModule):
    """Cross-entropy of the training cells of a sub-slice; ends with the best state by the validation cells.

    The head reads standardized vectors. Cells of a poorly trained model differ by a thousandth of their vectors'
    length, and a small change that is common to all cells would be many sd: so a step uses mean and sd of its own
    cells, and after a pass those of all training cells are computed anew.

    Parameters
    ----------
    model
        Its weights are tuned.
    frozen_head
        Head fitted to the vectors as they are, from which the tuned head starts.
    labeled
        The slices.
    config
        Settings.
    seed
        Of the order.
    """

    shift: Tensor
    scale: Tensor
    advance: Callable[[int], None]

    def __init__(
        self,
        model: SToFM,
        frozen_head: Any,
        labeled: list[LabeledSlice],
        config: FineTuneConfig,
        seed: int,
    ) -> None:
        super().__init__()
        self.model = model
        self.trained = model.module
        self.frozen_head = frozen_head
        self.labeled = labeled
        self.config = config
        self.head = _label_head(frozen_head).to(model.device)
        state = frozen_head.state()
        for name in ("shift", "scale"):
            values = torch.tensor(state[name], dtype=torch.float32, device=model.device)
            self.register_buffer(name, values)
        rng = np.random.default_rng([seed, 7])
        self.steps = Steps(labeled, config.batch_cells, rng)
        self.log_of_losses: list[float] = []
        self._best: dict[str, Tensor] = {}
        self._epochs_since_best = 0

    def training_step(self, batch: Step, batch_index: int) -> Tensor:
        """Score a group of training cells, encoded again with gradient."""
        labeled = self.labeled[batch.slice]
        sub = labeled.subslices[batch.subslice]
        cells = batch.cells
        vectors = subslice_vectors(self.model, labeled, sub, cells)
        vectors = vectors[torch.from_numpy(cells).to(vectors.device)]
        shift = self.shift
        scale = self.scale
        if len(cells) >= LEAST_CELLS:
            shift = vectors.mean(0)
            sd = vectors.std(0, unbiased=False)
            scale = torch.maximum(sd, LEAST_SD * self.scale)
        scores = self.head((vectors - shift) / scale)
        codes = torch.from_numpy(labeled.codes[sub.cells[cells]])
        loss = F.cross_entropy(scores, codes.to(scores.device))
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss is not a number, in {labeled.name}; lower the learning rates."
            )
        self.advance(1)
        return loss

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """Return the mean loss of the validation cells, with vectors and the training cells' statistics renewed."""
        self.eval()
        train = []
        validation = []
        codes = []
        for one in self.labeled:
            refresh(self.model, one)
            vectors = slice_vectors(self.model, one)
            train.append(vectors[one.train])
            validation.append(vectors[one.validation])
            codes.append(one.codes[one.validation])
        shift, scale = statistics(np.concatenate(train))
        self.shift.copy_(torch.from_numpy(shift))
        self.scale.copy_(torch.from_numpy(scale))
        x = torch.from_numpy(np.concatenate(validation)).to(self.shift.device)
        y = torch.from_numpy(np.concatenate(codes))
        scores = self.head((x - self.shift) / self.scale)
        self.train(bool(self.config.dropout))
        loss = F.cross_entropy(scores, y.to(scores.device))
        return float(loss)

    def on_train_start(self) -> None:
        """Make the start the best state so far."""
        self._compare()

    def on_train_epoch_end(self) -> None:
        """Store the state if it is better; stop if none has been for a while."""
        self._compare()
        self.trainer.should_stop = self._epochs_since_best >= self.config.patience

    def ended(self) -> str:
        """Return why training ended, after how many steps, and which weights were kept."""
        n_passes = len(self.log_of_losses) - 1
        n_steps = n_passes * len(self.steps)
        best = int(np.argmin(self.log_of_losses))
        why = "the number that was set"
        if self._epochs_since_best >= self.config.patience:
            why = (
                f"early stopping, {self.config.patience} without a better loss on validation cells"
            )
        kept = f"the weights after pass {best} are kept" if best else "the first weights are kept"
        return f"Fine-tuning ended after {n_passes} passes ({n_steps} steps): {why}; {kept}."

    def on_train_end(self) -> None:
        """Go back to the best state."""
        self.load_state_dict(self._best)

    def _compare(self) -> None:
        """Compare the state with the best one so far."""
        loss = self.held_out_loss()
        is_best = not self.log_of_losses or loss < min(self.log_of_losses)
        self.log_of_losses.append(loss)
        if not is_best:
            self._epochs_since_best += 1
            return
        self._epochs_since_best = 0
        self._best = {name: v.detach().clone() for name, v in self.state_dict().items()}

    def configure_optimizers(self) -> Any:
        """AdamW, each part with its own learning rate, which rises and falls as in pretraining."""
        config = self.config
        parts = self.model.module
        groups: list[dict[str, Any]] = [
            {"params": list(parts.cell_encoder.parameters()), "lr": config.encoder_lr},
            {"params": list(parts.se2.parameters()), "lr": config.se2_lr},
            {"params": list(self.head.parameters()), "lr": config.head_lr},
        ]
        optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
        total = len(self.steps) * config.max_epochs
        longest_warmup = OptimConfig(warmup_steps=total)  # cut to a tenth of the steps
        schedule = LambdaLR(optimizer, lambda step: rate(step, longest_warmup, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def tuned_head(self) -> Any:
        """Return the head as one of :mod:`terrazzo.tasks`."""
        state = dict(self.frozen_head.state())
        for name in ("shift", "scale"):
            state[name] = getattr(self, name).double().cpu().numpy()
        for name, values in self.head.state_dict().items():
            state[f"module.{name}"] = values.detach().cpu().numpy()
        head = make_head(HEAD, "classes", self.frozen_head.n_outputs)
        return head.load_state(state)


def _label_head(frozen_head: Any) -> LabelHead:
    """Return the network of a head of :mod:`terrazzo.tasks`, with its weights."""
    config: Any = head_config(HEAD)
    head = LabelHead(
        frozen_head.input_dim,
        frozen_head.n_outputs,
        tuple(config.hidden),
        config.activation,
        config.dropout,
    )
    weights = {}
    for name, values in frozen_head.state().items():
        if name.startswith("module."):
            weights[name.removeprefix("module.")] = torch.tensor(values)
    head.load_state_dict(weights)
    return head


def _labeled_slices(
    model: SToFM, slices: Sequence[AnnData], codes: Ints, rows: Split, **options: Any
) -> list[LabeledSlice]:
    """Prepare the slices, with their parts of codes and split, which are those of all slices stacked."""
    used = np.concatenate([rows.train, rows.validation])
    if codes[used].min(initial=0) < 0:
        raise InputError("the split names cells without a label that is learned.")
    if len(rows.train) == 0 or len(rows.validation) == 0:
        raise InputError("fine-tuning needs labeled cells to learn from, and others to stop by.")
    train = np.zeros(len(codes), dtype=bool)
    train[rows.train] = True
    validation = np.zeros(len(codes), dtype=bool)
    validation[rows.validation] = True
    out = []
    start = 0
    for adata in slices:
        own = slice(start, start + adata.n_obs)
        out.append(prepare(model, adata, codes[own], train[own], validation[own], **options))
        start += adata.n_obs
    return out


def _frozen_head(model: SToFM, labeled: list[LabeledSlice], n_classes: int, seed: int) -> Any:
    """Fit the head to the vectors as they are."""
    x = np.concatenate([slice_vectors(model, one) for one in labeled])
    y = np.concatenate([one.codes for one in labeled])
    train = np.concatenate([one.train for one in labeled])
    validation = np.concatenate([one.validation for one in labeled])
    head = make_head(HEAD, "classes", n_classes)
    return head.fit(x[train], y[train], x[validation], y[validation], seed)


def _provenance(
    model: SToFM, label: str, config: FineTuneConfig, slices: Sequence[AnnData]
) -> dict[str, Any]:
    return {
        "weights": "fine-tuned",
        "from_sha256": model.fingerprint(),
        "label": label,
        "cells": sum(len(adata) for adata in slices),
        "settings": asdict(config),
        "before": model.provenance,
    }
