"""Training runs with Lightning, from a recipe and a corpus to a checkpoint folder; they can be resumed."""

from __future__ import annotations

import datetime
import errno
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
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
from terrazzo.corpus.genes import median_depths, shares_known
from terrazzo.corpus.store import Corpus
from terrazzo.errors import ConfigError, OutputError, TerrazzoError
from terrazzo.files import sweep
from terrazzo.locks import alone
from terrazzo.models.card import COUNTS_KNOWN, LEAST_DEPTH, TRAINED_ON, name_hash
from terrazzo.models.checkpoint import CONFIG
from terrazzo.progress import Progress
from terrazzo.systems import registry
from terrazzo.training import endings, logs
from terrazzo.training.callbacks import CheckpointWriter, Guard, Meter, loggers
from terrazzo.training.recipe import Recipe, RunConfig, save_recipe
from terrazzo.training.resuming import (
    KEY,
    RECIPE,
    RECORD,
    AtomicCheckpoints,
    check,
    describe,
    random_state,
    read_checkpoint,
    seed_everything,
    set_random_state,
    start,
)
from terrazzo.training.stage import Shard, Stage
from terrazzo.training.validation import Validation

__all__ = ["first_process", "make_stage", "pretrain"]

logger = logging.getLogger(__name__)

# in the folder of a run
LAST = Path("checkpoints") / "last.ckpt"

LOGS = Path(logs.LOGS)

MODEL = "model"

NEVER = 2**31  # epochs

