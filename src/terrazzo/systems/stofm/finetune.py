"""Fine-tuning of all parameters: SToFM's cell encoder, its SE(2) Transformer and a label head (SToFM, B.1)."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from anndata import AnnData
from lightning import LightningModule, Trainer
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from terrazzo import keys
from terrazzo.errors import ConfigError, InputError, OutputError, TrainingError
from terrazzo.progress import Progress
from terrazzo.systems.stofm.labeled import Scene, prepare, refresh, scene_vectors, subslice_vectors
from terrazzo.systems.stofm.model import SToFM
from terrazzo.tasks import targets
from terrazzo.tasks.experiments import make_head
from terrazzo.tasks.heads import head_config, head_record, statistics
from terrazzo.tasks.mlp import LabelHead
from terrazzo.tasks.probes import Probe
from terrazzo.tasks.splits import Split, all_rows
from terrazzo.training.recipe import OptimConfig
from terrazzo.training.resuming import seed_everything
from terrazzo.training.run import interruptible, own_streams, quiet
from terrazzo.training.stage import rate

HEAD = (
    "mlp3"  # of the probes: full fine-tuning differs from head tuning in the weights below it alone
)


LEAST = 16  # cells of a group that have a mean and sd of their own


FLOOR = 0.02  # of an sd, in that of all training cells


@dataclass(frozen=True)
class FineTuneConfig:
    """How all parameters are tuned.

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
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"{name} of fine-tuning is {getattr(self, name)}; it must be at least 1."
                )
        for name in ("encoder_lr", "se2_lr", "head_lr", "weight_decay"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(
                    f"{name} of fine-tuning is {getattr(self, name)}; it must be a number from 0."
                )


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

    def predict(
        self, adata: AnnData, *, key_added: str = keys.X_STOFM, **options: Any
    ) -> NDArray[Any]:
        """Embed a slice (``options``: of ``embed``) and return the class of every cell, object ``(n,)``."""
        self.model.embed(adata, key_added=key_added, **options)
        return self.probe.predict(adata, use_rep=f"{key_added}:all")

    def save(self, folder: str | Path) -> Path:
        """Write the checkpoint ``model/`` and the head ``probe/`` into a new folder.

        Raises
        ------
        OutputError
            The folder exists already, or cannot be written.
        """
        target = free_folder(folder)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as draft:
                self.model.save_pretrained(Path(draft) / "both" / "model")
                self.probe.save(Path(draft) / "both" / "probe")
                (Path(draft) / "both").replace(target)
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
        source = Path(
            folder
        ).resolve()  # a relative path that is not there could be a name on the hub
        return cls(SToFM.from_pretrained(source / "model"), Probe.load(source / "probe"))


def free_folder(folder: str | Path) -> Path:
    """Return a folder that is not there yet, or empty.

    Raises
    ------
    OutputError
        It holds something, or is a file.
    """
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise OutputError(f"{target} holds something already; pass another folder.")
    return target


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
    """Tune all parameters of a model on labeled slices.

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
        Rows (of the slices stacked) to learn from and to stop by; None: all labeled ones, 10 % of them to stop by.
    seed
        Of the order, the groups of cells, and the head's start.
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
    if chosen.dropout is None:
        chosen = replace(chosen, dropout=model.trained)
    tuned = SToFM(
        model.config, model.vocabulary, provenance=_provenance(model, label, chosen, slices)
    )
    tuned.module.load_state_dict(model.module.state_dict())
    tuned.to(model.device)
    scenes = _scenes(tuned, slices, target.values, rows, orthologs=orthologs, progress=progress)
    readout = _frozen_head(tuned, scenes, len(target.names), seed)
    with contextlib.ExitStack() as around:
        around.enter_context(own_streams())
        around.enter_context(quiet())
        around.enter_context(interruptible())
        seed_everything(seed)
        run = FineTuning(tuned, readout, scenes, chosen, seed)
        bar = Progress(progress).stage("fine-tune", len(run.steps) * chosen.max_epochs, "steps")
        run.advance = around.enter_context(bar)
        trainer = Trainer(
            max_epochs=chosen.max_epochs,
            accelerator="auto",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            gradient_clip_val=1.0,
        )
        trainer.fit(run, run.steps)
    tuned.to(model.device).module.eval()
    probe = Probe(
        run.readout(),
        target.names,
        keys.X_STOFM,
        label,
        (),
        {
            "head": head_record(HEAD),
            "seed": seed,
            "fine_tuned": asdict(chosen),
            "notes": list(target.notes),
        },
    )
    return FineTuned(tuned, probe, tuple(run.log_of_losses))


class Steps:
    """What a pass goes through: each training cell once, in groups of one sub-slice, drawn anew for every pass."""

    def __init__(self, scenes: Sequence[Scene], size: int, rng: np.random.Generator) -> None:
        self.rng = rng
        self.groups: list[tuple[int, int, NDArray[np.int64], int]] = []
        for i, scene in enumerate(scenes):
            for j, sub in enumerate(scene.subslices):
                learned = np.flatnonzero(scene.train[sub.cells[: sub.n_core]])
                if len(learned):
                    self.groups.append((i, j, learned, -(-len(learned) // size)))

    def __len__(self) -> int:
        return sum(parts for _, _, _, parts in self.groups)

    def __iter__(self) -> Iterator[tuple[int, int, NDArray[np.int64]]]:
        """Yield scene, sub-slice, and cells by their place in it."""
        drawn = [
            (i, j, np.sort(part))
            for i, j, learned, parts in self.groups
            for part in np.array_split(self.rng.permutation(learned), parts)
        ]
        return iter([drawn[k] for k in self.rng.permutation(len(drawn))])


class FineTuning(LightningModule):
    """Cross-entropy of the training cells of a sub-slice; keeps the best state by the validation cells.

    The head reads standardized vectors. Cells of a poorly trained model differ by a thousandth of their vectors'
    length, and a small change that is common to all cells would be many sd: so a step takes mean and sd of its own
    cells, and after a pass those of all training cells are taken anew.
    """

    shift: Tensor
    scale: Tensor
    advance: Callable[[int], None]

    def __init__(
        self, model: SToFM, readout: Any, scenes: list[Scene], config: FineTuneConfig, seed: int
    ) -> None:
        super().__init__()
        self.model, self.scenes, self.config, self.start = model, scenes, config, readout
        self.trained = model.module
        self.head = LabelHead(readout.input_dim, readout.n_outputs, *_head_shape()).to(model.device)
        state = readout.state()
        weights = {
            k.removeprefix("module."): torch.tensor(v)
            for k, v in state.items()
            if k.startswith("module.")
        }
        self.head.load_state_dict(weights)
        self.register_buffer(
            "shift", torch.tensor(state["shift"], dtype=torch.float32, device=model.device)
        )
        self.register_buffer(
            "scale", torch.tensor(state["scale"], dtype=torch.float32, device=model.device)
        )
        self.steps = Steps(scenes, config.batch_cells, np.random.default_rng([seed, 7]))
        self.log_of_losses: list[float] = []
        self._best: dict[str, Tensor] = {}
        self._waited = 0

    def training_step(self, batch: tuple[int, int, NDArray[np.int64]], batch_index: int) -> Tensor:
        """Score a group of training cells, encoded again with gradient."""
        scene, cells = self.scenes[batch[0]], batch[2]
        sub = scene.subslices[batch[1]]
        vectors = subslice_vectors(self.model, scene, sub, cells)
        vectors = vectors[torch.from_numpy(cells).to(vectors.device)]
        shift, scale = self.shift, self.scale
        if len(cells) >= LEAST:
            shift, scale = (
                vectors.mean(0),
                torch.maximum(vectors.std(0, unbiased=False), FLOOR * self.scale),
            )
        scores = self.head((vectors - shift) / scale)
        loss = F.cross_entropy(
            scores, torch.from_numpy(scene.codes[sub.cells[cells]]).to(scores.device)
        )
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss is not a number, in {scene.name}; lower the learning rates."
            )
        self.advance(1)
        return loss

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """Return the mean loss of the validation cells, with vectors and the training cells' statistics renewed."""
        self.eval()
        learned, watched, codes = [], [], []
        for scene in self.scenes:
            refresh(self.model, scene)
            vectors = scene_vectors(self.model, scene)
            learned.append(vectors[scene.train])
            watched.append(vectors[scene.validation])
            codes.append(scene.codes[scene.validation])
        for buffer, values in zip(
            (self.shift, self.scale), statistics(np.concatenate(learned)), strict=True
        ):
            buffer.copy_(torch.from_numpy(values))
        x, y = torch.from_numpy(np.concatenate(watched)), torch.from_numpy(np.concatenate(codes))
        scores = self.head((x.to(self.shift.device) - self.shift) / self.scale)
        self.train(bool(self.config.dropout))
        return float(F.cross_entropy(scores, y.to(scores.device)))

    def on_train_start(self) -> None:
        """Take the start as the first candidate."""
        self._judge()

    def on_train_epoch_end(self) -> None:
        """Keep the state if it is better; stop if nothing has been for a while."""
        self._judge()
        self.trainer.should_stop = self._waited >= self.config.patience

    def on_train_end(self) -> None:
        """Go back to the best state."""
        self.load_state_dict(self._best)

    def _judge(self) -> None:
        loss = self.held_out_loss()
        better = not self.log_of_losses or loss < min(self.log_of_losses)
        self.log_of_losses.append(loss)
        self._waited = 0 if better else self._waited + 1
        if better:
            self._best = {k: v.detach().clone() for k, v in self.state_dict().items()}

    def configure_optimizers(self) -> Any:
        """AdamW, each part with its own learning rate, which rises and falls as in pretraining."""
        config, parts = self.config, self.model.module
        groups: list[tuple[nn.Module, float]] = [
            (parts.cell_encoder, config.encoder_lr),
            (parts.se2, config.se2_lr),
            (self.head, config.head_lr),
        ]
        optimizer = torch.optim.AdamW(
            [{"params": list(part.parameters()), "lr": lr} for part, lr in groups],
            weight_decay=config.weight_decay,
        )
        total = len(self.steps) * config.max_epochs
        shape = OptimConfig(warmup_steps=total)  # the longest there is: a tenth
        schedule = LambdaLR(optimizer, lambda step: rate(step, shape, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def readout(self) -> Any:
        """Return the head as a read-out of :mod:`terrazzo.tasks`."""
        weights = {
            f"module.{k}": v.detach().cpu().numpy() for k, v in self.head.state_dict().items()
        }
        moved = {name: getattr(self, name).double().cpu().numpy() for name in ("shift", "scale")}
        return make_head(HEAD, "classes", self.start.n_outputs).load_state(
            {**self.start.state(), **moved, **weights}
        )


def _head_shape() -> tuple[tuple[int, ...], str, float]:
    config: Any = head_config(HEAD)
    return tuple(config.hidden), config.activation, config.dropout


def _scenes(
    model: SToFM, slices: Sequence[AnnData], codes: NDArray[np.int64], rows: Split, **options: Any
) -> list[Scene]:
    if min(codes[rows.train].min(initial=0), codes[rows.validation].min(initial=0)) < 0:
        raise InputError("the split names cells without a label that is learned.")
    train, validation = np.zeros(len(codes), dtype=bool), np.zeros(len(codes), dtype=bool)
    train[rows.train], validation[rows.validation] = True, True
    out, start = [], 0
    for adata in slices:
        here = slice(start, start + adata.n_obs)
        out.append(prepare(model, adata, codes[here], train[here], validation[here], **options))
        start += adata.n_obs
    if not len(rows.train) or not len(rows.validation):
        raise InputError("fine-tuning needs labeled cells to learn from, and others to stop by.")
    return out


def _frozen_head(model: SToFM, scenes: list[Scene], n_classes: int, seed: int) -> Any:
    """Fit the head to the vectors as they are."""
    x, y, train, validation = [], [], [], []
    for scene in scenes:
        x.append(scene_vectors(model, scene))
        y.append(scene.codes)
        train.append(scene.train)
        validation.append(scene.validation)
    rows, stop = np.concatenate(train), np.concatenate(validation)
    stacked, codes = np.concatenate(x), np.concatenate(y)
    readout = make_head(HEAD, "classes", n_classes)
    return readout.fit(stacked[rows], codes[rows], stacked[stop], codes[stop], seed)


def _provenance(
    model: SToFM, label: str, config: FineTuneConfig, slices: Sequence[AnnData]
) -> dict[str, Any]:
    return {
        "weights": "fine-tuned",
        "from_sha256": model.fingerprint(),
        "label": label,
        "cells": sum(len(a) for a in slices),
        "settings": asdict(config),
        "before": model.provenance,
    }
