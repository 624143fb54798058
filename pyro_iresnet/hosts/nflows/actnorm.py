"""ActNorm for nflows that waits for enough rows."""

import math

from nflows.transforms import Transform
from torch import Tensor

from ..._torch import unrounded
from ...errors import ArgumentError, check_dense, check_positive_int, check_tensor
from ..data_dependent_init import DataDependentInit


class PatientActNorm(DataDependentInit, Transform):
    """nflows' ``ActNorm``, started from the first batch in train mode that has enough rows.

    nflows' own starts from any first batch. After two rows, which some trainers send through to
    look at shapes, the scales are huge, and so are the losses that follow. This class stays the
    identity until a batch with 16 finite rows, or 16 images, comes. A constant coordinate keeps
    scale 1. Parameters that are not 0 by then are kept: those of a load, and those that training
    with smaller batches has moved, which a warning reports.

    Inside ``DistributedDataParallel`` the rows of all ranks count together, as in
    ``SyncBatchNorm``. Elsewhere each process starts from its own rows: if you average gradients by
    yourself, call once on data before, and broadcast the parameters. Inside ``nn.DataParallel``,
    under torch.func and for a replaced parameter (``torch.func.functional_call``) nothing starts. A
    state dict of nflows' ``ActNorm`` loads.

    Arguments:
        features: the number of coordinates, or of channels of images.

    Raises:
        ArgumentError, ArgumentTypeError: ``features`` is not an integer of at least 1; in a call
            also inputs of another shape, dtype or device.
        TracingError: ``torch.jit.trace`` before the start, in train mode.

    References:
        Glow: Generative Flow with Invertible 1x1 Convolutions (Kingma and Dhariwal, 2018).

    Example:
        >>> import torch
        >>> from pyro_iresnet.hosts.nflows import PatientActNorm
        >>> norm = PatientActNorm(2)
        >>> x = 3 + 2 * torch.randn(100, 2)
        >>> bool((norm(x[:2])[0] == x[:2]).all())
        True
        >>> torch.allclose(norm(x)[0].std(0), torch.ones(2), atol=1e-4)
        True
    """

    def __init__(self, features: int) -> None:
        super().__init__(check_positive_int(features, "features"))

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Scale and shift the inputs, without the context; return them with ``log|det|``.

        ``inputs`` have the shape ``(batch, features)`` or ``(batch, channels, height, width)``.
        Another shape, dtype or device raises :class:`ArgumentError` or :class:`ArgumentTypeError`.
        """
        inputs = self._checked(inputs)
        self.start_from(inputs, dim=1)
        log_scale, shift = self._broadcastable(inputs)
        return inputs * log_scale.exp() + shift, self._logabsdet(inputs)

    def inverse(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, inputs: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Undo :meth:`forward`, and return the result with its ``log|det|``."""
        inputs = self._checked(inputs)
        log_scale, shift = self._broadcastable(inputs)
        return (inputs - shift) * (-log_scale).exp(), -self._logabsdet(inputs)

    def _checked(self, inputs: Tensor) -> Tensor:
        check_dense(inputs, "inputs")
        log_scale = self.log_scale
        inputs = unrounded(inputs, log_scale)
        features = len(log_scale)
        shape = (features,) if inputs.ndim == 2 else (features, -1, -1)
        if inputs.ndim not in (2, 4):
            raise ArgumentError(
                f"Expected inputs of shape (batch, {features}) or (batch, {features}, height, "
                f"width); got {tuple(inputs.shape)}."
            )
        check_tensor(inputs, shape, log_scale, "inputs")
        return inputs

    def _broadcastable(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        shape = (-1,) + (1,) * (inputs.ndim - 2)
        return self.log_scale.view(shape), self.shift.view(shape)

    def _logabsdet(self, inputs: Tensor) -> Tensor:
        return (math.prod(inputs.shape[2:]) * self.log_scale.sum()).expand(len(inputs))
