r"""The power series of the log-determinant with fixed probes: cut, or taken to convergence.

.. math:: \log\det(I + J) = \mathrm{tr}\log(I + J)
          = \sum_{k=1}^\infty \frac{(-1)^{k-1}}{k}\,\mathrm{tr}(J^k)

(reading report Eq. 18-21; Behrmann et al. 2019, Eq. 4), each trace as ``E[u^T J^k u]`` (Eq. 22-24).
"""

import math
from dataclasses import dataclass

from torch import Tensor

from ..counter import fixed_signs
from ..errors import (
    ContractionError,
    check_int,
    check_lipschitz,
    check_positive,
    check_positive_int,
)
from ..linearization import Linearization
from ..torch_modes import disable_compiler, refuse_transforms
from .base import LogDet


@dataclass(frozen=True)
class PowerSeries(LogDet):
    r"""The series cut after a fixed number of terms, with fixed probes: deterministic, and biased.

    .. math:: \mathrm{tr} J + \sum_{k=2}^{n} \frac{(-1)^{k-1}}{k}\, u^\top J^k u

    The first trace is exact where the linearization knows it. The probes are the same for every
    sample and every call, a function of the seed alone, so the value is a smooth function of
    ``x`` and its gradient is the derivative of that value, as HMC needs. Memory grows with the
    terms. Reading report Eq. 21-24; the cut is off by at most :meth:`truncation_error`.

    Arguments:
        terms: ``n``, at least 1.
        probes: how many ``u`` to average over, at least 1.
        seed: decides the probes.

    Raises:
        ArgumentError, ArgumentTypeError: an argument out of range or no integer.

    Example:
        >>> import torch
        >>> from pyro_iresnet import DenseContraction
        >>> g = DenseContraction(20)
        >>> PowerSeries(terms=8)(g.linearize(torch.zeros(5, 20)), lipschitz=g.lipschitz).shape
        torch.Size([5])
    """

    terms: int = 10
    probes: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        check_positive_int(self.terms, "terms")
        check_positive_int(self.probes, "probes")
        check_int(self.seed, "seed")

    def __call__(self, linearization: Linearization, *, lipschitz: float) -> Tensor:
        trace = linearization.trace()
        if trace is not None and self.terms == 1:
            return trace
        u = _probes(linearization, self.probes, self.seed)
        total = linearization.value.new_zeros(()) if trace is None else trace
        v = u
        for k in range(1, self.terms + 1):
            v = linearization.vm(v)
            if k > 1 or trace is None:
                total = total + _term(linearization, k, u, v)
        return total.expand(linearization.batch_shape)

    def with_seed(self, seed: int) -> "PowerSeries":
        return PowerSeries(self.terms, self.probes, seed)

    def truncation_error(self, lipschitz: float, event_size: int) -> float:
        r"""The bound :math:`D \sum_{k>n} L^k / k \le D L^{n+1} / ((n+1)(1-L))` of the cut, nats."""
        n = self.terms + 1
        return event_size * lipschitz**n / (n * (1 - lipschitz))


@dataclass(frozen=True)
class ConvergedSeries(LogDet):
    r"""The series with fixed probes, to a certified error of the cut: deterministic.

    As :class:`PowerSeries`, with as many terms as it takes. After n terms the rest is at most

    .. math:: \frac{L}{(n + 1)(1 - L)}\, \lVert u \rVert\, \lVert (J^\top)^n u \rVert

    for each probe, and the series ends when that is below the tolerance for every sample. What is
    left is the noise of the probes, which :func:`logdet_with_error` states. For evaluation in more
    dimensions than :class:`Exact` can afford.

    Arguments:
        tolerance: of the cut, in nats, above 0.
        probes: how many ``u`` to average over, at least 1.
        seed: decides the probes.

    Raises:
        ContractionError: the series does not converge, since the Jacobian exceeds ``lipschitz``.

    Example:
        >>> import torch
        >>> from pyro_iresnet import DenseContraction
        >>> g = DenseContraction(20)
        >>> ConvergedSeries(1e-3)(g.linearize(torch.zeros(5, 20)), lipschitz=g.lipschitz).shape
        torch.Size([5])
    """

    tolerance: float = 1e-3
    probes: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        check_positive(self.tolerance, "tolerance")
        check_positive_int(self.probes, "probes")
        check_int(self.seed, "seed")

    @disable_compiler("its number of terms depends on the data")
    def __call__(self, linearization: Linearization, *, lipschitz: float) -> Tensor:
        refuse_transforms("ConvergedSeries", linearization.value)
        check_lipschitz(lipschitz)
        trace = linearization.trace()
        u = _probes(linearization, self.probes, self.seed)
        total = linearization.value.new_zeros(()) if trace is None else trace
        length = math.sqrt(linearization.event_size)
        # ||v_n|| <= L^n ||u||, so a contraction needs no more terms than this.
        limit = math.ceil(
            max(1.0, math.log(self.tolerance * (1 - lipschitz) / length**2) / math.log(lipschitz))
        )
        v = u
        for k in range(1, limit + 2):
            v = linearization.vm(v)
            if k > 1 or trace is None:
                total = total + _term(linearization, k, u, v)
            rest = lipschitz / ((k + 1) * (1 - lipschitz)) * length
            size = linearization.norm(v.detach())
            # What is not finite will not get smaller; it stays visible in the total.
            if not bool((size.nan_to_num(0.0, 0.0) * rest > self.tolerance).any()):
                return total.expand(linearization.batch_shape)
        raise ContractionError(
            f"The series did not converge to {self.tolerance} nats in {limit} terms: the Jacobian "
            f"of g has norm 1 or more, where lipschitz {lipschitz} was promised. Correct the "
            "bound, or use a norm strategy that proves it, such as Gram()."
        )

    def with_seed(self, seed: int) -> "ConvergedSeries":
        return ConvergedSeries(self.tolerance, self.probes, seed)


def _probes(linearization: Linearization, probes: int, seed: int) -> Tensor:
    ones = (1,) * len(linearization.batch_shape)
    return fixed_signs((probes, *ones, *linearization.event_shape), seed, linearization.value)


def _term(linearization: Linearization, k: int, u: Tensor, v: Tensor) -> Tensor:
    # Not (-1)**k: where torch.compile makes k symbolic, it takes that power wrongly (torch 2.13).
    sign = 1.0 if k % 2 else -1.0
    return sign / k * linearization.sum_event(u * v).mean(0)
