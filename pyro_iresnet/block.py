"""The invertible residual block: a contraction, a log-determinant and an inverse, composed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .caching import acting_of
from .contractive import Contraction
from .coordinates import Chart, Coordinates, Identity, Metric, coordinates
from .errors import check_instance
from .inverse import Solver, auto_solver, implicit_inverse, solve, solve_in
from .linear_solve import auto_linear_solve
from .linearization import Acting, Linearization
from .logdet import LogDet, auto_logdet
from .solution import Solution
from .torch_modes import full_precision


@dataclass(frozen=True)
class Evaluation:
    """A block evaluated at ``x``: ``y``, and what its log-determinant needs, not yet computed.

    Arguments:
        y: ``x + g(x)`` in the block's coordinates, shape ``(*batch, *event)``.
        linearization: of ``g`` at ``x``.
        estimator: of the log-determinant.
        lipschitz: what the contraction promises.
        x: where.
        coordinates: in which the block acts; None for those of ``x``.
        of_chart: what a chart adds to the log-determinant; None for nothing.

    Example:
        >>> import torch
        >>> from pyro_iresnet import DenseContraction, ResidualBlock
        >>> evaluation = ResidualBlock(DenseContraction(2)).evaluate(torch.zeros(5, 2))
        >>> evaluation.y.shape, evaluation.logdet().shape
        (torch.Size([5, 2]), torch.Size([5]))
    """

    y: Tensor
    linearization: Linearization
    estimator: LogDet
    lipschitz: float
    x: Tensor
    coordinates: Coordinates | None = None
    of_chart: Callable[[], Tensor] | None = None

    def logdet(self) -> Tensor:
        """``log|det dy/dx|``, shape ``(*batch,)``; a stochastic estimator draws afresh."""
        with full_precision(self.y):
            logdet = self.estimator(self.linearization, lipschitz=self.lipschitz)
            return logdet if self.of_chart is None else logdet + self.of_chart()

    @torch.no_grad()
    def push(self, w: Tensor) -> Tensor:
        r"""Carry a gradient from ``x`` to ``y``: :math:`(\partial y / \partial x)^{-\top} w`.

        Of a function of ``x`` it makes the gradient of the same function of ``y``. Without
        gradients of its own.

        Arguments:
            w: the gradient at ``x``, shape ``(*batch, *event)``.
        """
        with full_precision(self.y):
            if self.coordinates is not None:
                w = self.coordinates.push(self.coordinates(self.x), w)
            solver = auto_linear_solve(self.linearization.event_size)
            v = solver(self.linearization, w, transpose=True, lipschitz=self.lipschitz).value
            return v if self.coordinates is None else self.coordinates.pull(self.y, v)


@dataclass(frozen=True)
class InverseEvaluation:
    """A block inverted at ``y``: ``x``, and what its log-determinant needs, not yet computed.

    Arguments:
        x: the solution of ``x + g(x) = y``, shape ``(*batch, *event)``.
        linearize: gives the :class:`Evaluation` at ``x``, with the weights that solved for it.
    """

    x: Tensor
    linearize: Callable[[], Evaluation]

    def logdet(self) -> Tensor:
        """``log|det dx/dy|``, shape ``(*batch,)``; a stochastic estimator draws afresh."""
        return -self.linearize().logdet()


class ResidualBlock(nn.Module):
    r"""The invertible map :math:`y = x + g(x)` with :math:`\mathrm{Lip}(g) < 1`.

    (reading report Eq. 1-2; Behrmann et al. 2019, Theorem 1.) In its metric it is bi-Lipschitz:
    it stretches a pair of points by at most :math:`1 + L` and shrinks it by at most :math:`1 - L`.
    The weights are normalised once for each call, and no call changes anything.

    With a ``metric`` S or a ``chart`` c the block acts in coordinates :math:`\varphi(x) = S^{-1}
    c(x)`,

    .. math:: y = \varphi^{-1}\big(\varphi(x) + g(\varphi(x))\big)

    so that the bound holds in a norm, or on a scale, that is learned; all that is said of the
    inverse's error is said of ``x``.

    Arguments:
        contraction: ``g``, a :class:`Contraction`; :func:`wrap` makes one of your own network.
        logdet: the estimator of the log-determinant; by default ``auto_logdet(D)``: exact where
            that is cheap, else unbiased in train mode and exact in eval mode.
        solver: the inverse's solver and tolerance; by default ``auto_solver(D)``.
        metric: :class:`Diagonal` or :class:`Triangular` for a learned metric.
        chart: :class:`Asinh` for a learned nonlinear scale of each coordinate; None for none.

    Raises:
        ArgumentTypeError: an argument of the wrong type.
        ArgumentError: a contraction that does not say its event shape, context or constant.

    References:
        Invertible Residual Networks (Behrmann et al., 2019).

    Example:
        >>> import torch
        >>> from pyro_iresnet import DenseContraction, ResidualBlock
        >>> block = ResidualBlock(DenseContraction(2, lipschitz=0.9))
        >>> x = torch.randn(5, 2)
        >>> y, logdet = block.forward_and_logdet(x)
        >>> bool((block.inverse(y) - x).norm() < 1e-4)
        True
    """

    def __init__(
        self,
        contraction: Contraction,
        *,
        logdet: LogDet | None = None,
        solver: Solver | None = None,
        metric: Metric = Identity(),  # noqa: B008  (frozen, so safe to share)
        chart: Chart | None = None,
    ) -> None:
        super().__init__()
        self.contraction = check_instance(
            contraction,
            Contraction,
            "contraction",
            "DenseContraction(2), or wrap(module, bound=0.9)",
        )
        contraction.check_complete()
        size = contraction.event_size
        if logdet is None and size is not None:
            logdet = auto_logdet(size)
        self.logdet = (
            None if logdet is None else check_instance(logdet, LogDet, "logdet", "Exact()")
        )
        self.solver = (
            auto_solver(size)
            if solver is None
            else check_instance(solver, Solver, "solver", "Anderson()")
        )
        self.metric, self.chart = metric, chart
        self.coordinates = coordinates(metric, chart, self.contraction.event_shape)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """``y = x + g(x)``, in the block's coordinates.

        Arguments:
            x: shape ``(*batch, *event)``.
            context: shape ``(*batch, size)``, for a conditional ``g``.
        """
        x, context = self.contraction.check(x, context)
        with full_precision(x):
            z = self._to(x)
            return self._from(z + acting_of(self.contraction)(z, context))

    def forward_and_logdet(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``y`` and ``log|det dy/dx|``, shapes ``(*batch, *event)`` and ``(*batch,)``."""
        evaluation = self.evaluate(x, context)
        return evaluation.y, evaluation.logdet()

    def evaluate(self, x: Tensor, context: Tensor | None = None) -> Evaluation:
        """``y`` now and the log-determinant on demand, from one pass."""
        x, context = self.contraction.check(x, context)
        with full_precision(x):
            return self._evaluate(acting_of(self.contraction), self._to(x), context, x)

    def inverse(
        self, y: Tensor, context: Tensor | None = None, *, x0: Tensor | None = None
    ) -> Tensor:
        """``x`` with ``x + g(x) = y``, to the solver's tolerance, certified for each sample.

        Differentiable in ``y``, parameters and context by the implicit function theorem, twice,
        and up to 16 coordinates as often as you like.

        Arguments:
            y: shape ``(*batch, *event)``.
            context: shape ``(*batch, size)``, for a conditional ``g``.
            x0: where the solver starts, the shape of ``y``; by default near the solution of an
                affine map that resembles the block.

        Raises:
            InversionError: a sample did not reach the tolerance, or is NaN or infinite.
            ContractionError: the proven bound of ``Lip(g)`` is 1 or more.
        """
        return self.evaluate_inverse(y, context, x0=x0).x

    def inverse_and_logdet(
        self, y: Tensor, context: Tensor | None = None, *, x0: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """``x`` and ``log|det dx/dy|``, shapes ``(*batch, *event)`` and ``(*batch,)``."""
        evaluation = self.evaluate_inverse(y, context, x0=x0)
        return evaluation.x, evaluation.logdet()

    def evaluate_inverse(
        self, y: Tensor, context: Tensor | None = None, *, x0: Tensor | None = None
    ) -> InverseEvaluation:
        """``x`` now and the log-determinant on demand, from one pass at the solution."""
        y, context = self.contraction.check(y, context, "y")
        with full_precision(y):
            g = acting_of(self.contraction)
            z = self._inverse(g, y, context, x0)
            x = self._from(z)

        def linearize() -> Evaluation:
            with full_precision(y):
                return self._evaluate(g, z, context, x)

        return InverseEvaluation(x, linearize)

    def solve(
        self,
        y: Tensor,
        context: Tensor | None = None,
        *,
        x0: Tensor | None = None,
        atol: float | None = None,
        rtol: float | None = None,
        max_steps: int | None = None,
        throw: bool = True,
    ) -> Solution:
        """The inverse with its figures, without gradients: :func:`solve` for this block.

        ``value``, ``error_bound`` and ``tolerance`` are in the coordinates of ``x``, whatever the
        block's metric and chart are; ``residual`` is in those of ``g``.

        Arguments:
            y, context, x0: as in :meth:`inverse`.
            atol, rtol, max_steps, throw: as in :func:`solve`.
        """
        y, context = self.contraction.check(y, context, "y")
        options = {"x0": x0, "atol": atol, "rtol": rtol, "max_steps": max_steps, "throw": throw}
        with full_precision(y):
            return self._solve(acting_of(self.contraction), y, context, **options)[1]

    def lipschitz_bound(self) -> Tensor:
        """A proven upper bound of ``Lip(g)`` at the present parameters, a scalar."""
        return self.contraction.lipschitz_bound()

    def logdet_of(self, event_size: int) -> LogDet:
        """The estimator that acts in the present mode on events of a given size."""
        logdet = auto_logdet(event_size) if self.logdet is None else self.logdet
        return logdet.for_mode(self.training)

    def extra_repr(self) -> str:
        words = f"logdet={self.logdet}, solver={self.solver}, metric={self.metric}"
        return words if self.chart is None else f"{words}, chart={self.chart}"

    def _to(self, x: Tensor) -> Tensor:
        return x if self.coordinates is None else self.coordinates(x)

    def _from(self, z: Tensor) -> Tensor:
        return z if self.coordinates is None else self.coordinates.inverse(z)

    def _evaluate(self, g: Acting, z: Tensor, context: Tensor | None, x: Tensor) -> Evaluation:
        linearization = g.linearize(z, context)
        y = self._from(z + linearization.value)
        chart = None if self.chart is None else self.coordinates
        return Evaluation(
            y=y,
            linearization=linearization,
            estimator=self.logdet_of(linearization.event_size),
            lipschitz=self.contraction.lipschitz,
            x=x,
            coordinates=self.coordinates,
            of_chart=None if chart is None else lambda: chart.logdet(x) - chart.logdet(y),
        )

    def _inverse(self, g: Acting, y: Tensor, context: Tensor | None, x0: Tensor | None) -> Tensor:
        z, solution = self._solve(g, y, context, x0=x0)
        if not torch.is_grad_enabled():
            return z
        return implicit_inverse(
            self.contraction, g, z, self._to(y), context, lipschitz=solution.lipschitz
        )

    def _solve(
        self, g: Acting, y: Tensor, context: Tensor | None, **options: Any
    ) -> tuple[Tensor, Solution]:
        """The solution in the coordinates of ``g``, and with its figures in those of ``x``."""
        options |= {"context": context, "acting": g}
        if self.coordinates is None:
            solution = solve(self.contraction, y, self.solver, **options)
            return solution.value, solution
        return solve_in(self.coordinates, self.contraction, y, self.solver, **options)
