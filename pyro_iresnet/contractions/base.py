"""Base class of every contractive network ``g``."""

import math
from abc import ABC, abstractmethod
from typing import Any, Self

import torch
from torch import Tensor

from .._settings import SavedSettings
from .._torch import full_precision, is_tracing
from ..errors import ArgumentError, ArgumentTypeError, TracingError, check_lipschitz, check_tensor
from ..operators import ContractionMap, Linearization, linearize_by_autograd
from ..operators.solve import check_resolved
from .hooks import HOOKS, refuse_forward, refuse_hooks


class Contraction(SavedSettings, ABC):
    r"""A network :math:`g` with :math:`\mathrm{Lip}(g) \le L < 1` in ``x``, for every context.

    To write one, set the attributes below in ``__init__`` and define :meth:`forward` and
    :meth:`lipschitz_bound`. The Jacobian then comes from automatic differentiation. A list of
    layers is faster: see :class:`LayeredContraction`. :mod:`pyro_iresnet.testing` has the checks
    that a new contraction must pass.

    Samples must not mix. The weights that act must be a pure function of the parameters: a call
    changes nothing, and train and eval mode give the same value.

    A state dict holds the class and ``lipschitz``, and loading another class or constant raises.
    Extend :meth:`settings` by any other setting that changes the function.

    Attributes:
        event_shape: the shape of one event, with -1 for a size that may vary.
        context_dim: the size of the context, or None for no context.
        lipschitz: the promised constant, in (0, 1).

    Raises:
        ArgumentError, ArgumentTypeError: by :meth:`check`: an input or a context of the wrong
            shape, dtype or device, or a context too many or missing.

    Example:
        >>> import torch
        >>> from pyro_iresnet import ResidualBlock
        >>> from pyro_iresnet.contractions import Contraction
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
    # Maps that an open `cached` block or a running stack shares, the innermost last.
    _shared: tuple[Any, ...] = ()
    # Maps kept in eval mode, by inference mode.
    _kept: dict[bool, Any] = {}  # noqa: RUF012

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        first = next(k for k in cls.__mro__ if "forward" in vars(k) or "materialize" in vars(k))
        if "materialize" not in vars(first) and cls.materialize is not Contraction.materialize:
            raise ArgumentTypeError(
                f"Expected {cls.__name__} to leave forward as it is; {first.__name__} defines one, "
                "which a block would not call. Define materialize too, or for a network of layers "
                "raw_weights and layers_with, or subclass Contraction."
            )

    def check_complete(self) -> None:
        """Raise unless ``__init__`` has set the attributes of a contraction."""
        missing = [n for n in ("event_shape", "context_dim", "lipschitz") if not hasattr(self, n)]
        if missing:
            raise ArgumentError(
                f"Expected {type(self).__name__}.__init__ to set {', '.join(missing)}; it does not."
                " Set event_shape to the shape of one event, such as (2,), context_dim to None or "
                "a size, and lipschitz to the constant promised, in (0, 1)."
            )
        self._check_constant()

    def settings(self) -> dict[str, Any]:
        # An unfinished network has no constant.
        return {**super().settings(), "lipschitz": getattr(self, "lipschitz", None)}

    @property
    def event_dim(self) -> int:
        """The number of trailing dimensions of one event: 1 for vectors, 3 for images."""
        return len(self.event_shape)

    @property
    def event_size(self) -> int | None:
        """The number of coordinates of one event, or None if the number may vary."""
        return None if -1 in self.event_shape else math.prod(self.event_shape)

    @abstractmethod
    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return ``g(x)``, shape ``(*batch, *event)``."""

    @abstractmethod
    def lipschitz_bound(self) -> Tensor:
        """Return a proven upper bound of ``Lip(g)`` at the present parameters, a scalar."""

    def materialize(self) -> ContractionMap:
        """Return ``g`` with its acting weights in place, computed once for many evaluations."""
        return _ByAutograd(self)

    def train(self, mode: bool = True) -> Self:
        """Enter train or eval mode; train mode frees what eval mode has kept."""
        if mode and self._kept:
            self._kept = {}
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        # Maps hold an autograd graph, and a graph neither copies nor pickles.
        return {k: v for k, v in vars(self).items() if k not in ("_shared", "_kept")}

    def linearize(self, x: Tensor, context: Tensor | None = None) -> Linearization:
        """Return ``g(x)`` and the Jacobian at ``x``, in one pass."""
        x, context = self.check(x, context)
        with full_precision(x):
            g = self.materialize()
        return g.linearize(x, context)

    def check(
        self, x: Tensor, context: Tensor | None = None, name: str = "x"
    ) -> tuple[Tensor, Tensor | None]:
        """Check ``x`` and ``context`` and broadcast their batches, or raise.

        Raises:
            ArgumentError: a wrong event shape, a missing or superfluous context, or batch shapes
                that do not broadcast.
            ArgumentTypeError: a dtype or device other than that of the parameters.
        """
        if any(map(vars(self).get, HOOKS)):
            refuse_hooks(self, "contraction")
        like = self._floating()
        check_tensor(x, self.event_shape, like, name)
        if context is None and self.context_dim is None:
            return x, None
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
        wide = (*batch, *x.shape[x.dim() - self.event_dim :])
        # The tensor itself if its shape fits: a memory knows a tensor by its identity.
        x = x if x.shape == wide else x.expand(wide)
        return x, context.expand(*batch, context.shape[-1])

    def check_uncalled(self, name: str = "contraction") -> None:
        """Raise for what hangs on the call of the contraction, which a block never makes."""
        if any(map(vars(self).get, HOOKS)):
            refuse_hooks(self, name)
        if "forward" in vars(self) and type(self).materialize is not Contraction.materialize:
            refuse_forward(self, name)

    def check_context(self, context: Tensor | None) -> None:
        """Check a context before there is an ``x``; errors as in :meth:`check`."""
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

    def _check_constant(self) -> None:
        """Raise unless the dtype of the parameters, or torch's default, resolves the constant."""
        like = self._floating()
        dtype = torch.get_default_dtype() if like is None else like.dtype
        check_resolved(dtype, check_lipschitz(self.lipschitz))

    def _floating(self) -> Tensor | None:
        for parameter in self.parameters():
            if parameter.is_floating_point():
                return parameter
        return None


class _ByAutograd(ContractionMap):
    """A contraction as its own map, with the Jacobian by automatic differentiation."""

    @property
    def closed_form(self) -> bool:
        return False

    def __init__(self, contraction: Contraction) -> None:
        self._contraction = contraction

    def __call__(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self._contraction.forward(x, context)

    def linearize(self, x: Tensor, context: Tensor | None = None) -> Linearization:
        if is_tracing():
            raise TracingError(
                f"{type(self._contraction).__name__} cannot be traced by torch.jit: its Jacobian "
                "comes from automatic differentiation, inside which a trace reads no shapes. Use "
                "torch.compile, or a contraction made of layers."
            )
        return linearize_by_autograd(
            self._contraction.forward, x, context, self._contraction.event_dim
        )

    def lipschitz_bound(self) -> Tensor:
        return self._contraction.lipschitz_bound()
