"""Steps that stop at a loss that is not finite."""

from collections.abc import Sequence
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
    """

    def __init__(self, message: str, step: int = 0, rows: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.step, self.rows = step, list(rows)


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
    step = module.global_step
    where = f"; the rows of the batch are {bad[:10]}" if bad else ""
    kept: Any = module.trainer.checkpoint_callback
    kept = kept and (kept.last_model_path or kept.best_model_path)
    raise NonFiniteLossError(
        f"Expected a finite loss; got {float(loss.detach())} at step {step}{where}. "
        f"{remedy(bad, 'learning rate')}{f' The checkpoint {kept} is of before.' * bool(kept)}",
        step,
        bad,
    )


def remedy(rows: Sequence[int], learning_rate: str) -> str:
    """Return what to do about a loss that is not finite, at rows that are known or not."""
    return f"{'Look at these rows, or take' if rows else 'Take'} a smaller {learning_rate}."
