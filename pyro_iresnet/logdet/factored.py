r"""The draws of :class:`Roulette` for a Jacobian in factors, with a gradient written by hand.

For a perceptron the Jacobian is :math:`J = W_n S_{n-1} W_{n-1} \cdots S_1 W_1` with
:math:`S_i = \mathrm{diag}(p_i)`. A sweep carries a vector :math:`\ell` from left to right:

.. math:: r_{n-1} = W_n^\top \ell, \qquad r_{i-1} = W_i^\top (p_i \circ r_i), \qquad
          J^\top \ell = W_1^\top (p_1 \circ r_1)

With the tangents :math:`t_0 = u`, :math:`m_i = W_i t_{i-1}`, :math:`t_i = p_i \circ m_i`, the
gradient of :math:`\ell^\top J u` is

.. math:: dp_i = r_i \circ m_i, \qquad dW_i = (p_i \circ r_i)\, t_{i-1}^\top, \qquad
          dW_n = \ell\, t_{n-1}^\top

The draws sweep :math:`v_k = (J^\top)^k u` for the value. The weighted sums of these sweeps are the
sweep of :math:`\ell = \sum_k (k + 1)\, c_{k+1}\, w_k\, v_k`. So the gradient costs the tangents
of ``u`` alone, for the samples that the first roulette left. The roulette of term k is played
before the gradient takes term k, so that one sweep serves the gradient and the next value.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import Function

from .._torch import precisely, undifferentiable
from ..operators.factored import FactoredJacobian
from .probe import rademacher
from .series import Series
from .surrogate import FIRST_ONLY
from .truncation import Truncation, endless


@dataclass(frozen=True)
class FactoredDraws:
    """The estimator of :class:`Roulette` with one probe, expanded at 0, for a Jacobian in factors.

    Arguments:
        truncation: the probability that a sample goes on.
        lipschitz: the bound of ``||J||_2``.
        series: the log-determinant as a function of ``J``.
    """

    truncation: Truncation
    lipschitz: float
    series: Series

    def __call__(self, j: FactoredJacobian) -> Tensor:
        """Estimate the log-determinant of each sample, shape ``(n,)``, and its gradient."""
        return _SampledLogDet.apply(
            self, j.without_factors(), len(j.weights), *j.weights, *j.slopes
        )

    def play(
        self, j: FactoredJacobian, value: Tensor, by_probe: bool, needed: bool
    ) -> "_Sums | None":
        """Draw the series, and add the series to ``value``, but for an exact first term.

        Arguments:
            j: the Jacobian.
            value: shape ``(n,)``, written to.
            by_probe: True to take the first term by the probe too.
            needed: True to return the sums that a gradient needs, unless no sample went on.
        """
        truncation, series = self.truncation, self.series
        truncation.warn(self.lipschitz)
        u = rademacher((len(value), j.event_size), value)
        unit = math.sqrt(u.shape[1])
        v, passed = j.sweep(u)
        sums: _Sums | None = None
        if by_probe:
            first = series.coefficient(1)
            value.add_(torch.linalg.vecdot(u, v), alpha=first)
            if needed:
                sums = _Sums(j, u, [*[first * r for r in passed], first * u])
        # Positions in the batch, and in the sums; None for all.
        rows: Tensor | None = None
        spots: Tensor | None = None
        # One number as long as all samples have one weight.
        weight: Tensor | float = 1.0
        for k in truncation.terms(self.lipschitz):
            played: tuple[Tensor, Tensor | float] | None = None
            if k >= truncation.exact_terms:
                magnitude = torch.linalg.vecdot(v, v).sqrt_().mul_(weight / unit)
                played = truncation.play(k, magnitude)
            if played is not None:
                kept, factor = played
                if len(kept) == 0:
                    return sums
                if len(kept) < len(v):
                    j, u, v = j.select(kept), u[kept], v[kept]
                    weight = weight[kept] if isinstance(weight, Tensor) else weight
                    rows = kept if rows is None else rows[kept]
                    if sums is not None:
                        spots = kept if spots is None else spots[kept]
                weight = weight * factor
            before = v
            v, passed = j.sweep(before)
            if needed:
                factors = weight * series.slope_coefficient(k)
                if sums is None:
                    sums = _Sums(j, u, _times([*passed, before], factors), rows)
                elif isinstance(factors, Tensor):
                    sums.add(_times([*passed, before], factors), spots)
                else:
                    sums.add([*passed, before], spots, factors)
            term, scale = torch.linalg.vecdot(u, v), series.coefficient(k + 1)
            if isinstance(weight, Tensor):
                term.mul_(weight)
            else:
                scale *= weight
            if rows is None:
                value.add_(term, alpha=scale)
            else:
                value.index_add_(0, rows, term, alpha=scale)
        raise endless(truncation, len(v), len(value), self.lipschitz)


@dataclass
class _Sums:
    r"""The weighted sums of the sweeps, for the gradient of :math:`\ell^\top J u`.

    Arguments:
        j: the Jacobian of the samples.
        u: the probes of the samples.
        lefts: the sums of :math:`r_1, \dots, r_{n-1}` and of :math:`\ell`.
        rows: the positions of the samples in the batch; None for all.
    """

    j: FactoredJacobian
    u: Tensor
    lefts: Sequence[Tensor]
    rows: Tensor | None = None

    def add(self, lefts: Sequence[Tensor], spots: Tensor | None, alpha: float = 1.0) -> None:
        """Add ``alpha`` times the sweep of the samples at some positions; None for all."""
        for total, left in zip(self.lefts, lefts, strict=True):
            if spots is None:
                total.add_(left, alpha=alpha)
            else:
                total.index_add_(0, spots, left, alpha=alpha)

    def pull(self, g: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return the gradients of weights and slopes, given those of the log-determinants."""
        column = (g if self.rows is None else g[self.rows])[:, None]
        return self.j.pull(self.u, [left * column for left in self.lefts])


