"""Start of an affine map of each coordinate from the data of its first batch."""

import torch
from torch import Tensor, nn

from .._torch import is_compiling

ENOUGH_ROWS = 16


class DataDependentInit(nn.Module):
    """Base class of an affine map that starts from data.

    Attributes:
        log_scale, shift: the parameters.
        initialized: a buffer, True once the start is decided.
    """

    log_scale: Tensor
    shift: Tensor
    initialized: Tensor
    # The last known value of the buffer, for a compiler, which cannot look at the buffer.
    _seen_started = False

    def has_started(self) -> bool:
        """Return True if the start is decided, as far as can be known here."""
        if self.initialized.is_meta:
            # Without values there is nothing to start from.
            return True
        if not is_compiling():
            self._seen_started = bool(self.initialized)
        return self._seen_started

    @torch.no_grad()
    def standardise(self, rows: Tensor) -> bool:
        """Give columns mean 0 and deviation 1, and return True, if there are enough finite rows.

        Of two standard normal points the deviation is below a tenth in one case of nine, so few
        rows do not tell a scale.
        """
        rows = rows[rows.isfinite().all(1)]
        if len(rows) < ENOUGH_ROWS:
            return False
        log_scale, shift = standardisation(rows)
        self.log_scale.copy_(log_scale)
        self.shift.copy_(shift)
        return True

    @torch.no_grad()
    def settle(self) -> None:
        """Decide the start: from here on only training changes the parameters."""
        self.initialized.fill_(True)
        self._seen_started = True


def standardisation(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``log_scale`` and ``shift`` that give columns mean 0 and standard deviation 1."""
    mean, std = rows.mean(0), rows.std(0)
    # A coordinate without spread, or one whose squares overflow, has no scale to take.
    rounding = 64 * torch.finfo(rows.dtype).eps * rows.abs().amax(0)
    usable = (std > rounding) & std.isfinite()
    scale = torch.where(usable, std, 1.0)
    return -scale.log(), torch.where(mean.isfinite(), -mean / scale, 0.0)
