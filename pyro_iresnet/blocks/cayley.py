r"""The Cayley block: :math:`y = (I - g)(I + g)^{-1} x`, which shrinks as far as it stretches."""

from dataclasses import dataclass
from typing import Unpack, final

import torch
from torch import Tensor

from .._torch import full_precision, in_torch_func, refuse_forward_mode, refuse_transforms
from ..errors import ContractionError, InversionError, check_keywords
from ..inverse import SolveKeywords, implicit_inverse, solve_in
from ..logdet import Series
from ..logdet.series import log_det_one_plus
from ..operators import ContractionMap, Linearization, Negated, NegatedMap, auto_linear_solve
from ..solution import Solution
from .base import Block, Evaluation


@dataclass(frozen=True)
class CayleySeries(Series):
    r""":math:`\log(1 - z) - \log(1 + z) = -2\,(z + z^3/3 + z^5/5 + \dots)`, an odd series.

    Example:
        >>> series = CayleySeries()
        >>> [series.coefficient(k) for k in (1, 2)], series.slope_coefficient(2)
        ([-2.0, 0.0], -2.0)
    """

    def coefficient(self, k: int) -> float:
        return -2.0 / k if k % 2 else 0.0

    def log_det(self, matrix: Tensor) -> Tensor:
        return log_det_one_plus(-matrix) - log_det_one_plus(matrix)

    def expand(self, matrix: Tensor) -> tuple[Tensor, Tensor]:
        eye = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
        return self.log_det(matrix), -2 * torch.linalg.inv(eye - matrix @ matrix)

    def tail(self, terms: int, lipschitz: float) -> float:
        # The terms L, L^3, L^5, ... with the coefficient 2 / (n + 1) or less.
        return 2 * lipschitz / ((terms + 1) * (1 - lipschitz**2))


@final
class CayleyBlock(Block):
    r"""The Cayley transform of a contraction ``g`` with :math:`\mathrm{Lip}(g) \le L < 1`.

    .. math:: y = w - g(w) \quad\text{with}\quad w + g(w) = x, \qquad
              \log\Big|\det\frac{dy}{dx}\Big| = \log\det(I - J) - \log\det(I + J)

    with J the Jacobian of ``g`` at w. The slope of the block lies between :math:`(1 - L) / (1 + L)`
    and :math:`(1 + L) / (1 - L)`: one Cayley block shrinks and stretches alike, and further than a
    residual block. Both directions are one certified solve, the inverse with ``-g`` for ``g``; so a
    training step is slower than that of a residual block. Gradients cross the solve by the implicit
    function theorem. The log-determinant is an odd series in J, with half of the terms of a
    residual block's.

    Arguments and errors as in :class:`Block`. The forward pass raises as the inverse does: a sample
    of NaN has no solution.

    Raises:
        ArgumentError, ArgumentTypeError: as in :class:`Block`; in a call a tensor of another shape,
            dtype, device or layout, or an unknown option of :meth:`solve`.
        ContractionError, InversionError: in a call: no bound below 1, or a missed tolerance.

    References:
        Invertible Monotone Operators for Normalizing Flows (Ahn, Kim, Hong and Ko, 2022).

    Example:
        >>> import torch
        >>> from pyro_iresnet import CayleyBlock, DenseContraction
        >>> block = CayleyBlock(DenseContraction(2, lipschitz=0.9))
        >>> x = torch.randn(5, 2)
        >>> y, log_det = block.forward_and_log_det(x)
        >>> bool((block.inverse(y) - x).norm() < 1e-4)
        True
    """

    def evaluate(self, x: Tensor, context: Tensor | None = None) -> Evaluation:
        g, w = self._solved(x, context, None, sign=1)
        with full_precision(x):
            at = g.linearize(w, context)
            y = self.from_coordinates(w - at.value)
        return self.evaluation(x, y, lambda: at, CayleySeries(), _vjp, _inverse_vjp)

    def evaluate_inverse(
        self, y: Tensor, context: Tensor | None = None, *, x0: Tensor | None = None
    ) -> Evaluation:
        g, w = self._solved(y, context, x0, sign=-1)
        with full_precision(y):
            at = g.linearize(w, context)
            x = self.from_coordinates(w + at.value)
        return self.evaluation(x, y, lambda: at, CayleySeries(), _vjp, _inverse_vjp)

    def solve(
        self, y: Tensor, context: Tensor | None = None, **options: Unpack[SolveKeywords]
    ) -> Solution:
        """Invert with figures and without gradients; arguments as :meth:`ResidualBlock.solve`."""
        check_keywords(options, SolveKeywords.__annotations__, "CayleyBlock.solve")
        y, context = self.check(y, context, "y")
        with full_precision(y):
            return self._solve(self.contraction_map(), y, context, sign=-1, **options)[1]

    def _solved(
        self, x: Tensor, context: Tensor | None, x0: Tensor | None, *, sign: int
    ) -> tuple[ContractionMap, Tensor]:
        """Return ``g``, and w with ``w + g(w) = x`` (``w - g(w) = x`` for the sign -1)."""
        with full_precision(x):
            g = self.contraction_map()
            try:
                w, solution = self._solve(g, x, context, sign=sign, x0=x0)
            except (InversionError, ContractionError) as error:
                if sign < 0:
                    raise
                seen = f"The forward pass of CayleyBlock solves w + g(w) = x, and failed. {error}"
                arguments = (error.solution,) if isinstance(error, InversionError) else ()
                raise type(error)(seen, *arguments) from error
            if torch.is_grad_enabled():
                signed = g if sign > 0 else NegatedMap(g)
                w = implicit_inverse(
                    self.contraction,
                    signed,
                    w,
                    self.to_coordinates(x),
                    context,
                    lipschitz=solution.lipschitz,
                    sign=sign,
                )
        return g, w

    def _solve(
        self,
        g: ContractionMap,
        x: Tensor,
        context: Tensor | None,
        *,
        sign: int,
        **options: Unpack[SolveKeywords],
    ) -> tuple[Tensor, Solution]:
        """Return w, and ``w - sign g(w)`` with its figures in the coordinates of ``x``."""
        solve = "The solve of CayleyBlock's forward pass" if sign > 0 else "The inverse"
        refuse_transforms(solve, x)
        if in_torch_func():
            refuse_forward_mode(solve, x)
        return solve_in(
            self.coordinates,
            g if sign > 0 else NegatedMap(g),
            x,
            self.event_dim,
            self.solver,
            context=context,
            then=lambda w: w - sign * g(w, context),
            slope=1 + float(g.lipschitz_bound()),
            **options,
        )


def _vjp(at: Linearization, lipschitz: float, v: Tensor) -> Tensor:
    r""":math:`(I + J)^{-\top} (I - J)^\top v`."""
    solver = auto_linear_solve(at.event_size)
    return solver(at, v - at.vm(v), transpose=True, lipschitz=lipschitz).value


def _inverse_vjp(at: Linearization, lipschitz: float, v: Tensor) -> Tensor:
    r""":math:`(I - J)^{-\top} (I + J)^\top v`."""
    negated = Linearization(-at.value, Negated(at.jacobian), at.event_dim)
    solver = auto_linear_solve(at.event_size)
    return solver(negated, v + at.vm(v), transpose=True, lipschitz=lipschitz).value
