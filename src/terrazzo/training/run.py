"""One training run: from a recipe and a corpus to a checkpoint folder, through Lightning; it can be resumed."""

from __future__ import annotations

import datetime
import errno
import json
import logging
import os
import shutil
import signal
import subprocess
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.plugins import FSDPPrecision
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, Strategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.distributed.fsdp import MixedPrecision

from terrazzo._version import __version__
from terrazzo.config import to_dict
from terrazzo.corpus.genes import shares_known
from terrazzo.corpus.store import Corpus
from terrazzo.errors import ConfigError, OutputError, TerrazzoError
from terrazzo.models.base import FoundationModel
from terrazzo.models.card import COUNTS_KNOWN, TRAINED_ON, name_hash
from terrazzo.models.checkpoint import CONFIG
from terrazzo.progress import Progress
from terrazzo.systems.stages import STAGES, initial_model, loaders, make_objective, prepare
from terrazzo.training import callbacks as logs
from terrazzo.training import logs as log_files
from terrazzo.training.callbacks import Guard, Keeper, Meter
from terrazzo.training.recipe import PretrainConfig, RunConfig
from terrazzo.training.resuming import (
    KEY,
    AtomicCheckpoints,
    check,
    describe,
    random_state,
    read_checkpoint,
    seed_everything,
    set_random_state,
    start,
)

logger = logging.getLogger(__name__)


LAST, LOGS, MODEL = Path("checkpoints") / "last.ckpt", Path(log_files.LOGS), "model"


RANKS = (
    "RANK",
    "SLURM_PROCID",
    "NODE_RANK",
    "LOCAL_RANK",
)  # as torchrun, srun, Lightning tell a process which it is


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


QUIET = ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_fabric")


# Lightning's advice that does not apply here: loaders have no workers to add, models start in eval mode on purpose, ...
ADVICE = (
    r".*does not have many workers.*",
    r".*module\(s\) in eval mode.*",
    r".*is smaller than the logging interval.*",
    r".*the batch size from an ambiguous collection.*",
    r".*across ranks is zero.*|.*has `shuffle=True`.*",
    r".*recommended to use `self.log\(.*sync_dist=True\)`.*",
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*srun.* command is available on your system but is not used.*",
    r".*find_unused_parameters=True was specified.*",
    r".*barrier\(\): using the device under current context.*",
    r".*using `DistributedSampler` with the dataloaders.*",
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",
)


def pretrain(
    config: PretrainConfig,
    *,
    resume: bool = False,
    progress: bool | None = None,
    callbacks: Sequence[Callback] = (),
) -> Path:
    """Train, and write the trained model.

    ``config.out`` then holds ``model/`` (a checkpoint folder for ``from_pretrained``), ``logs/metrics.csv`` and
    ``logs/tensorboard/``, ``checkpoints/last.ckpt`` (to resume from), ``recipe.yaml`` and ``run.json``.

    Parameters
    ----------
    config
        The recipe, from :func:`terrazzo.training.recipe.load`.
    resume
        Continue the run in ``config.out`` with the very next sample. One that is finished is not done again.
    progress
        Show a bar; None: only on a terminal.
    callbacks
        More Lightning callbacks.

    Returns
    -------
    ``config.out / "model"``.

    Raises
    ------
    ConfigError
        Impossible settings; a resume with another recipe or corpus (the differences are shown).
    CorpusError
        No corpus, or one without training slices.
    TrainingError
        A loss or gradient is not a number; names the step and the slices.
    OutputError
        The folder holds a run already, or the disk is full; the last good checkpoint stays loadable.
    """
    corpus, out = Corpus.open(config.corpus), Path(config.out)
    with own_streams(), quiet():
        model = initial_model(config, corpus)
        source = config.model
        given = source.checkpoint or source.image_encoder or source.gene_encoder
        initial = model.fingerprint() if given else ""
        record = describe(config, corpus.content_hash(), initial)
        if resume:
            check(
                out, record
            )  # in every process: one that passed would wait for those that did not
        elif first_process():
            start(out, config, record)
        if resume and (out / MODEL / CONFIG).is_file():
            logger.warning("%s is trained already.", out / MODEL)
            return out / MODEL
        try:
            _train(config, corpus, model, record, resume, progress, callbacks)
        except TerrazzoError:
            kept = (LAST, LOGS / log_files.CSV)
            if first_process() and not resume and not any((out / one).exists() for one in kept):
                shutil.rmtree(out)  # made above, and nothing in it is worth keeping
            raise
    return out / MODEL


