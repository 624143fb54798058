"""What an affine map of each coordinate needs to take its start from data."""

import torch
from torch import Tensor, nn

from ..torch_modes import is_compiling

ENOUGH_ROWS = 16


class StartsFromData(nn.Module):
    """Holds ``log_scale``, ``shift``, and ``initialized``: whether the start has been decided."""

    log_scale: Tensor
    shift: Tensor
    initialized: Tensor
    # What a compiler may know of the buffer, whose value it cannot look at.
    _seen_started = False

    def has_started(self) -> bool:
        """Whether the start has been decided, as far as can be known here."""
        if not is_compiling():
            self._seen_started = bool(self.initialized)
        return self._seen_started

    @torch.no_grad()
    def standardise(self, rows: Tensor) -> bool:
        """Give each column mean 0 and standard deviation 1, if there are enough finite rows.

        Returns:
            Whether there were: of two standard normal points the deviation is below a tenth in one
            case of nine, so fewer rows do not tell a scale.
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
        """From here on only training changes it."""
        self.initialized.fill_(True)
        self._seen_started = True


def standardisation(rows: Tensor) -> tuple[Tensor, Tensor]:
    """``log_scale`` and ``shift`` that give each column mean 0 and standard deviation 1."""
    mean, std = rows.mean(0), rows.std(0)
    # A coordinate without spread, or one whose squares overflow, has no scale to take.
    rounding = 64 * torch.finfo(rows.dtype).eps * rows.abs().amax(0)
    usable = (std > rounding) & std.isfinite()
    scale = torch.where(usable, std, 1.0)
    return -scale.log(), torch.where(mean.isfinite(), -mean / scale, 0.0)
