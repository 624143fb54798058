"""Base class of solvers: strategies with ``init`` and ``step``, which the loop runs."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from ...errors import check_not_negative, check_positive_int
from ...operators import ContractionMap, Linearization

# The Euclidean norm of each row, shapes (n, D) to (n,).
row_norm = partial(torch.linalg.vector_norm, dim=-1)


@dataclass(frozen=True)
class Problem:
    """``x + g(x) = y`` for the samples that are still at work, events flattened into rows.

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

        The linearization stays this one's: a refused sample takes a fixed-point step next, which
        needs none.
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


class State(Protocol):
    """What a solver carries from step to step, one entry for each sample."""

    def select(self, index: Tensor) -> Self:
        """That of the samples ``index`` only."""
        ...


class Stateless:
    """The state of a solver that needs none."""

    def select(self, index: Tensor) -> Self:
        return self


class Step(NamedTuple):
    """What a solver proposes.

    Arguments:
        x: the next iterate.
        state: the next state.
        products: how many products with a Jacobian it took; shape ``(n,)``, or one number.
    """

    x: Tensor
    state: Any
    products: Tensor | int = 0


@dataclass(frozen=True, kw_only=True)
class Solver(ABC):
    """A way to go from one iterate to the next.

    To write one, define :meth:`step`, and :meth:`init` if it carries a state. The loop evaluates
    ``g``, watches the certificate, drops the samples that are done, and keeps a proposal only where
    it leaves no more than :func:`share_kept` of the residual: elsewhere the fixed-point step
    follows, which leaves no more than ``L`` of it.

    Attributes:
        rtol: relative tolerance; by default 1e-6 in float32, 1e-10 in float64. With 0, and no
            atol, as exact as the arithmetic allows.
        atol: absolute tolerance, in the units of ``x``; by default 0.
        max_steps: by default what theory says suffices.

    Raises:
        ArgumentError, ArgumentTypeError: a tolerance below 0, or ``max_steps`` that is no integer
            of at least 1.

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

    # Whether a step needs the Jacobian at the point it starts from.
    linearizes: ClassVar[bool] = False
    # Whether the residual must fall from step to step; not where the step is the safeguard itself.
    safeguarded: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.rtol is not None:
            check_not_negative(self.rtol, "rtol")
        check_not_negative(self.atol, "atol")
        if self.max_steps is not None:
            check_positive_int(self.max_steps, "max_steps")

    def init(self, problem: Problem, x0: Tensor | None) -> tuple[Tensor, Any]:
        """Where to start, by default at ``y``, and the state before the first step.

        Arguments:
            problem: what is to be solved.
            x0: where the caller wants to start, or None.
        """
        return (problem.y if x0 is None else x0), Stateless()

    @abstractmethod
    def step(self, problem: Problem, point: Point, state: Any) -> Step:
        """The next iterate and state, from where ``g`` was evaluated last."""

    def learn(self, state: Any, point: Point, tried: Point, accepted: Tensor) -> Any:
        """The state with what an evaluation tells.

        Arguments:
            state: as the last step left it.
            point: where that step started.
            tried: where it went.
            accepted: the mask of the samples that stay there; the others go back.
        """
        return state

    def default_max_steps(self, ratio: float, lipschitz: float) -> int:
        """Steps that suffice: at worst every other one is refused, and leaves the next to the
        fixed-point step.

        Arguments:
            ratio: the largest ``(first residual / (1 - L)) / tolerance`` of a sample.
            lipschitz: the proven bound ``L``.
        """
        return 2 * picard_steps(ratio, share_kept(lipschitz))


def picard_steps(ratio: float, lipschitz: float) -> int:
    """The steps of the fixed-point iteration that shrink an error by ``ratio`` (Eq. 36)."""
    if ratio <= 1.0 or lipschitz == 0.0:
        return 1
    return max(1, math.ceil(math.log(ratio) / -math.log(lipschitz)))


def share_kept(lipschitz: float) -> float:
    """The share of a residual that a step may leave, halfway between ``L`` and 1."""
    return (1 + lipschitz) / 2