def _train(
    config: PretrainConfig,
    corpus: Corpus,
    model: FoundationModel,
    record: dict[str, Any],
    resume: bool,
    progress: bool | None,
    callbacks: Sequence[Callback],
) -> None:
    out = Path(config.out)
    last = out / LAST if resume and (out / LAST).is_file() else None
    held = read_checkpoint(last) if last else {}
    resumed, place = int(held.get("global_step", 0)), held.get(KEY, {}).get("loader")
    seed_everything(config.seed)
    objective, io, held_out = (
        make_objective(config, model),
        AtomicCheckpoints(),
        bool(corpus.ids("validation")),
    )
    keeper = Keeper(out / LAST, config.run.checkpoint_every, io, record, config.seed)
    own = [Guard(config.optim.clip), Meter(Progress(progress).enabled), keeper, *callbacks]
    trainer = make_trainer(config, io, own, logs.loggers(out / LOGS, resumed), validates=held_out)
    module = _Data(config, corpus, model, progress, place)
    with interruptible():
        _fit(trainer, objective, module, last)
        if held_out and keeper.validated != trainer.global_step:
            trainer.validate(objective, datamodule=module, verbose=False)
    if trainer.is_global_zero:
        finish(config, corpus, objective, trainer)
    trainer.strategy.barrier("model")


def first_process() -> bool:
    """Say whether this process is the first of the run, which alone writes and speaks."""
    return all(os.environ.get(name, "0") == "0" for name in RANKS)


