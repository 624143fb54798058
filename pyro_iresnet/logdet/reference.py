"""Where the log-determinant is expanded: what a random series has to estimate is only the rest."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ..linearization import Linearization


@dataclass(frozen=True)
class Reference(ABC):
    r"""A matrix :math:`\bar J`, one for the whole batch, around which the series is expanded.

    .. math:: \log\det(I + J) = \log\det(I + \bar J)
              + \mathrm{tr}\big((I + \bar J)^{-1} (J - \bar J)\big) + \text{rest}

    The first two parts are exact and cheap; only the rest is sampled, by running the series of
    ``J`` and that of :math:`\bar J` on the same probes. Unbiased for every :math:`\bar J` that does
    not depend on the probes; the nearer to the Jacobians of the batch, the smaller the variance.

    To write one, define :meth:`matrix`.

    Example:
        >>> import torch
        >>> from dataclasses import dataclass
        >>> from pyro_iresnet import Reference, Roulette, iresnet
        >>> @dataclass(frozen=True)
        ... class FirstSample(Reference):
        ...     def matrix(self, linearization):
        ...         return linearization.as_matrix()[0]
        >>> transform = iresnet(20, logdet=Roulette(reference=FirstSample()))
        >>> x = torch.randn(5, 20)
        >>> transform.log_abs_det_jacobian(x, transform(x)).shape
        torch.Size([5])
    """

    @abstractmethod
    def matrix(self, linearization: Linearization) -> Tensor | None:
        """``J`` for the whole batch, shape ``(D, D)``, with norm below 1; None for the matrix 0."""


@dataclass(frozen=True)
class Zero(Reference):
    """No reference: the plain series, with its first term exact.

    Example:
        >>> from pyro_iresnet import Roulette, Zero
        >>> logdet = Roulette(reference=Zero())
    """

    def matrix(self, linearization: Linearization) -> None:
        return None


@dataclass(frozen=True)
class MeanJacobian(Reference):
    r"""The Jacobian with the batch's mean slopes, :math:`W_n \bar S_{n-1} \cdots \bar S_1 W_1`.

    Its norm is at most the product of those of the weights, so the series converges. It costs a
    few products of matrices for a whole batch. For maps of vectors whose linearization is in closed
    form and knows its trace; elsewhere there is none, and the series is the plain one.

    Example:
        >>> import torch
        >>> from pyro_iresnet import DenseContraction, MeanJacobian
        >>> MeanJacobian().matrix(DenseContraction(3).linearize(torch.zeros(5, 3))).shape
        torch.Size([3, 3])
    """

    def matrix(self, linearization: Linearization) -> Tensor | None:
        if linearization.event_dim != 1 or linearization.batch_shape.numel() == 0:
            return None
        mean = linearization.jacobian.mean()
        # A sample that is not a number fails alone: the others are expanded at 0 then.
        return None if mean is None else torch.where(mean.isfinite().all(), mean, 0.0)


@dataclass(frozen=True)
class Expansion:
    """The exact part of the log-determinant, and what the rest has to be measured from.

    Arguments:
        exact: the part that is not sampled, differentiable, shape ``(*batch,)``; None if nothing
            is known, not even the trace of ``J``.
        reference: the matrix, or None for 0.
    """

    exact: Tensor | None
    reference: Tensor | None

    @classmethod
    def of(cls, linearization: Linearization, reference: Reference) -> "Expansion":
        with torch.no_grad():
            matrix = reference.matrix(linearization)
        if matrix is None:
            return cls(linearization.trace(), None)
        with torch.no_grad():
            eye = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
            factors, pivots = torch.linalg.lu_factor(eye + matrix)
            inverse = torch.linalg.lu_solve(factors, pivots, eye)
            constant = factors.diagonal().abs().log().sum() - (inverse * matrix.T).sum()
        trace = linearization.trace(inverse)
        return cls(None, None) if trace is None else cls(trace + constant, matrix)
