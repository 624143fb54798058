"""Control variates: one matrix for a batch, so that a random series estimates the rest alone."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from .._torch import COARSE
from ..operators import Linearization
from .series import Series


@dataclass(frozen=True)
class ControlVariate(ABC):
    r"""A matrix :math:`\bar J`, one for the whole batch, around which the series is expanded.

    .. math:: \mathrm{tr} f(J) = \mathrm{tr} f(\bar J)
              + \mathrm{tr}\big(f'(\bar J)\, (J - \bar J)\big) + \text{rest}

    The first two parts are exact and cheap. A random series estimates the rest: the series of ``J``
    and the series of :math:`\bar J` run on the same probes. The estimate is unbiased for every
    :math:`\bar J` that does not depend on the probes. A matrix near the Jacobians of the batch
    leaves a small variance. To write one, define :meth:`matrix`.

    Example:
        >>> import torch
        >>> from dataclasses import dataclass
        >>> from pyro_iresnet import Roulette, iresnet
        >>> from pyro_iresnet.logdet import ControlVariate
        >>> @dataclass(frozen=True)
        ... class FirstSample(ControlVariate):
        ...     def matrix(self, linearization):
        ...         return linearization.as_matrix()[0]
        >>> transform = iresnet(20, logdet=Roulette(control_variate=FirstSample()))
        >>> x = torch.randn(5, 20)
        >>> transform.log_abs_det_jacobian(x, transform(x)).shape
        torch.Size([5])
    """

    @abstractmethod
    def matrix(self, linearization: Linearization) -> Tensor | None:
        """Return the matrix, shape ``(D, D)``, with norm below 1; None for an expansion at 0."""


@dataclass(frozen=True)
class MeanJacobian(ControlVariate):
    r"""The Jacobian with the batch's mean slopes, :math:`W_n \bar S_{n-1} \cdots \bar S_1 W_1`.

    The norm is at most the product of the norms of the weights, so the series converges. A few
    products of matrices serve a whole batch. The matrix exists for maps of vectors with a
    linearization in closed form that knows its trace. Other maps have the plain series.

    Example:
        >>> import torch
        >>> from pyro_iresnet import DenseContraction
        >>> from pyro_iresnet.logdet import MeanJacobian
        >>> MeanJacobian().matrix(DenseContraction(3).linearize(torch.zeros(5, 3))).shape
        torch.Size([3, 3])
    """

    def matrix(self, linearization: Linearization) -> Tensor | None:
        if linearization.event_dim != 1 or linearization.batch_shape.numel() == 0:
            return None
        mean = linearization.jacobian.mean()
        # A NaN sample fails alone: the other samples are then expanded at 0.
        return None if mean is None else torch.where(mean.isfinite().all(), mean, 0.0)


@dataclass(frozen=True)
class Expansion:
    """The exact part of a log-determinant, and the matrix to expand at, or None for 0.

    The exact part has no draws, is differentiable and of shape ``(*batch,)``; None if not even the
    trace of ``J`` is known.
    """

    exact: Tensor | None
    matrix: Tensor | None

    @classmethod
    def of(
        cls, linearization: Linearization, control_variate: ControlVariate | None, series: Series
    ) -> "Expansion":
        """Expand the series of a linearization at the matrix of a control variate."""
        with torch.no_grad():
            matrix = None if control_variate is None else control_variate.matrix(linearization)
        if matrix is None:
            trace = linearization.trace()
            return cls(None if trace is None else series.coefficient(1) * trace, None)
        with torch.no_grad():
            # The one place that expands, so a series needs no care for half precision.
            precise = matrix.float() if matrix.dtype in COARSE else matrix
            value, slope = [found.to(matrix.dtype) for found in series.expand(precise)]
            constant = value - (slope * matrix.T).sum()
        trace = linearization.trace(slope)
        return cls(None, None) if trace is None else cls(trace + constant, matrix)