class _Data(LightningDataModule):
    """The loaders, made in every process once it knows its rank; stored vectors are made by the first one alone."""

    def __init__(
        self,
        config: PretrainConfig,
        corpus: Corpus,
        model: FoundationModel,
        progress: bool | None,
        place: dict[str, Any] | None,
    ) -> None:
        super().__init__()
        self.prepare_data_per_node = False
        self._args, self._progress, self._place = (config, corpus, model), progress, place
        self._loaders: tuple[Any, Any] | None = None
        self._prepared = False

    def prepare_data(self) -> None:
        if self._prepared:  # a last validation asks again
            return
        module, trainer = self._args[2].module, cast(Trainer, self.trainer)
        module.to(
            trainer.strategy.root_device
        )  # every cell goes through the encoder: not on the CPU beside a GPU
        prepare(*self._args, self._progress)
        module.to("cpu")
        self._prepared = True

    def setup(self, stage: str) -> None:
        if (
            self._loaders is None
        ):  # before a checkpoint's weights come in: stored vectors go by the first ones
            trainer: Any = self.trainer
            self._loaders = loaders(*self._args, rank=trainer.global_rank, world=trainer.world_size)
            if self._place is None:  # a checkpoint holds what came of it
                STAGES[self._args[0].stage].start(trainer.lightning_module, *self._args)
            if self._place is not None:
                self._loaders[0].load_state_dict(self._place)
            run, optim = self._args[0].run, self._args[0].optim
            steps = -(-len(self._loaders[0]) // optim.accumulate) * optim.epochs
            steps = min(steps, optim.max_steps) if optim.max_steps > 0 else steps
            trainer.log_every_n_steps = min(run.log_every, steps)

    def train_dataloader(self) -> Any:
        return self._loaders[0] if self._loaders else []

    def val_dataloader(self) -> Any:
        return self._loaders[1] if self._loaders and self._loaders[1] is not None else []


def make_trainer(
    config: PretrainConfig,
    io: AtomicCheckpoints,
    callbacks: list[Callback],
    loggers: list[Any],
    *,
    validates: bool,
) -> Trainer:
    """Return the Trainer of a recipe.

    Raises
    ------
    ConfigError
        Devices, nodes or a strategy that this machine does not have.
    """
    run, optim = config.run, config.optim
    plugins: list[Any] = [io]
    if SLURMEnvironment.detect():
        plugins.append(SLURMEnvironment(auto_requeue=False))
    every = run.validate_every * optim.accumulate
    when: dict[str, Any] = (
        {"val_check_interval": every, "check_val_every_n_epoch": None} if every else {}
    )
    try:
        return Trainer(
            accelerator=run.accelerator,
            devices=run.devices,
            num_nodes=run.nodes,
            strategy=make_strategy(run),
            precision=run.precision,
            max_epochs=optim.epochs,
            max_steps=optim.max_steps,
            accumulate_grad_batches=optim.accumulate,
            log_every_n_steps=run.log_every,
            limit_val_batches=1.0 if validates else 0,
            num_sanity_val_steps=0,
            logger=loggers,
            callbacks=callbacks,
            plugins=plugins,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=config.out,
            **when,
        )
    except (ValueError, RuntimeError, MisconfigurationException) as error:
        raise ConfigError(f"run: {str(error).strip().splitlines()[0]}") from error


def _fit(
    trainer: Trainer, objective: LightningModule, module: LightningDataModule, last: Path | None
) -> None:
    try:
        trainer.fit(objective, datamodule=module, ckpt_path=last)
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise OutputError(
            f"{trainer.default_root_dir} cannot be written ({error}); the last checkpoint is whole. Free some space, "
            "then use --resume."
        ) from error


def finish(config: PretrainConfig, corpus: Corpus, objective: Any, trainer: Trainer) -> Path:
    """Write the trained weights as a checkpoint folder, with where they come from."""
    out, model = Path(config.out), objective.model
    prefix = next(name for name, part in objective.named_modules() if part is model.module) + "."
    held = read_checkpoint(out / LAST)  # whole on every strategy, unlike the module in memory
    state = {
        k.removeprefix(prefix): v for k, v in held["state_dict"].items() if k.startswith(prefix)
    }
    origin = provenance(config, corpus, model, trainer)
    trained: Any = type(model)(model.config, model.vocabulary, provenance=origin)
    trained.module.load_state_dict(state)
    STAGES[config.stage].finish(config, corpus, trained)
    return trained.save_pretrained(out / MODEL, overwrite=True)


def provenance(
    config: PretrainConfig, corpus: Corpus, model: FoundationModel, trainer: Trainer
) -> dict[str, Any]:
    """Return where trained weights come from, a flat dict for ``config.json`` and the model card."""
    before = model.provenance if config.model.checkpoint else {}
    out: dict[str, Any] = {
        "weights": "trained",
        "stage": config.stage,
        **STAGES[config.stage].story(config, model),
        "started from": config.model.checkpoint
        or f"{config.model.init} weights, preset {config.model.preset}, seed {config.seed}",
        "corpus": Path(config.corpus).resolve().name,
        "corpus_sha256": corpus.content_hash(),
    }
    sizes = corpus.manifest.set_index("id")["n_cells"]
    for split in ("train", "validation"):
        ids = STAGES[config.stage].members(config, corpus, split) if corpus.ids(split) else []
        out[f"{split} slices"], out[f"{split} cells"] = len(ids), int(sizes[ids].sum())
        out |= {TRAINED_ON: " ".join(map(name_hash, ids))} if split == "train" else {}
    out |= {"share of slices": config.data.share} if config.data.share < 1 else {}
    known = shares_known(corpus, model.vocabulary, corpus.ids("train"))
    out[COUNTS_KNOWN] = f"median {np.median(known):.1%}, least {known.min():.1%}"
    for name in ("technology", "organism", "tissue"):
        out[name] = ", ".join(sorted({str(v) for v in corpus.manifest[name] if v}))
    out |= {
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "processes": trainer.world_size,
    }
    seen = {
        k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith(("train/", "val/"))
    }
    out |= {
        k: float(f"{v:.6g}")
        for k, v in (seen | log_files.final(Path(config.out) / LOGS / log_files.CSV)).items()
    }
    out |= {
        "git_revision": git_revision(),
        "terrazzo_version": __version__,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "recipe": json.dumps(to_dict(config)),
    }
    if before:
        out["before"] = json.dumps(before)
    return out


def git_revision() -> str:
    """Return the commit that this library is checked out at, with ``-dirty`` where files differ; else ``"unknown"``."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():  # installed: a repository around it would be somebody else's
        return "unknown"
    words = [
        "git",
        "-C",
        str(root),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=40",
        "--exclude=*",
    ]
    try:
        return subprocess.run(
            words, capture_output=True, text=True, timeout=30, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


@contextmanager
def own_streams() -> Iterator[None]:
    """Leave the caller's random streams as they were."""
    before = random_state()
    try:
        yield
    finally:
        set_random_state(before)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Lightning's chatter, and its advice that does not apply; its errors and other warnings pass."""
    levels = {name: logging.getLogger(name).level for name in QUIET}
    with warnings.catch_warnings():
        for message in ADVICE:
            warnings.filterwarnings("ignore", message=message)
        for name in QUIET:
            logging.getLogger(name).setLevel(logging.WARNING)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


class WholeInputs(FSDPPrecision):
    """FSDP's precision for weights and gradients, with batches left as they are.

    Lightning's own refuses frozen dataclasses, and rounds batches to bfloat16: distances and counts need all digits.
    """

    def convert_input(self, data: Any) -> Any:
        """Return the batch."""
        return data

    @property
    def mixed_precision_config(self) -> MixedPrecision:
        """What FSDP is told; autocast casts where it does no harm."""
        return replace(super().mixed_precision_config, cast_root_forward_inputs=False)


def make_strategy(run: RunConfig) -> str | Strategy:
    """Return Lightning's strategy: one process, DDP, or FSDP."""
    if run.strategy == "fsdp":
        return FSDPStrategy(state_dict_type="full", precision_plugin=WholeInputs(run.precision))
    if run.strategy == "ddp" or run.devices != 1 or run.nodes > 1:  # -1: all there are
        return DDPStrategy(
            find_unused_parameters=True
        )  # a frozen encoder, a head whose weight is 0
    return "auto"


@contextmanager
def interruptible() -> Iterator[None]:
    """Let an interrupt of a Trainer out as KeyboardInterrupt, and give back the handlers that were there before.

    Raises
    ------
    KeyboardInterrupt
        In place of the SystemExit that Lightning makes of it.
    """
    main = threading.current_thread() is threading.main_thread()  # no other thread may set handlers
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)} if main else {}
    try:
        yield
    except SystemExit as stop:
        raise KeyboardInterrupt from stop
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
