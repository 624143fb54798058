"""What a solver is: a strategy with ``init`` and ``step``; the loop is elsewhere."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

from torch import Tensor

from ..errors import check_not_negative, check_positive, check_positive_int
from ..linearization import Linearizable


@dataclass(frozen=True)
class Problem:
    """``x + g(x) = y`` for the samples that are still at work.

    Arguments:
        g: with the weights that act in place.
        y: shape ``(n, *event)``.
        context: shape ``(n, size)``, or None.
        lipschitz: the proven bound of ``Lip(g)``.
    """

    g: Linearizable
    y: Tensor
    context: Tensor | None
    lipschitz: float

    def select(self, index: Tensor) -> "Problem":
        """The problem of the samples ``index`` only."""
        context = None if self.context is None else self.context[index]
        return replace(self, y=self.y[index], context=context)


@dataclass(frozen=True)
class Solver(ABC):
    """A way to go from one iterate to the next.

    To write one, define :meth:`init`, :meth:`step` and :meth:`default_max_steps`. A state is a
    tuple of tensors whose first dimension counts the samples: the loop drops the rows of those
    that are done.

    Attributes:
        rtol: relative tolerance; by default 1e-6 in float32, 1e-10 in float64.
        atol: absolute tolerance, in the units of ``x``; by default 0.
        max_steps: by default what the solver's theory says.
    """

    rtol: float | None = None
    atol: float = 0.0
    max_steps: int | None = None

    def __post_init__(self) -> None:
        if self.rtol is not None:
            check_positive(self.rtol, "rtol")
        check_not_negative(self.atol, "atol")
        if self.max_steps is not None:
            check_positive_int(self.max_steps, "max_steps")

    @abstractmethod
    def init(self, problem: Problem, x: Tensor) -> tuple[Tensor, ...]:
        """The state before the first step, from the start ``x``."""

    @abstractmethod
    def step(
        self, problem: Problem, x: Tensor, residual: Tensor, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The next iterate and state, from ``x`` and its ``residual`` ``x + g(x) - y``."""

    @abstractmethod
    def default_max_steps(self, ratio: float, lipschitz: float) -> int:
        """Steps that suffice.

        Arguments:
            ratio: the largest ``(first residual / (1 - L)) / tolerance`` of a sample.
            lipschitz: the proven bound ``L``.
        """
