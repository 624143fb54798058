"""Base class of solvers: strategies with ``init`` and ``step``, which the loop runs."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from ...errors import check_not_negative, check_positive_int, store_checked
from ...operators import ContractionMap, Linearization

# The Euclidean norm of each row, shapes (n, D) to (n,), without the calls of a function.
row_norm = partial(torch.linalg.vector_norm, dim=-1)


@dataclass(frozen=True)
class Problem:
    """The equation ``x + g(x) = y`` for the samples still at work, events flattened into rows.

    Arguments:
        g: the contraction with its acting weights.
        y: shape ``(n, D)``.
        context: shape ``(n, size)``, or None.
        lipschitz: the proven bound of ``Lip(g)``.
        event_shape: the shape of an event, before it was flattened.
    """

    g: ContractionMap
    y: Tensor
    context: Tensor | None
    lipschitz: float
    event_shape: tuple[int, ...]

    def at(self, x: Tensor, *, linearized: bool) -> "Point":
        """Evaluate ``g`` at rows ``x``, with its Jacobian or without."""
        events = x.reshape(-1, *self.event_shape)
        linearization = self.g.linearize(events, self.context) if linearized else None
        value = self.g(events, self.context) if linearization is None else linearization.value
        picard = self.y - value.reshape(x.shape)
        residual = x - picard
        return Point(x, picard, residual, row_norm(residual), linearization)

    def select(self, index: Tensor) -> "Problem":
        """Return the problem of the samples ``index`` only."""
        context = None if self.context is None else self.context.index_select(0, index)
        return replace(self, y=self.y.index_select(0, index), context=context)


@dataclass(frozen=True)
class Point:
    """A point at which ``g`` was evaluated.

    Arguments:
        x: shape ``(n, D)``, as the next two.
        picard: the fixed-point step from x, ``y - g(x)``.
        residual: ``x + g(x) - y``.
        size: the norm of the residual, shape ``(n,)``.
        linearization: of ``g`` at ``x``, for a solver that needs the Jacobian.
    """

    x: Tensor
    picard: Tensor
    residual: Tensor
    size: Tensor
    linearization: Linearization | None = None

    def unless(self, refused: Tensor, other: "Point") -> "Point":
        """Return this point, but the other point for the samples that are refused.

        The linearization stays that of this point: a refused sample takes a fixed-point step next,
        which needs no linearization.
        """
        wide = refused[:, None]
        return Point(
            torch.where(wide, other.x, self.x),
            torch.where(wide, other.picard, self.picard),
            torch.where(wide, other.residual, self.residual),
            torch.where(refused, other.size, self.size),
            self.linearization,
        )

    def select(self, index: Tensor) -> "Point":
        """Return the point of the samples ``index`` only."""
        linearization = self.linearization
        return Point(
            self.x.index_select(0, index),
            self.picard.index_select(0, index),
            self.residual.index_select(0, index),
            self.size.index_select(0, index),
            None if linearization is None else linearization.select(index),
        )


class Stateless:
    """The empty state."""

    def select(self, index: Tensor) -> Self:
        return self


class Step(NamedTuple):
    """The proposal of a solver.

    Arguments:
        x: the next iterate.
        state: the next state.
        products: the number of products with a Jacobian; shape ``(n,)``, or one number.
    """

    x: Tensor
    state: Any
    products: Tensor | int = 0


@dataclass(frozen=True, kw_only=True)
class Solver(ABC):
    """Base class of solvers: strategies that go from one iterate to the next.

    To write one, define :meth:`step`, and :meth:`init` if the solver has a state. The loop
    evaluates ``g``, watches the certificate and drops the samples that are done. A proposal may
    leave at most :func:`share_kept` of the residual. Else a fixed-point step replaces the proposal,
    and leaves at most ``L`` of the residual.

    Attributes:
        rtol: relative tolerance; by default 1e-6 in float32, 1e-10 in float64. With 0, and no atol,
            as exact as the arithmetic allows.
        atol: absolute tolerance, in the units of ``x``; by default 0.
        max_steps: the largest number of steps; by default the number that theory gives.

    Raises:
        ArgumentError, ArgumentTypeError: a tolerance below 0, or ``max_steps`` is no integer of at
            least 1.

    Example:
        >>> from dataclasses import dataclass
        >>> from pyro_iresnet import iresnet
        >>> from pyro_iresnet.solvers import Solver
        >>> from pyro_iresnet.inverse import Step
        >>> @dataclass(frozen=True, kw_only=True)
        ... class Halfway(Solver):
        ...     def step(self, problem, point, state):
        ...         return Step(point.x - 0.5 * point.residual, state)
        >>> transform = iresnet(2, solver=Halfway(rtol=1e-3))
    """

    rtol: float | None = None
    atol: float = 0.0
    max_steps: int | None = None

    # True if a step needs the Jacobian at its start.
    linearizes: ClassVar[bool] = False
    # True if a fixed-point step replaces a step after which the residual is too large.
    safeguarded: ClassVar[bool] = True

    @property
    def costly(self) -> bool:
        """True if a step takes products with a Jacobian."""
        return self.linearizes

    def __post_init__(self) -> None:
        if self.rtol is not None:
            store_checked(self, check_not_negative, "rtol")
        store_checked(self, check_not_negative, "atol")
        if self.max_steps is not None:
            store_checked(self, check_positive_int, "max_steps")

    def init(self, problem: Problem, x0: Tensor | None) -> tuple[Tensor, Any]:
        """Return the start, ``x0`` or else ``y``, and the state before the first step."""
        return (problem.y if x0 is None else x0), Stateless()

    @abstractmethod
    def step(self, problem: Problem, point: Point, state: Any) -> Step:
        """Return the next iterate and state, from the last evaluation of ``g``."""

    def learn(self, state: Any, point: Point, tried: Point, accepted: Tensor) -> Any:
        """Return the state after an evaluation.

        Arguments:
            state: the state that the last step returned.
            point, tried: the start and the end of the last step.
            accepted: the mask of the samples that stay at the end; the others go back to the start.
        """
        return state

    def default_max_steps(self, ratio: float, lipschitz: float) -> int:
        """Return the number of steps that suffices, if at worst every other step is refused.

        ``ratio`` is the largest ``(first residual / (1 - L)) / tolerance`` of a sample.
        """
        return 2 * picard_steps(ratio, share_kept(lipschitz))


def picard_steps(ratio: float, lipschitz: float) -> int:
    """Return the fixed-point steps that shrink an error by ``ratio``, by Banach's bound."""
    if ratio <= 1.0 or lipschitz == 0.0:
        return 1
    return max(1, math.ceil(math.log(ratio) / -math.log(lipschitz)))


def share_kept(lipschitz: float) -> float:
    """Return the share of a residual that a step may leave, halfway between ``L`` and 1."""
    return (1 + lipschitz) / 2
