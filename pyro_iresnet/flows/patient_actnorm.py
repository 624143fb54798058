"""ActNorm for nflows that waits for enough rows."""

from nflows.transforms import ActNorm
from torch import Tensor

from .actnorm import ENOUGH_ROWS, standardisation


class PatientActNorm(ActNorm):
    """nflows' ``ActNorm``, started from the first batch in train mode that has enough rows.

    nflows' own starts from any first batch. With two rows, which some trainers send through to
    look at shapes, its scales are huge, and so are the losses that follow. This one stays the
    identity until a batch of 16 rows or more comes; where its parameters have been trained or
    loaded by then, they are kept. A constant coordinate keeps scale 1.

    Arguments:
        features: the number of coordinates, or of channels of images.

    References:
        Glow: Generative Flow with Invertible 1x1 Convolutions (Kingma and Dhariwal, 2018).

    Example:
        >>> import torch
        >>> from pyro_iresnet.flows import PatientActNorm
        >>> norm = PatientActNorm(2)
        >>> x = 3 + 2 * torch.randn(100, 2)
        >>> bool((norm(x[:2])[0] == x[:2]).all())
        True
        >>> torch.allclose(norm(x)[0].std(0), torch.ones(2), atol=1e-4)
        True
    """

    def _initialize(self, inputs: Tensor) -> None:
        rows = inputs.detach().movedim(1, -1).reshape(-1, inputs.shape[1])
        moved = bool(self.log_scale.detach().any() or self.shift.detach().any())
        if not moved and len(rows) < ENOUGH_ROWS:
            return
        self.get_buffer("initialized").fill_(True)
        if not moved:
            log_scale, shift = standardisation(rows)
            self.log_scale.data.copy_(log_scale)
            self.shift.data.copy_(shift)
