"""A user's own network as a contraction."""

import torch
from torch import Tensor, nn

from ..errors import (
    ArgumentError,
    ArgumentTypeError,
    check_instance,
    check_lipschitz,
    check_positive_int,
)
from .base import Contraction


class Wrapped(Contraction):
    """A module whose Lipschitz constant the user knows; see :func:`wrap`, which makes one."""

    def __init__(
        self, module: nn.Module, bound: float, event_dim: int, context_dim: int | None
    ) -> None:
        super().__init__()
        self.module = check_instance(module, nn.Module, "module", "torch.nn.Linear(2, 2)")
        self.lipschitz = check_lipschitz(bound, "bound")
        self.event_shape = (-1,) * check_positive_int(event_dim, "event_dim")
        self.context_dim = (
            None if context_dim is None else check_positive_int(context_dim, "context_dim")
        )
        # A module without parameters still has to know the dtype and device of its bound.
        self.register_buffer("_like", torch.empty(0), persistent=False)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        x, context = self.check(x, context)
        # Tensors of inference mode count no versions.
        version = None if x.is_inference() else x._version
        value = self.module(x) if context is None else self.module(x, context)
        if version is not None and x._version != version:
            raise ArgumentError(
                "Expected module to leave x as it is; it changed it in place. Build its layers "
                "with inplace=False."
            )
        if not isinstance(value, Tensor):
            raise ArgumentTypeError(
                f"Expected module to return a tensor; it returned {type(value).__name__}."
            )
        if value.shape != x.shape:
            raise ArgumentError(
                f"Expected module to keep the shape {tuple(x.shape)} of x; "
                f"it returned {tuple(value.shape)}."
            )
        return value

    def lipschitz_bound(self) -> Tensor:
        floating = (p for p in self.parameters() if p.is_floating_point())
        return next(floating, self.get_buffer("_like")).new_tensor(self.lipschitz)


def wrap(
    module: nn.Module, *, bound: float, event_dim: int = 1, context_dim: int | None = None
) -> Contraction:
    r"""Make a contraction of your own network and its Lipschitz constant.

    The constant is taken on your word: :math:`\mathrm{Lip}(g) \le` ``bound`` in ``x`` for every
    context. Where the inverse sees a pair of points stretched by more, it raises. The Jacobian
    comes from automatic differentiation, so every operation of the module must be differentiable
    twice for the gradient of a log-determinant.

    Arguments:
        module: called as ``module(x)``, or ``module(x, context)`` with a ``context_dim``; it keeps
            the shape ``(*batch, *event)`` and does not mix samples.
        bound: its Lipschitz constant, in (0, 1).
        event_dim: how many trailing dimensions form one event: 1 for vectors, 3 for images.
        context_dim: the size of the context, if the module takes one.

    Raises:
        ArgumentError: ``bound`` outside (0, 1).
        ArgumentTypeError: ``module`` is no ``torch.nn.Module``.

    Example:
        >>> import torch
        >>> from pyro_iresnet import ResidualBlock, wrap
        >>> class HalfSine(torch.nn.Module):
        ...     def forward(self, x):
        ...         return 0.5 * x.sin()
        >>> block = ResidualBlock(wrap(HalfSine(), bound=0.5))
        >>> y, logdet = block.forward_and_logdet(torch.zeros(1, 3))
        >>> torch.allclose(logdet, 3 * torch.tensor([1.5]).log())
        True
    """
    return Wrapped(module, bound, event_dim, context_dim)
