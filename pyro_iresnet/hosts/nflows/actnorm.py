"""ActNorm for nflows that waits for enough rows."""

import math
import warnings

import torch
from nflows.transforms import ActNorm
from torch import Tensor, nn

from ..._torch import disable_compiler, in_torch_func
from ...errors import ArgumentError, check_dense, check_positive_int, check_tensor
from ..data_dependent_init import ENOUGH_ROWS, DataDependentInit


class PatientActNorm(DataDependentInit, ActNorm):
    """nflows' ``ActNorm``, started from the first batch in train mode that has enough rows.

    nflows' own starts from any first batch. After two rows, which some trainers send through to
    look at shapes, the scales are huge, and so are the losses that follow. This class stays the
    identity until a batch with 16 finite rows or more comes. A constant coordinate keeps scale 1.
    If training has changed the parameters by then, as happens with smaller batches, they are kept,
    and a warning says so. A replaced parameter (``torch.func.functional_call``) and a transform of
    torch.func never start the class.

    Arguments:
        features: the number of coordinates, or of channels of images.

    Raises:
        ArgumentError, ArgumentTypeError: ``features`` is no integer of at least 1; in a call
            also inputs of another shape, dtype or device.

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
        self._check(inputs)
        if self.training and not in_torch_func() and not self.has_started():
            self._start(inputs.detach())
        scale, shift = self._broadcastable_scale_shift(inputs)
        return scale * inputs + shift, self._logabsdet(inputs)

    def inverse(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, inputs: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Undo :meth:`forward`, and return the result with its ``log|det|``."""
        self._check(inputs)
        scale, shift = self._broadcastable_scale_shift(inputs)
        return (inputs - shift) / scale, -self._logabsdet(inputs)

    def _check(self, inputs: Tensor) -> None:
        check_dense(inputs, "inputs")
        features = len(self.log_scale)
        shape = (features,) if inputs.ndim == 2 else (features, -1, -1)
        if inputs.ndim not in (2, 4):
            raise ArgumentError(
                f"Expected inputs of shape (batch, {features}) or (batch, {features}, height, "
                f"width); got {tuple(inputs.shape)}."
            )
        check_tensor(inputs, shape, self.log_scale, "inputs")

    def _logabsdet(self, inputs: Tensor) -> Tensor:
        return (math.prod(inputs.shape[2:]) * self.log_scale.sum()).expand(len(inputs))

    @disable_compiler("ActNorm starts from the data of a first call: make that call uncompiled")
    @torch.no_grad()
    def _start(self, inputs: Tensor) -> None:
        # A parameter of functional_call would be lost after the call, and the start with it.
        if bool(self.initialized) or not isinstance(self.log_scale, nn.Parameter):
            return
        if bool(self.log_scale.any() or self.shift.any()):
            warnings.warn(
                f"PatientActNorm was trained before a batch of {ENOUGH_ROWS} rows came, so it does "
                f"not start from data. Train with batches of {ENOUGH_ROWS} rows or more, or call "
                "the flow once on more rows, in train mode, before the first step.",
                stacklevel=2,
            )
            self.settle()
        elif self.standardise(inputs.movedim(1, -1).reshape(-1, len(self.log_scale))):
            self.settle()
