"""Steps that stop at a loss that is not finite."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor

from ..errors import IResNetError


class NonFiniteLossError(IResNetError, RuntimeError):
    """A training loss is NaN or infinite.

    Arguments:
        message: the reason and the remedy.
        step: the number of optimiser steps before.
        rows: the positions in the batch at which the log-density is not finite; empty if the loss
            has no rows.
        path: the file with ``step`` and ``rows`` as JSON; None if none was written.
    """

    def __init__(
        self, message: str, step: int = 0, rows: Sequence[int] = (), path: Path | None = None
    ) -> None:
        super().__init__(message)
        self.step, self.rows, self.path = step, list(rows), path


def check_loss(module: lightning.LightningModule, loss: Tensor, rows: Tensor | None) -> None:
    """Raise :class:`NonFiniteLossError` unless the loss is finite on this process.

    Arguments:
        module: the module in training.
        loss: the loss, a scalar.
        rows: the log-density of each row of the batch, or None.
    """
    if bool(torch.isfinite(loss)):
        return
    bad = [] if rows is None else torch.nonzero(~torch.isfinite(rows.detach())).flatten().tolist()
    step, path = module.global_step, None
    trainer = module.trainer
    if trainer.default_root_dir and (trainer.loggers or trainer.checkpoint_callback):
        path = (
            Path(trainer.default_root_dir)
            / f"non_finite_step_{step}_rank_{module.global_rank}.json"
        )
        path.write_text(json.dumps({"step": step, "rows": bad}) + "\n")
    where = f"; the rows of the batch are {bad[:10]}" if bad else ""
    kept: Any = trainer.checkpoint_callback
    kept = kept and (kept.last_model_path or kept.best_model_path)
    raise NonFiniteLossError(
        f"Expected a finite loss; got {float(loss.detach())} at step {step}{where}. "
        f"{remedy(bad, 'learning rate')}{f' The checkpoint {kept} is of before.' * bool(kept)}",
        step,
        bad,
        path,
    )


def remedy(rows: Sequence[int], learning_rate: str) -> str:
    """Return what to do about a loss that is not finite, at rows that are known or not."""
    return f"{'Look at these rows, or take' if rows else 'Take'} a smaller {learning_rate}."
