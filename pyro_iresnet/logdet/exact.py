"""The exact log-determinant, from the dense Jacobian."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .._torch import is_tracing
from ..operators import Linearization
from ..operators.perceptron import LARGEST
from .base import LogDet, refuse_call
from .series import LogOnePlus, Series


@dataclass(frozen=True)
class Exact(LogDet):
    r"""``log|det dy/dx|`` from the dense Jacobian: no variance, no bias, repeatable.

    :math:`\log|\det(I + J)|` for a residual block. The formula is closed for matrices of side 1 and
    2, and takes LU factors above. The side is D, or the width k of the narrowest hidden layer
    if k is smaller, by Sylvester's identity :math:`\det(I_D + L R) = \det(I_k + R L)`. The cost is
    as many products with J, in one batched pass from the cheaper side, and a factorisation. Large
    batches are taken in parts, so that the memory of an evaluation stays bounded. Differentiable to
    any order.

    References:
        Invertible Residual Networks (Behrmann et al., 2019), Section 3, for the positive sign.

    Example:
        >>> import torch
        >>> from pyro_iresnet import DenseContraction
        >>> g = DenseContraction(2)
        >>> Exact()(g.linearize(torch.zeros(5, 2)), lipschitz=g.lipschitz).shape
        torch.Size([5])
    """

    def __call__(
        self,
        linearization: Linearization,
        *,
        lipschitz: float,
        series: Series = LogOnePlus(),  # noqa: B008  (frozen, so safe to share)
    ) -> Tensor:
        if not (isinstance(linearization, Linearization) and isinstance(series, Series)):
            refuse_call(linearization, series)
        batch = linearization.batch_shape
        size = linearization.event_size
        at_once = max(1, LARGEST // (size * max(size, *linearization.jacobian.widths(), 1)))
        if batch.numel() <= at_once or is_tracing():
            return series.log_det(linearization.narrowed_matrix())

        def of_rows(rows: Tensor) -> Tensor:
            # The matrices of a part are freed before the next part is taken.
            return series.log_det(linearization.select(rows).narrowed_matrix())

        rows = torch.arange(batch.numel(), device=linearization.value.device)
        return torch.cat([of_rows(part) for part in rows.split(at_once)]).reshape(batch)
