r"""Power series of the log-determinant with fixed probes: cut, or taken to convergence.

.. math:: \log|\det(I + J)| = \mathrm{tr}\log(I + J)
          = \sum_{k=1}^\infty \frac{(-1)^{k-1}}{k}\,\mathrm{tr}(J^k), \qquad
          \mathrm{tr}(J^k) = \mathrm{E}[u^\top J^k u]

(Invertible Residual Networks, Behrmann et al., 2019, Equation 4.)
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .._counter_rng import fixed_signs
from .._torch import disable_compiler, refuse_transforms
from ..errors import (
    ContractionError,
    check_instance,
    check_int,
    check_lipschitz,
    check_positive,
    check_positive_int,
    store_checked,
)
from ..operators import Linearization
from .base import USE_EXACT, LogDet, refuse_call
from .series import LogOnePlus, Series


@dataclass(frozen=True)
class PowerSeries(LogDet):
    r"""The series cut after a fixed number of terms, with fixed probes: deterministic, and biased.

    .. math:: c_1\, \mathrm{tr} J + \sum_{k=2}^{n} c_k\, u^\top J^k u

    with :math:`c_k = (-1)^{k-1} / k` for a residual block. The first trace is exact if the
    linearization knows the trace. The probes are the same for every sample and every call, a
    function of the seed alone. The value is a smooth function of ``x``, and its gradient is the
    derivative of the value, as HMC needs. Memory grows with the terms. :meth:`truncation_error`
    bounds the error of the cut.

    Arguments:
        terms: ``n``, at least 1.
        probes: the number of probes ``u`` to average over, at least 1.
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
        store_checked(self, check_positive_int, "terms")
        store_checked(self, check_positive_int, "probes")
        store_checked(self, check_int, "seed")

    def __call__(
        self,
        linearization: Linearization,
        *,
        lipschitz: float,
        series: Series = LogOnePlus(),  # noqa: B008  (frozen, so safe to share)
    ) -> Tensor:
        if not (isinstance(linearization, Linearization) and isinstance(series, Series)):
            refuse_call(linearization, series)
        trace = linearization.trace()
        first = None if trace is None else series.coefficient(1) * trace
        if first is not None and self.terms == 1:
            return first
        u = _probes(linearization, self.probes, self.seed)
        total = linearization.value.new_zeros(()) if first is None else first
        v = u
        for k in range(1, self.terms + 1):
            v = linearization.vm(v)
            if k > 1 or trace is None:
                total = total + series.coefficient(k) * linearization.sum_event(u * v).mean(0)
        return total.expand(linearization.batch_shape)

    def with_seed(self, seed: int) -> "PowerSeries":
        return replace(self, seed=seed)

    def truncation_error(
        self,
        lipschitz: float,
        event_size: int,
        series: Series = LogOnePlus(),  # noqa: B008
    ) -> float:
        r"""Bound the error of the cut, :math:`D \sum_{k>n} |c_k| L^k`, nats.

        For a residual block :math:`D L^{n+1} / ((n+1)(1-L))`. ``lipschitz`` is ``L``, the bound of
        ``||J||_2``; ``event_size`` is ``D``; ``series`` has the coefficients. Another value raises
        :class:`ArgumentError` or :class:`ArgumentTypeError`.
        """
        lipschitz = check_lipschitz(lipschitz)
        event_size = check_positive_int(event_size, "event_size")
        check_instance(series, Series, "series", "LogOnePlus()")
        return event_size * lipschitz**self.terms * series.tail(self.terms, lipschitz)


@dataclass(frozen=True)
class ConvergedSeries(LogDet):
    r"""The series with fixed probes, to a certified error of the cut: deterministic.

    The series of :class:`PowerSeries` with as many terms as needed. After n terms the rest is at
    most

    .. math:: \lVert u \rVert\, \lVert (J^\top)^n u \rVert \sum_{k > n} |c_k| L^{k-n}
              \le \frac{L}{(n + 1)(1 - L)}\, \lVert u \rVert\, \lVert (J^\top)^n u \rVert

    for each probe (the second bound for a residual block). The series of a sample ends when this
    bound is below the tolerance, whatever the other samples of the batch. The noise of the probes
    is left; :func:`logdet_with_error` states it. For evaluation in more dimensions than
    :class:`Exact` can afford.

    Arguments:
        tolerance: of the cut, in nats, above 0.
        probes, seed: as in :class:`PowerSeries`.

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
        store_checked(self, check_positive, "tolerance")
        store_checked(self, check_positive_int, "probes")
        store_checked(self, check_int, "seed")

    @disable_compiler("its number of terms depends on the data")
    def __call__(
        self,
        linearization: Linearization,
        *,
        lipschitz: float,
        series: Series = LogOnePlus(),  # noqa: B008  (frozen, so safe to share)
    ) -> Tensor:
        if not (isinstance(linearization, Linearization) and isinstance(series, Series)):
            refuse_call(linearization, series)
        refuse_transforms("ConvergedSeries", linearization.value, USE_EXACT)
        check_lipschitz(lipschitz)
        trace = linearization.trace()
        u = _probes(linearization, self.probes, self.seed)
        first = series.coefficient(1)
        total = linearization.value.new_zeros(()) if trace is None else first * trace
        length = math.sqrt(linearization.event_size)
        # ||v_n|| <= L^n ||u||, so a contraction needs no more terms.
        rest = series.tail(0, lipschitz)
        limit = math.ceil(
            max(1.0, math.log(self.tolerance / (length**2 * rest)) / math.log(lipschitz))
        )
        v, goes_on = u, torch.ones((), dtype=torch.bool, device=u.device)
        for k in range(1, limit + 2):
            v = linearization.vm(v)
            if k > 1 or trace is None:
                term = series.coefficient(k) * linearization.sum_event(u * v).mean(0)
                total = total + torch.where(goes_on, term, 0.0)
            rest = series.tail(k, lipschitz) * length
            size = linearization.norm(v.detach())
            # A value that is not finite will not get smaller, and stays visible in the total.
            goes_on = goes_on & (size.nan_to_num(0.0, 0.0) * rest > self.tolerance).any(0)
            if not bool(goes_on.any()):
                return total.expand(linearization.batch_shape)
        raise ContractionError(
            f"The series did not converge to {self.tolerance} nats in {limit} terms: the norm of "
            f"the Jacobian of g is above lipschitz = {lipschitz}, which was promised. Correct the "
            "bound, or use a norm strategy that proves it, such as Gram()."
        )

    def with_seed(self, seed: int) -> "ConvergedSeries":
        return replace(self, seed=seed)


def _probes(linearization: Linearization, probes: int, seed: int) -> Tensor:
    ones = (1,) * len(linearization.batch_shape)
    return fixed_signs((probes, *ones, *linearization.event_shape), seed, linearization.value)