def _times(lefts: Sequence[Tensor], factors: Tensor | float) -> list[Tensor]:
    """Return vectors times the factor of each sample."""
    column = factors[:, None] if isinstance(factors, Tensor) else factors
    return [left * column for left in lefts]


class _SampledLogDet(Function):
    @staticmethod
    def forward(
        ctx, draws: FactoredDraws, kind: FactoredJacobian, n: int, *tensors: Tensor
    ) -> Tensor:
        j = kind.with_factors(tensors[:n], tensors[n:])
        first, found = draws.series.coefficient(1), j.trace()
        trace, kept = (j.slopes[0].new_zeros(len(j.slopes[0])), ()) if found is None else found
        value = first * trace
        sums = draws.play(j, value, found is None, any(ctx.needs_input_grad))
        drawn = () if sums is None else (sums.u, *sums.j.slopes, *sums.lefts, sums.rows)
        ctx.first, ctx.kind, ctx.sizes = first, kind, (n, len(tensors), len(kept))
        ctx.save_for_backward(*tensors, *kept, *drawn)
        return value

    @staticmethod
    @precisely
    def backward(ctx, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        n, inputs, kept = ctx.sizes
        saved, g = ctx.saved_tensors, grad_outputs[0]
        j, drawn = ctx.kind.with_factors(saved[:n], saved[n:inputs]), saved[inputs + kept :]
        grads: list[Tensor | None] = [None] * inputs
        with torch.no_grad():
            if kept:
                weights, slopes = j.pull_trace(saved[inputs : inputs + kept], ctx.first * g)
                grads = [*weights, *slopes]
            if drawn:
                of_samples = j.with_factors(j.weights, drawn[1:n])
                rows = drawn[-1]
                weights, slopes = _Sums(of_samples, drawn[0], drawn[n:-1], rows).pull(g)
                for i, part in enumerate((*weights, *slopes)):
                    grads[i] = _added(grads[i], part, rows if i >= n else None)
        if torch.is_grad_enabled():
            of = (g, *saved[:inputs])
            grads = [None if t is None else undifferentiable(t, FIRST_ONLY, *of) for t in grads]
        return None, None, None, *grads


def _added(total: Tensor | None, part: Tensor, rows: Tensor | None) -> Tensor:
    """Add a part to a total, at some rows or at all; a part without a total has all rows."""
    if total is None:
        return part
    return total + part if rows is None else total.index_add(0, rows, part)
