"""Base class of invertible blocks, and the evaluation that a block returns."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .._settings import SavedSettings
from .._torch import full_precision
from ..cached import map_of
from ..contractions import Contraction
from ..contractions.hooks import HOOKS, refuse_forward, refuse_hooks
from ..coordinates import Coordinates, build
from ..errors import check_instance
from ..inverse import Anderson, Solver
from ..logdet import LogDet, Series, auto_logdet
from ..operators import ContractionMap, Linearization
from ..operators.solve import COARSEST, raise_unresolved

# Why coordinates take no hooks.
ONE_WAY = "the way back never calls the module, and would meet another function"
# Carries a gradient, given a linearization and the bound of its Jacobian.
Carry = Callable[[Linearization, float, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Evaluation:
    r"""A bijection at one point: the pair ``x, y``, and more on demand.

    Arguments:
        x: shape ``(*batch, *event)``.
        y: the image of ``x``, of the same shape.
        log_det: returns ``log|det dy/dx|``, shape ``(*batch,)``. A stochastic estimator draws
            afresh in each call.
        vjp: carries a gradient from ``y`` to ``x``, :math:`w \mapsto (dy/dx)^\top w`, without
            gradients of its own.
        inverse_vjp: carries a gradient from ``x`` to ``y``, :math:`w \mapsto (dy/dx)^{-\top} w`,
            without gradients of its own.
        drawn_by: the name of the stochastic estimator behind ``log_det``, or ``""``.

    Example:
        >>> import torch
        >>> from pyro_iresnet import DenseContraction, ResidualBlock
        >>> evaluation = ResidualBlock(DenseContraction(2)).evaluate(torch.zeros(5, 2))
        >>> evaluation.y.shape, evaluation.log_det().shape
        (torch.Size([5, 2]), torch.Size([5]))
    """

    x: Tensor
    y: Tensor
    log_det: Callable[[], Tensor]
    vjp: Callable[[Tensor], Tensor]
    inverse_vjp: Callable[[Tensor], Tensor]
    drawn_by: str = ""

    def inverted(self) -> "Evaluation":
        """Return the evaluation of the inverse bijection at ``y``."""
        return Evaluation(
            self.y, self.x, lambda: -self.log_det(), self.inverse_vjp, self.vjp, self.drawn_by
        )


class Block(SavedSettings, ABC):
    """A bijection :math:`y = f(x)` made of a contraction ``g``.

    To write one, define :meth:`evaluate` and :meth:`evaluate_inverse`. The block then stands in
    both hosts, in stacks, flows and guides, and in the diagnostics. :meth:`contraction_map` gives
    ``g`` with its acting weights, :meth:`to_coordinates` and :meth:`from_coordinates` carry a point
    into the coordinates of ``g`` and back, and :meth:`evaluation` makes the result.

    A state dict holds the class of the block and its coordinates, and loading others raises. Extend
    :meth:`settings` by any other setting that changes the function.

    Arguments:
        contraction: ``g``, a :class:`Contraction`; :func:`wrap` makes one of your own network.
        logdet: the estimator of the log-determinant; by default ``auto_logdet(D)``: exact for few
            coordinates, else unbiased in train mode and exact in eval mode.
        solver: the solver of the inverse with its tolerance; by default :class:`Anderson`.
        coordinates: the coordinates in which ``g`` acts: a strategy such as :class:`DiagonalScale`,
            a sequence of strategies that act in turn, or None.

    Attributes:
        coordinates: the :class:`CoordinateMap`, or None.
        options: the :class:`BlockOptions` of a block that a builder made; else None.

    Raises:
        ArgumentError, ArgumentTypeError: an argument of the wrong type, or a contraction without
            its event shape, context size or constant.
    """

    # The record of a builder; a plain attribute, since the core does not know builders.
    options: object = None

    def __init__(
        self,
        contraction: Contraction,
        *,
        logdet: LogDet | None = None,
        solver: Solver | None = None,
        coordinates: Coordinates | Sequence[Coordinates] | None = None,
    ) -> None:
        super().__init__()
        example = "DenseContraction(2), or wrap(module, lipschitz=0.9)"
        self.contraction = check_instance(contraction, Contraction, "contraction", example)
        contraction.check_complete()
        size = contraction.event_size
        if logdet is None and size is not None:
            logdet = auto_logdet(size)
        elif logdet is not None:
            check_instance(logdet, LogDet, "logdet", "Exact()")
        self.logdet = logdet
        solver = Anderson() if solver is None else solver
        self.solver = check_instance(solver, Solver, "solver", "Anderson()")
        self.coordinates = build(coordinates, contraction.event_shape)

    def settings(self) -> dict[str, Any]:
        coordinates = None if self.coordinates is None else self.coordinates.strategy
        return {**super().settings(), "coordinates": coordinates}

    @abstractmethod
    def evaluate(self, x: Tensor, context: Tensor | None = None) -> Evaluation:
        """Evaluate the block at ``x``; the tensors are as :meth:`check` returns them.

        Shapes are ``(*batch, *event)`` and, for a conditional ``g``, ``(*batch, size)``.
        """

    @abstractmethod
    def evaluate_inverse(
        self, y: Tensor, context: Tensor | None = None, *, x0: Tensor | None = None
    ) -> Evaluation:
        """Evaluate the block at the ``x`` with :math:`f(x) = y`, to the solver's tolerance.

        Shapes as in :meth:`evaluate`. ``x0`` is the start of a solver; by default the solver's own.
        """

    def check(
        self, x: Tensor, context: Tensor | None = None, name: str = "x"
    ) -> tuple[Tensor, Tensor | None]:
        """Check the tensors of a call and broadcast their batches, as :meth:`Contraction.check`."""
        return self.contraction.check(x, context, name)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return ``y``, shape ``(*batch, *event)``; arguments as in :meth:`evaluate`."""
        return self.evaluate(*self.check(x, context)).y

    def forward_and_log_det(
        self, x: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return ``y`` and ``log|det dy/dx|``, shapes ``(*batch, *event)`` and ``(*batch,)``."""
        evaluation = self.evaluate(*self.check(x, context))
        return evaluation.y, evaluation.log_det()

    def inverse(
        self, y: Tensor, context: Tensor | None = None, *, x0: Tensor | None = None
    ) -> Tensor:
        """Return ``x`` with :math:`f(x) = y`, to the solver's tolerance, certified for each sample.

        The inverse is differentiable in ``y``, parameters and context by the implicit function
        theorem: twice, and up to 16 coordinates to any order.

        Arguments:
            y: shape ``(*batch, *event)``.
            context: shape ``(*batch, size)``, for a conditional ``g``.
            x0: the start of the solver, the shape of ``y``; by default near the solution of an
                affine map that resembles the block.

        Raises:
            InversionError: a sample did not reach the tolerance, or is NaN or infinite.
            ContractionError: the proven bound of ``Lip(g)`` is 1 or more.
        """
        return self.evaluate_inverse(*self.check(y, context, "y"), x0=x0).x

    def inverse_and_log_det(
        self, y: Tensor, context: Tensor | None = None, *, x0: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return ``x`` and ``log|det dx/dy|``, shapes ``(*batch, *event)`` and ``(*batch,)``."""
        evaluation = self.evaluate_inverse(*self.check(y, context, "y"), x0=x0)
        return evaluation.x, -evaluation.log_det()

    def contraction_map(self) -> ContractionMap:
        """Return ``g`` with its acting weights, as a stack or :class:`cached` shares them.

        Raises :class:`ArgumentError` for hooks that would not act.
        """
        # A stack comes here for each of its parts, and checks the first only.
        if any(map(vars(self).get, HOOKS)):
            refuse_hooks(self, "block")
        if "forward" in vars(self):
            refuse_forward(self, "block")
        g = self.contraction
        if any(map(vars(g).get, HOOKS)) or "forward" in vars(g):
            g.check_uncalled()
        if self.coordinates is not None:
            for each in self.coordinates.modules():
                if any(map(vars(each).get, HOOKS)):
                    refuse_hooks(each, "coordinates", ONE_WAY)
        return map_of(self.contraction)

    def lipschitz_bound(self) -> Tensor:
        """Return a proven upper bound of ``Lip(g)`` at the present parameters, a scalar."""
        return self.contraction.lipschitz_bound()

    def estimator(self, event_size: int) -> LogDet:
        """Return the estimator of the log-determinant in the present mode."""
        logdet = auto_logdet(event_size) if self.logdet is None else self.logdet
        return logdet.for_mode(self.training)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of one event, with -1 for a size that may vary."""
        return self.contraction.event_shape

    @property
    def event_dim(self) -> int:
        """The number of trailing dimensions of one event."""
        return self.contraction.event_dim

    @property
    def context_dim(self) -> int | None:
        """The size of the context, or None for no context."""
        return self.contraction.context_dim

    def extra_repr(self) -> str:
        coordinates = None if self.coordinates is None else self.coordinates.strategy
        shown = f"logdet={self.logdet}, solver={self.solver}, coordinates={coordinates}"
        return shown if self.options is None else f"{shown}, options={self.options}"

    def to_coordinates(self, x: Tensor) -> Tensor:
        """Carry ``x`` into the coordinates of ``g``."""
        return x if self.coordinates is None else self.coordinates(x)

    def from_coordinates(self, z: Tensor) -> Tensor:
        """Carry ``z`` out of the coordinates of ``g``."""
        return z if self.coordinates is None else self.coordinates.inverse(z)

    def evaluation(
        self,
        x: Tensor,
        y: Tensor,
        linearize: Callable[[], Linearization],
        series: Series,
        vjp: Carry,
        inverse_vjp: Carry,
    ) -> Evaluation:
        """Make an evaluation from functions of the linearization of ``g``.

        Arguments:
            x, y: the pair, in the coordinates of the user.
            linearize: linearizes ``g`` in its own coordinates.
            series: the log-determinant as a function of the Jacobian of ``g``.
            vjp, inverse_vjp: carry a gradient in the coordinates of ``g``; called with the
                linearization, the bound of ``Lip(g)`` and the gradient.
        """
        c, lipschitz = self.coordinates, self.contraction.lipschitz
        event_dim = len(self.contraction.event_shape)
        estimator = self.estimator(x.shape[x.dim() - event_dim :].numel())

        def log_det() -> Tensor:
            # The dtype may have changed since the constant was checked. Without a call more, since
            # every training step comes here.
            if 8 * torch.finfo(x.dtype).eps > COARSEST * (1 - lipschitz):
                raise_unresolved(x.dtype, lipschitz, "the log-determinant")
            with full_precision(x):
                value = estimator(linearize(), lipschitz=lipschitz, series=series)
                if c is None or c.is_linear:
                    return value
                return value + (c.log_det(x) - c.log_det(y))

        def carry(by: Carry, begin: Tensor, end: Tensor, w: Tensor) -> Tensor:
            with torch.no_grad(), full_precision(x):
                if c is None:
                    return by(linearize(), lipschitz, w)
                inside = by(linearize(), lipschitz, c.inverse_vjp(c(begin), w))
                return c.vjp(end, inside)

        carries = partial(carry, vjp, y, x), partial(carry, inverse_vjp, x, y)
        drawn_by = type(estimator).__name__ if estimator.stochastic else ""
        return Evaluation(x, y, log_det, *carries, drawn_by)
