"""The invertible residual block: ``y = x + g(x)``."""

from functools import partial
from typing import Unpack, final

import torch
from torch import Tensor

from .._torch import full_precision, in_plain_autograd
from ..errors import check_keywords
from ..inverse import SolveKeywords, implicit_inverse, solve_in
from ..logdet import Exact, LogOnePlus
from ..operators import ContractionMap, Linearization, auto_linear_solve
from ..solution import Solution
from .base import Block, Evaluation


@final
class ResidualBlock(Block):
    r"""The invertible map :math:`y = x + g(x)` with :math:`\mathrm{Lip}(g) \le L < 1`.

    The block is bi-Lipschitz in its coordinates: it stretches a pair of points by at most
    :math:`1 + L` and leaves a pair at least :math:`1 - L` of its distance. The weights are
    normalised once in each call, and no call changes anything. In coordinates
    :math:`z = \varphi(x)` the block is

    .. math:: y = \varphi^{-1}\big(\varphi(x) + g(\varphi(x))\big)

    so that the bound holds in a norm, or on a scale, that is learned. Error bounds of the inverse
    are those of ``x``. Arguments and errors as in :class:`Block`.

    Raises:
        ArgumentError, ArgumentTypeError: as in :class:`Block`; in a call a tensor of another shape,
            dtype, device or layout, or an unknown option of :meth:`solve`.
        ContractionError, InversionError: in an inverse: no bound below 1, or a missed tolerance.

    References:
        Invertible Residual Networks (Behrmann et al., 2019), Theorem 1 and Algorithm 1.

    Example:
        >>> import torch
        >>> from pyro_iresnet import DenseContraction, ResidualBlock
        >>> block = ResidualBlock(DenseContraction(2, lipschitz=0.9))
        >>> x = torch.randn(5, 2)
        >>> y, log_det = block.forward_and_log_det(x)
        >>> bool((block.inverse(y) - x).norm() < 1e-4)
        True
    """

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        x, context = self.check(x, context)
        with full_precision(x):
            # Without the Jacobian, which a value alone does not need.
            z = self.to_coordinates(x)
            return self.from_coordinates(z + self.contraction_map()(z, context))

    def evaluate(self, x: Tensor, context: Tensor | None = None) -> Evaluation:
        with full_precision(x):
            z = self.to_coordinates(x)
            at = self._linearize(self.contraction_map(), z, context)
            y = self.from_coordinates(z + at.value)
        return self.evaluation(x, y, lambda: at, LogOnePlus(), _vjp, _inverse_vjp)

    def _linearize(self, g: ContractionMap, z: Tensor, context: Tensor | None) -> Linearization:
        # Without gradients a caller may want y alone, and the matrix is made on demand.
        # A trace would record the reading of a shape, and only with gradients.
        if not (torch.is_grad_enabled() and in_plain_autograd()):
            return g.linearize(z, context)
        exact = type(self.estimator(z.shape[-1])) is Exact
        return g.linearize_densely(z, context) if exact else g.linearize(z, context)

    def evaluate_inverse(
        self, y: Tensor, context: Tensor | None = None, *, x0: Tensor | None = None
    ) -> Evaluation:
        with full_precision(y):
            g = self.contraction_map()
            z, solution = self._solve(g, y, context, x0=x0)
            if torch.is_grad_enabled():
                target, bound = self.to_coordinates(y), solution.lipschitz
                z = implicit_inverse(self.contraction, g, z, target, context, lipschitz=bound)
            x = self.from_coordinates(z)
        linearize = partial(self._linearize, g, z, context)
        return self.evaluation(x, y, linearize, LogOnePlus(), _vjp, _inverse_vjp)

    def solve(
        self, y: Tensor, context: Tensor | None = None, **options: Unpack[SolveKeywords]
    ) -> Solution:
        """Invert with figures and without gradients, as :func:`~pyro_iresnet.solvers.solve`.

        ``value``, ``error_bound`` and ``tolerance`` are in the coordinates of ``x``, ``residual``
        in those of ``g``. ``options`` are ``x0``, ``atol``, ``rtol``, ``max_steps`` and ``throw``.
        """
        check_keywords(options, SolveKeywords.__annotations__, "ResidualBlock.solve")
        y, context = self.check(y, context, "y")
        with full_precision(y):
            return self._solve(self.contraction_map(), y, context, **options)[1]

    def _solve(
        self,
        g: ContractionMap,
        y: Tensor,
        context: Tensor | None,
        **options: Unpack[SolveKeywords],
    ) -> tuple[Tensor, Solution]:
        """Return z with ``z + g(z) = y`` in the coordinates of ``g``, and x with its figures."""
        ends = self.coordinates, g, y, self.event_dim, self.solver
        return solve_in(*ends, context=context, **options)


def _vjp(at: Linearization, lipschitz: float, w: Tensor) -> Tensor:
    r""":math:`(I + J)^\top w`."""
    return w + at.vm(w)


def _inverse_vjp(at: Linearization, lipschitz: float, w: Tensor) -> Tensor:
    r""":math:`(I + J)^{-\top} w`."""
    solver = auto_linear_solve(at.event_size)
    return solver(at, w, transpose=True, lipschitz=lipschitz).value
