"""Training of a flow on the rows of a table."""

import contextlib
import logging
import math
import signal
import threading
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast

import lightning
import matplotlib.pyplot as plt
import numpy as np
import torch
from lightning.pytorch.callbacks import (
    Callback,
    ModelCheckpoint,
    RichProgressBar,
)
from torch import nn

from ..blocks import pack_blocks
from ..errors import ArgumentError
from ..norms import Cholesky
from ..options import BlockOptions
from ..training import FlowModule, NonFiniteLossError, TenthAverage
from ..training.non_finite import remedy
from .cells import some
from .columns import check_mapping
from .data import RandomBatches, TableBatches

# The least rows for each column without more damping.
FEW_ROWS = 100
# Steps between two checks of the held-out rows, at least and at most.
OFTEN, SELDOM = 20, 500
# Steps without a better score that every training may take.
LEAST_PATIENCE = 200
CLIP = 10.0
# Rows from which ActNorms start.
START = 2000
# The prefix of the parameters of the flow in a checkpoint of FlowModule.
PREFIX = "parts.0."


def checks_of(rows: int, batch_size: int, max_steps: int) -> tuple[int, int]:
    """Return the number of checks, and the steps between two: about a pass through the rows."""
    between = min(max(rows // batch_size, OFTEN), SELDOM)
    checks = max(1, max_steps // between)
    return checks, max_steps // checks


def check_trainer(options: Mapping[str, Any] | None) -> None:
    """Raise unless options of ``lightning.Trainer`` leave the checkpoints on."""
    check_mapping(options, "trainer", "{'devices': 1}")
    options = options or {}
    if options.get("enable_checkpointing") is False or options.get("barebones"):
        raise ArgumentError(
            "Expected trainer to leave checkpoints on, which keep the best weights; got "
            f"{dict(options)!r}. Leave enable_checkpointing and barebones out."
        )


def is_small(rows: int, dim: int) -> bool:
    """Return True for a table that a flow without more damping would learn by heart."""
    return rows < FEW_ROWS * dim


def options_for(*, small: bool) -> BlockOptions:
    """Return the options for a table: more damping and no learned scale in a small one."""
    return BlockOptions(norm=Cholesky(damping=1.0), coordinates=None) if small else BlockOptions()


@dataclass
class History(Callback):
    """Course of a training.

    Arguments:
        slope: the mean of log |dz/dx| of the held-out rows, nats, which losses of the flow lack.
        steps: the steps at which the held-out rows were scored.
        train, validation: the losses, nats in the units of the table; of training the last batch.
        train_slope: as ``slope``, of rows of the training.
    """

    slope: float
    steps: list[int] = field(default_factory=list)
    train: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    train_slope: float = math.nan

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Keep the losses of a check."""
        self.steps.append(trainer.global_step)
        self.train.append(float(trainer.callback_metrics["train_loss"]) - self.train_slope)
        self.validation.append(float(trainer.callback_metrics["val_loss"]) - self.slope)

    def to_plain(self) -> dict[str, Any]:
        """Return the fields as plain types."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def plot(self, ax: Any = None) -> Any:
        """Draw both losses against the steps."""
        if ax is None:
            _, ax = plt.subplots()
        ax.plot(self.steps, self.train, label="training")
        ax.plot(self.steps, self.validation, label="held out")
        best = int(np.argmin(self.validation))
        ax.plot(self.steps[best], self.validation[best], "o", label="kept")
        ax.set(xlabel="step", ylabel="loss, nats a row")
        ax.legend()
        return ax


class Patience(Callback):
    """Stop when the best score lies too far back, in proportion to the steps before.

    Arguments:
        share: the steps without a better score, over the steps before the best.
    """

    def __init__(self, share: float) -> None:
        self.share, self.best, self.best_step = share, math.inf, 0

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Compare the score with the best."""
        score, step = float(trainer.callback_metrics["val_loss"]), trainer.global_step
        if score < self.best:
            self.best, self.best_step = score, step
        waited = step - self.best_step
        trainer.should_stop |= waited > LEAST_PATIENCE + self.share * self.best_step


def train(
    flow: nn.Module,
    batches: RandomBatches,
    held_out: np.ndarray,
    *,
    checks: int,
    learning_rate: float,
    patience: float,
    options: dict[str, Any],
    progress: bool,
    folder: Path,
) -> History:
    """Train a flow, keep the best average of its weights, and return the course.

    Arguments:
        flow: the flow, trained in place.
        batches: the batches of an epoch, which ends with a check.
        held_out: the positions of the rows of the check.
        checks: the most checks.
        learning_rate, patience, progress: as in :class:`DensityEstimator`.
        options: of the trainer, over those of here.
        folder: an empty folder for checkpoints.
    """
    start = torch.randint(len(batches.where), (min(len(batches.where), START),)).numpy()
    with torch.no_grad():
        # ActNorms start from many rows.
        cast(Any, flow).log_prob(*batches.batch(np.sort(batches.where[start])))
    checked = TableBatches(batches, held_out)
    history = History(checked.slope, train_slope=checked.train_slope)
    best = ModelCheckpoint(
        folder / "checkpoints", "best", monitor="val_loss", save_weights_only=True
    )
    shown = [RichProgressBar()] if progress else []
    callbacks = [TenthAverage(), history, best, Patience(patience), *shown]
    settings = {
        "accelerator": "cpu",
        "max_epochs": checks,
        "gradient_clip_val": CLIP,
        "logger": False,
        "num_sanity_val_steps": 0,
        "enable_model_summary": False,
        "enable_progress_bar": progress,
        "log_every_n_steps": batches.count,
        "default_root_dir": folder,
        **options,
        "callbacks": [*callbacks, *_listed(options.get("callbacks"))],
    }
    pack_blocks(flow)
    module = FlowModule(flow, learning_rate=learning_rate)
    with _in_silence():
        trainer = lightning.Trainer(**settings)
        with _interruptible(trainer), _rows_of(batches):
            trainer.fit(module, checked)
    if not best.best_model_path:
        raise ArgumentError(
            "Expected training to reach its first check of the held-out rows; it ended before. "
            "Call fit again, with max_steps and trainer options that reach one."
        )
    kept = torch.load(best.best_model_path, map_location="cpu", weights_only=True)["state_dict"]
    flow.load_state_dict({name.removeprefix(PREFIX): v for name, v in kept.items()})
    # The first process removes the folder, so it waits for the others.
    trainer.strategy.barrier()
    return history


def _listed(callbacks: Any) -> list[Callback]:
    """Return callbacks, one or several or None, as a list."""
    return [callbacks] if isinstance(callbacks, Callback) else list(callbacks or ())


@contextlib.contextmanager
def _in_silence() -> Iterator[None]:
    """Keep Lightning from advice on devices and workers."""
    log = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "(?s).*(num_workers|GPU available|treespec)")
            yield
    finally:
        log.setLevel(level)


@contextlib.contextmanager
def _rows_of(batches: RandomBatches) -> Iterator[None]:
    """Name the rows of the table in the error of a loss that is not finite."""
    try:
        yield
    except NonFiniteLossError as error:
        rows = [int(row) for row in batches.drawn[error.rows] + 1]
        told = f"; its rows of the table, counted from 1, are {some(rows)}" if rows else ""
        raise NonFiniteLossError(
            f"Expected a finite loss; got one that is not at step {error.step}{told}. "
            f"{remedy(rows, 'learning_rate')}",
            error.step,
            rows,
        ) from error


@contextlib.contextmanager
def _interruptible(trainer: lightning.Trainer) -> Iterator[None]:
    """Return from a training that Ctrl-C stops, where Lightning would leave the process."""
    handler = signal.getsignal(signal.SIGINT)
    is_main = threading.current_thread() is threading.main_thread()
    try:
        yield
    except SystemExit:
        if not trainer.interrupted:
            raise
    finally:
        # Lightning ignores further Ctrl-C from the first one on; only the main thread may mend it.
        if is_main:
            signal.signal(signal.SIGINT, handler)