# variables in which torchrun, srun and Lightning pass its rank to a process
RANKS = ("RANK", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK")

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

QUIET = ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_fabric")

# Lightning's advice that does not apply: loaders have no workers to add, models start in eval mode on purpose, ...
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
    recipe: Recipe,
    *,
    resume: bool = False,
    progress: bool | None = None,
    callbacks: Sequence[Callback] = (),
) -> Path:
    """Train, and write the trained model.

    ``recipe.out`` then has ``model/`` (a checkpoint folder for ``from_pretrained``), ``logs/metrics.csv`` and
    ``logs/tensorboard/``, ``checkpoints/last.ckpt`` (to resume from), ``recipe.yaml`` and ``run.json``, whose ``ended``
    says why the run ended, and after how many steps. Where bars are shown, a line says it, too.

    Parameters
    ----------
    recipe
        From :func:`terrazzo.load_recipe`.
    resume
        Continue the run in ``recipe.out`` with the very next sample. A finished run is not repeated.
    progress
        Show a bar; None: in a terminal and in a notebook.
    callbacks
        More Lightning callbacks.

    Returns
    -------
    ``recipe.out / "model"``.

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
    out = Path(recipe.out)
    with own_streams(), quiet():
        stage = make_stage(recipe, progress=progress)
        record = describe(recipe, stage.corpus.content_hash(), _initial_weights(stage))
        if resume:
            check(out, record)  # in every process: one that passed would wait for those that failed
        with _only_run(out):
            if not resume and first_process():
                start(out, recipe, record)
            elif first_process() and not (out / RECIPE).exists():  # killed before it was written
                save_recipe(recipe, out / RECIPE)
            if resume and (out / MODEL / CONFIG).is_file():
                logger.warning("%s is trained already.", out / MODEL)
                return out / MODEL
            try:
                _train(stage, record, resume, callbacks)
            except TerrazzoError:
                has_results = (out / LAST).exists() or (out / LOGS / logs.CSV).exists()
                if first_process() and not resume and not has_results:
                    _undo_start(out)
                raise
    return out / MODEL


@contextmanager
def _only_run(out: Path) -> Iterator[None]:
    """Lock the folder of a run by its first process, and remove what a killed one left half-written.

    Raises
    ------
    OutputError
        Another run is in the folder; or it cannot be written.
    """
    if not first_process():
        yield
        return
    is_new = not out.exists()
    with ExitStack() as stack:
        try:
            out.mkdir(parents=True, exist_ok=True)
            if is_new:
                stack.callback(_remove_empty, out)
            stack.enter_context(alone(out, "trained"))
        except OSError as error:
            if isinstance(error, OutputError):
                raise
            raise OutputError(f"{out} cannot be written ({error.strerror or error}).") from error
        sweep(out, deep=True)
        yield


def _remove_empty(folder: Path) -> None:
    """Remove a folder where nothing came of it."""
    with suppress(OSError):
        folder.rmdir()


def _undo_start(out: Path) -> None:
    """Remove what :func:`start` and the loggers wrote, where nothing was trained; other files stay."""
    for name in (RECIPE, RECORD):
        (out / name).unlink(missing_ok=True)
    shutil.rmtree(out / LOGS, ignore_errors=True)
    _remove_empty(out / LAST.parent)


def make_stage(recipe: Recipe, *, progress: bool | None = None) -> Stage[Any, Any]:
    """Return the stage of a recipe on its corpus.

    Raises
    ------
    ConfigError
        No such stage.
    CorpusError
        No corpus.
    """
    stage_class = registry.stage_class(recipe.stage)
    stage: Stage[Any, Any] = stage_class(recipe, Corpus.open(recipe.corpus), progress=progress)
    return stage


def _initial_weights(stage: Stage[Any, Any]) -> str:
    """Return a hash of the weights that a run starts from, where they come from files."""
    model = stage.model  # an impossible one raises before a folder is created
    if not any(stage.weight_folders()):
        return ""
    return model.fingerprint()


def _train(
    stage: Stage[Any, Any], record: dict[str, Any], resume: bool, callbacks: Sequence[Callback]
) -> None:
    recipe = stage.recipe
    out = Path(recipe.out)
    last = out / LAST if resume and (out / LAST).is_file() else None
    checkpoint = read_checkpoint(last) if last else {}
    resumed_step = int(checkpoint.get("global_step", 0))
    loader_state = checkpoint.get(KEY, {}).get("loader")
    seed_everything(recipe.seed)
    objective = stage.objective()
    validates = bool(stage.corpus.ids("validation"))
    io = AtomicCheckpoints()
    validation = Validation(
        recipe.run, (out / LAST).parent, io, seed=recipe.seed, enabled=validates
    )
    writer = CheckpointWriter(
        out / LAST,
        recipe.run.checkpoint_every,
        io,
        record,
        seed=recipe.seed,
        validation=validation,
    )
    meter = Meter(Progress(stage.progress).enabled)
    trainer = make_trainer(
        recipe,
        io,
        [Guard(recipe.optim.clip), meter, validation, writer, *callbacks],
        loggers(out / LOGS, resumed_step),
        validates=validates,
    )
    data = _Data(stage, loader_state)
    if first_process():
        endings.forget(out)
    try:
        with interruptible():
            _fit(trainer, objective, data, last)
            ending = endings.of_trainer(trainer, data.plan, validation)
    except KeyboardInterrupt as stop:
        ending = endings.interrupted(trainer, data.plan, writer.saved_step)
        if first_process():
            with suppress(OSError, TerrazzoError):
                endings.write(out, ending)
        raise KeyboardInterrupt(ending.line()) from stop
    if trainer.is_global_zero:
        finish(stage, objective, trainer, ending, validation)
        endings.write(out, ending)
        _say(ending, stage.progress)
    trainer.strategy.barrier("model")


def _say(ending: endings.Ending, progress: bool | None) -> None:
    """Say why a run ended: in the log, and below the bar."""
    line = ending.line()
    level = logging.WARNING if ending.kept_the_start else logging.INFO
    logger.log(level, "%s", line)
    if Progress(progress).enabled:
        sys.stderr.write(f"{line}\n")


def first_process() -> bool:
    """Return True if this process is the first of the run, which alone writes files and messages."""
    return all(os.environ.get(name, "0") == "0" for name in RANKS)


class _Data(LightningDataModule):
    """The loaders, made in every process once its rank is known; the first one alone prepares the stage."""

    def __init__(self, stage: Stage[Any, Any], loader_state: dict[str, Any] | None) -> None:
        super().__init__()
        self.prepare_data_per_node = False
        self._stage = stage
        self._state = loader_state
        self._train: Any = None
        self._validation: Any = None
        self._prepared = False
        self.plan = endings.Plan(0, 0)  # known once there are loaders

    def prepare_data(self) -> None:
        if self._prepared:  # a last validation calls it again
            return
        module = self._stage.model.module
        trainer = cast(Trainer, self.trainer)
        # every cell may be encoded: not on the CPU where there is a GPU
        module.to(trainer.strategy.root_device)
        self._stage.prepare()
        module.to("cpu")
        self._prepared = True

    def setup(self, stage: str) -> None:
        if self._train is not None:
            return
        # before a checkpoint's weights are loaded: stored vectors are of the initial ones
        trainer: Any = self.trainer
        shard = Shard(trainer.global_rank, trainer.world_size)
        self._train = self._stage.loader("train", shard)
        if "validation" in self._stage.splits():
            self._validation = self._stage.loader("validation", shard)
        if self._state is None:
            self._stage.start(trainer.lightning_module)
        else:  # a checkpoint has the result of start()
            self._train.load_state_dict(self._state)
        recipe = self._stage.recipe
        self.plan = endings.planned(recipe.optim, len(self._train))
        trainer.log_every_n_steps = min(recipe.run.log_every, self.plan.steps)

    def train_dataloader(self) -> Any:
        return [] if self._train is None else self._train

    def val_dataloader(self) -> Any:
        return [] if self._validation is None else self._validation


def make_trainer(
    recipe: Recipe,
    io: AtomicCheckpoints,
    callbacks: list[Callback],
    run_loggers: list[Any],
    *,
    validates: bool,
) -> Trainer:
    """Return the Trainer of a recipe.

    Raises
    ------
    ConfigError
        Devices, nodes or a strategy that this machine does not have.
    """
    run = recipe.run
    optim = recipe.optim
    plugins: list[Any] = [io]
    if SLURMEnvironment.detect():
        plugins.append(SLURMEnvironment(auto_requeue=False))
    try:
        return Trainer(
            accelerator=run.accelerator,
            devices=run.devices,
            num_nodes=run.nodes,
            strategy=make_strategy(run),
            precision=run.precision,
            max_epochs=-1 if optim.max_steps > 0 else optim.epochs,
            max_steps=optim.max_steps,
            accumulate_grad_batches=optim.accumulate,
            log_every_n_steps=run.log_every,
            limit_val_batches=1.0 if validates else 0,
            num_sanity_val_steps=-1,  # the start is validated whole
            logger=run_loggers,
            callbacks=callbacks,
            plugins=plugins,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=recipe.out,
            check_val_every_n_epoch=NEVER,  # Validation runs it
        )
    except (ValueError, RuntimeError, MisconfigurationException) as error:
        raise ConfigError(f"run: {str(error).strip().splitlines()[0]}") from error


def _fit(
    trainer: Trainer, objective: LightningModule, data: LightningDataModule, last: Path | None
) -> None:
    try:
        trainer.fit(objective, datamodule=data, ckpt_path=last)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise OutputError(
            f"{trainer.default_root_dir} cannot be written ({error}); the last checkpoint is complete. Free some "
            "space, then use --resume."
        ) from error


def finish(
    stage: Stage[Any, Any],
    objective: Any,
    trainer: Trainer,
    ending: endings.Ending,
    validation: Validation,
) -> Path:
    """Write the best weights, or the last, as a checkpoint folder, with their provenance."""
    out = Path(stage.recipe.out)
    model = stage.model
    names = [name for name, part in objective.named_modules() if part is model.module]
    prefix = f"{names[0]}."
    weights = validation.best or out / LAST
    checkpoint = read_checkpoint(weights)  # complete on every strategy, unlike the module
    state = {}
    for name, tensor in checkpoint["state_dict"].items():
        if name.startswith(prefix):
            state[name.removeprefix(prefix)] = tensor
    model_class: Any = type(model)
    record = provenance(stage, trainer, ending, validation)
    trained = model_class(model.config, model.vocabulary, provenance=record)
    trained.module.load_state_dict(state)
    stage.finish(trained)
    folder: Path = trained.save_pretrained(out / MODEL, overwrite=True)
    return folder


def provenance(
    stage: Stage[Any, Any], trainer: Trainer, ending: endings.Ending, validation: Validation
) -> dict[str, Any]:
    """Return the provenance of trained weights, a flat dict for ``config.json`` and the model card.

    Held-out losses are those of the weights that are kept, training losses those of the last steps.
    """
    recipe = stage.recipe
    corpus = stage.corpus
    source = recipe.model
    init = getattr(source, "init", "random")
    initial = f"{init} weights, preset {source.preset}, seed {recipe.seed}"
    record: dict[str, Any] = {
        "weights": "trained",
        "stage": recipe.stage,
        **stage.describe(),
        "started from": source.checkpoint or initial,
        "corpus": Path(recipe.corpus).resolve().name,
        "corpus_sha256": corpus.content_hash(),
        **_data_record(stage),
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "ended by": ending.reason,
        **ending.kept_record(),
        "processes": trainer.world_size,
    }
    losses = {}
    for name, value in trainer.callback_metrics.items():
        if name.startswith(("train/", "val/")):
            losses[name] = float(value)
    losses.update(logs.final(Path(recipe.out) / LOGS / logs.CSV))
    if validation.best is not None:
        losses.update(validation.candidates.metrics)
    for name, loss in losses.items():
        record[name] = float(f"{loss:.6g}")
    record["git_revision"] = git_revision()
    record["terrazzo_version"] = __version__
    record["date"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    record["recipe"] = json.dumps(to_dict(recipe))
    if source.checkpoint and stage.model.provenance:
        record["before"] = json.dumps(stage.model.provenance)
    return record


def _data_record(stage: Stage[Any, Any]) -> dict[str, Any]:
    """Return the part of the provenance that is about the training data."""
    corpus = stage.corpus
    share = stage.recipe.data.share
    record: dict[str, Any] = {}
    sizes = corpus.manifest.set_index("id")["n_cells"]
    for split in ("train", "validation"):
        ids = stage.members(split) if corpus.ids(split) else []
        record[f"{split} slices"] = len(ids)
        record[f"{split} cells"] = int(sizes[ids].sum())
        if split == "train":
            record[TRAINED_ON] = " ".join(name_hash(name) for name in ids)
    if share < 1:
        record["share of slices"] = share
    known = shares_known(corpus, stage.model.vocabulary, corpus.ids("train"))
    record[COUNTS_KNOWN] = f"median {np.median(known):.1%}, least {known.min():.1%}"
    record[LEAST_DEPTH] = float(median_depths(corpus, stage.members("train")).min())
    for name in ("technology", "organism", "tissue"):
        values = {str(value) for value in corpus.manifest[name] if value}
        record[name] = ", ".join(sorted(values))
    return record


def git_revision() -> str:
    """Return the commit that this library is checked out at, with ``-dirty`` where files differ; else ``"unknown"``."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():  # installed: a repository around it would be another one
        return "unknown"
    command = ["git", "-C", str(root), "describe"]
    command += ["--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return result.stdout.strip()


class WholeInputs(FSDPPrecision):
    """FSDP's precision for weights and gradients, without conversion of batches.

    Lightning's own refuses frozen dataclasses, and rounds batches to bfloat16: distances and counts need all digits.
    """

    def convert_input(self, data: Any) -> Any:
        """Return the batch."""
        return data

    @property
    def mixed_precision_config(self) -> MixedPrecision:
        """Settings of FSDP; casting is left to autocast, which knows where it is safe."""
        return replace(super().mixed_precision_config, cast_root_forward_inputs=False)


def make_strategy(run: RunConfig) -> str | Strategy:
    """Return Lightning's strategy: one process, DDP, or FSDP."""
    if run.strategy == "fsdp":
        precision = WholeInputs(run.precision)
        return FSDPStrategy(state_dict_type="full", precision_plugin=precision)
    several = run.devices != 1 or run.nodes > 1  # devices -1: all of the machine
    if run.strategy == "ddp" or several:
        # unused: a frozen encoder, a part of the loss whose weight is 0
        return DDPStrategy(find_unused_parameters=True)
    return "auto"


@contextmanager
def own_streams() -> Iterator[None]:
    """Restore the caller's random streams at the end."""
    before = random_state()
    try:
        yield
    finally:
        set_random_state(before)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Lightning's messages, and its advice that does not apply; errors and other warnings are shown."""
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


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise an interrupt of a Trainer as KeyboardInterrupt, and restore the signal handlers.

    Raises
    ------
    KeyboardInterrupt
        In place of Lightning's SystemExit.
    """
    handlers: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():  # no other thread may set handlers
        for number in (signal.SIGINT, signal.SIGTERM):
            handlers[number] = signal.getsignal(number)
    try:
        yield
    except SystemExit as stop:
        raise KeyboardInterrupt from stop
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
