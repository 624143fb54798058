"""What ``g`` must be: :class:`Contraction`, the base of every contractive network."""

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ArgumentError, check_lipschitz, check_tensor
from ..linearization import Acting, Linearization, linearize_by_autograd


class Contraction(nn.Module, ABC):
    r"""A network :math:`g` with :math:`\mathrm{Lip}(g) \le L < 1` in ``x``, for every context.

    To write one, set the attributes below in ``__init__`` and define :meth:`forward` and
    :meth:`lipschitz_bound`. That suffices: the Jacobian then comes from automatic
    differentiation. For speed define :meth:`acting` too, and return an object that holds the
    weights that act and knows its Jacobian in closed form. :mod:`pyro_iresnet.testing` has the
    checks that a new contraction must pass.

    Rules: samples do not mix; the weights that act are a pure function of the parameters, so a
    call changes nothing, and gives the same in train and eval mode.

    Attributes:
        event_shape: the shape of one event, with -1 for a size that may vary.
        context_dim: the size of the context, or None if there is none.
        lipschitz: the constant promised, in (0, 1).

    Raises:
        ArgumentError, ArgumentTypeError: by :meth:`check`, which blocks call: an input or a context
            of the wrong shape, dtype or device, or a context too many or missing.

    Example:
        >>> import torch
        >>> from pyro_iresnet import Contraction, ResidualBlock
        >>> class HalfSine(Contraction):
        ...     def __init__(self, dim):
        ...         super().__init__()
        ...         self.event_shape, self.context_dim, self.lipschitz = (dim,), None, 0.5
        ...     def forward(self, x, context=None):
        ...         return 0.5 * x.sin()
        ...     def lipschitz_bound(self):
        ...         return torch.tensor(0.5)
        >>> block = ResidualBlock(HalfSine(3))
    """

    event_shape: tuple[int, ...]
    context_dim: int | None
    lipschitz: float
    # What the open `cached` blocks share, the innermost last; see caching.py.
    _shared_acting: tuple[object, ...] = ()

    def check_complete(self) -> None:
        """Raise unless ``__init__`` has set what a contraction says of itself."""
        missing = [n for n in ("event_shape", "context_dim", "lipschitz") if not hasattr(self, n)]
        if missing:
            raise ArgumentError(
                f"Expected {type(self).__name__}.__init__ to set {', '.join(missing)}; it does not."
                " Set event_shape to the shape of one event, such as (2,), context_dim to None or "
                "a size, and lipschitz to the constant promised, in (0, 1)."
            )
        check_lipschitz(self.lipschitz)

    @property
    def event_dim(self) -> int:
        """How many trailing dimensions form one event: 1 for vectors, 3 for images."""
        return len(self.event_shape)

    @property
    def event_size(self) -> int | None:
        """The number of coordinates of one event, or None where it may vary."""
        return None if -1 in self.event_shape else math.prod(self.event_shape)

    @abstractmethod
    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """``g(x)``, shape ``(*batch, *event)``."""

    @abstractmethod
    def lipschitz_bound(self) -> Tensor:
        """A proven upper bound of ``Lip(g)`` at the present parameters, a scalar."""

    def acting(self) -> Acting:
        """``g`` with the weights that act in place: computed once, for many evaluations."""
        return _ByAutograd(self)

    def __getstate__(self) -> dict[str, Any]:
        # What an open `cached` block shares holds an autograd graph, which neither copies nor
        # pickles.
        return {k: v for k, v in vars(self).items() if k != "_shared_acting"}

    def linearize(self, x: Tensor, context: Tensor | None = None) -> Linearization:
        """``g(x)`` and the Jacobian at ``x``, in one pass."""
        x, context = self.check(x, context)
        return self.acting().linearize(x, context)

    def check(
        self, x: Tensor, context: Tensor | None = None, name: str = "x"
    ) -> tuple[Tensor, Tensor | None]:
        """Check ``x`` and ``context`` and broadcast their batches, or raise.

        Raises:
            ArgumentError: a wrong event shape, a missing or superfluous context, or batch shapes
                that do not broadcast.
            ArgumentTypeError: a dtype other than that of the parameters.
        """
        like = self._floating()
        check_tensor(x, self.event_shape, like, name)
        self._check_context(context, like)
        if context is None:
            return x, None
        batch = x.shape[: x.dim() - self.event_dim]
        if context.shape[:-1] == batch:
            return x, context
        try:
            batch = torch.broadcast_shapes(batch, context.shape[:-1])
        except RuntimeError as error:
            raise ArgumentError(
                f"Expected batch shapes that broadcast; got {tuple(batch)} of {name} and "
                f"{tuple(context.shape[:-1])} of context."
            ) from error
        event = x.shape[x.dim() - self.event_dim :]
        return x.expand(*batch, *event), context.expand(*batch, context.shape[-1])

    def check_context(self, context: Tensor | None) -> None:
        """Check a context before there is an ``x``, or raise.

        Raises:
            ArgumentError: a wrong size, or a missing or superfluous context.
            ArgumentTypeError: a dtype other than that of the parameters.
        """
        self._check_context(context, self._floating())

    def _check_context(self, context: Tensor | None, like: Tensor | None) -> None:
        if context is None and self.context_dim is not None:
            raise ArgumentError(
                f"Expected a context of size {self.context_dim}; got none. Pass context=..."
            )
        if context is None:
            return
        if self.context_dim is None:
            raise ArgumentError(
                "Expected no context; got one. Build the contraction with context_dim to use it."
            )
        check_tensor(context, (self.context_dim,), like, "context")

    def _floating(self) -> Tensor | None:
        return next((p for p in self.parameters() if p.is_floating_point()), None)


class _ByAutograd(Acting):
    """A contraction as its own acting function, with the Jacobian by automatic differentiation."""

    @property
    def closed_form(self) -> bool:
        return False

    def __init__(self, contraction: Contraction) -> None:
        self._contraction = contraction

    def __call__(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self._contraction.forward(x, context)

    def linearize(self, x: Tensor, context: Tensor | None = None) -> Linearization:
        return linearize_by_autograd(
            self._contraction.forward, x, context, self._contraction.event_dim
        )

    def lipschitz_bound(self) -> Tensor:
        return self._contraction.lipschitz_bound()
