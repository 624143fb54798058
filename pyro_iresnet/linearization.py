"""``g`` at a point: its value, and its Jacobian as a linear map."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import vjp, vmap

from .linear_maps import LinearMap, as_matrix
from .torch_modes import disable_compiler


@dataclass(frozen=True)
class Linearization:
    """``g(x)`` and ``J = dg/dx`` at ``x``, both differentiable in ``x``, parameters and context.

    Arguments:
        value: ``g(x)``, shape ``(*batch, *event)``.
        jacobian: ``J`` as a :class:`~pyro_iresnet.linear_maps.LinearMap`.
        event_dim: how many trailing dimensions form one event.

    Example:
        >>> import torch
        >>> from pyro_iresnet import DenseContraction
        >>> linearization = DenseContraction(3).linearize(torch.zeros(5, 3))
        >>> linearization.mv(torch.ones(5, 3)).shape, linearization.as_matrix().shape
        (torch.Size([5, 3]), torch.Size([5, 3, 3]))
    """

    value: Tensor
    jacobian: LinearMap
    event_dim: int = 1

    @property
    def batch_shape(self) -> torch.Size:
        return self.value.shape[: self.value.dim() - self.event_dim]

    @property
    def event_shape(self) -> torch.Size:
        return self.value.shape[self.value.dim() - self.event_dim :]

    @property
    def event_size(self) -> int:
        return self.event_shape.numel()

    def mv(self, v: Tensor) -> Tensor:
        """``J v`` for ``v`` of shape ``(*lead, *batch, *event)``, the same shape."""
        return self.jacobian.mv(v)

    def vm(self, v: Tensor) -> Tensor:
        """``J^T v`` for ``v`` of shape ``(*lead, *batch, *event)``, the same shape."""
        return self.jacobian.vm(v)

    def bilinear(self, left: Tensor, right: Tensor) -> Tensor:
        r""":math:`\ell^\top J r` for each sample, shape ``(*lead, *batch)``."""
        left, right = self.jacobian.halfway(left, right)
        return self.sum_event(left * right)

    def as_matrix(self) -> Tensor:
        """``J`` with events flattened, shape ``(*batch, D, D)``, in one batched pass."""
        return as_matrix(self.jacobian, tuple(self.event_shape), self.value)

    def narrowed_matrix(self) -> Tensor:
        r"""A matrix ``A`` with :math:`\det(I + A) = \det(I + J)`, as small as is known.

        Where a hidden layer of width k is narrower than D, Sylvester's identity
        :math:`\det(I_D + L R) = \det(I_k + R L)` gives one of shape ``(*batch, k, k)``.
        """
        narrow = self.jacobian.narrowed()
        if narrow is self.jacobian:
            return self.as_matrix()
        return as_matrix(narrow, narrow.widths()[:1], self.value)

    def trace(self, weight: Tensor | None = None) -> Tensor | None:
        """``tr J``, shape ``(*batch,)``, where it costs no more than a few products, else None.

        Arguments:
            weight: for ``tr(M J)``, a matrix ``M`` for all samples.
        """
        trace = self.jacobian.trace(weight)
        return None if trace is None else trace.expand(self.batch_shape)

    def select(self, index: Tensor) -> "Linearization":
        """That of the samples ``index`` (positions in the flattened batch, repeats allowed)."""
        flat = self.value.reshape(-1, *self.event_shape)
        return Linearization(flat[index], self.jacobian.select(index), self.event_dim)

    def sum_event(self, v: Tensor) -> Tensor:
        """``v`` summed over its event dimensions."""
        return v.flatten(v.dim() - self.event_dim).sum(-1)

    def norm(self, v: Tensor) -> Tensor:
        """The Euclidean norm of ``v`` over its event dimensions."""
        return torch.linalg.vector_norm(v.flatten(v.dim() - self.event_dim), dim=-1)


class Acting(ABC):
    """``g`` with its acting weights in place: what the log-determinants and the inverse need."""

    @property
    def closed_form(self) -> bool:
        """Whether ``linearize`` costs little more than a call."""
        return True

    @abstractmethod
    def __call__(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """``g(x)``, shape ``(*batch, *event)``."""

    @abstractmethod
    def linearize(self, x: Tensor, context: Tensor | None = None) -> Linearization:
        """``g(x)`` and the Jacobian at ``x``."""

    @abstractmethod
    def lipschitz_bound(self) -> Tensor:
        """A proven upper bound of ``Lip(g)`` with these weights, a scalar."""

    def rounding(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        r"""How far rounding may move the computed ``g(x)``, its Euclidean norm: an estimate.

        Here for a network of which nothing is known: :math:`4 \epsilon` times the largest of
        the norms of ``x`` and ``g(x)`` and of 1, the size of the hidden layers for standardised
        data.

        Arguments:
            x: shape ``(n, *event)``.
            context: shape ``(n, size)``.

        Returns:
            shape ``(n,)``.
        """
        sizes = [torch.linalg.vector_norm(v.flatten(1), dim=1) for v in (x, self(x, context))]
        return 4 * torch.finfo(x.dtype).eps * torch.maximum(*sizes).clamp(min=1.0)


# A compiler cannot carry a pullback from one graph to the next.
_uncompiled = disable_compiler("it differentiates a network of which only the calls are known")


@dataclass(frozen=True)
class Autograd(LinearMap):
    """The Jacobian of any function by automatic differentiation, one sweep for each product.

    Arguments:
        function: ``g``, acting on each sample by itself.
        x: where to linearize, shape ``(*batch, *event)``.
        context: the context, shape ``(*batch, size)``, or None.
        event_dim: how many trailing dimensions of ``x`` form one event.
        pullback: ``v -> J^T v``.
    """

    function: Callable[..., Tensor]
    x: Tensor
    context: Tensor | None
    event_dim: int
    pullback: Callable[[Tensor], tuple[Tensor]]

    @_uncompiled
    def mv(self, v: Tensor) -> Tensor:
        # The pullback is linear in its argument, so its own pullback is J itself: no
        # forward-mode rule is asked of the user's layers, and g is not evaluated again.
        pushforward = vjp(lambda u: self.pullback(u)[0], torch.zeros_like(self.x))[1]
        return self._over_leading(lambda u: pushforward(u)[0], v)

    @_uncompiled
    def vm(self, v: Tensor) -> Tensor:
        return self._over_leading(lambda u: self.pullback(u)[0], v)

    def _over_leading(self, product: Callable[[Tensor], Tensor], v: Tensor) -> Tensor:
        shape = self.x.shape
        if v.dim() <= self.x.dim():
            return product(v.expand(shape))
        lead = v.shape[: v.dim() - self.x.dim()]
        flat = v.expand(*lead, *shape).flatten(0, len(lead) - 1)
        return vmap(product)(flat).reshape(*lead, *shape)

    def select(self, index: Tensor) -> "Autograd":
        event = self.x.shape[self.x.dim() - self.event_dim :]
        x = self.x.reshape(-1, *event)[index]
        context = self.context
        if context is not None:
            batch = self.x.shape[: self.x.dim() - self.event_dim]
            context = context.expand(*batch, context.shape[-1])
            context = context.reshape(-1, context.shape[-1])[index]
        return autograd_map(self.function, x, context, self.event_dim)[1]


@_uncompiled
def autograd_map(
    function: Callable[..., Tensor], x: Tensor, context: Tensor | None, event_dim: int
) -> tuple[Tensor, Autograd]:
    """The value of ``function`` at ``x`` and its Jacobian as an :class:`Autograd` map."""

    def at_context(point: Tensor) -> Tensor:
        return function(point) if context is None else function(point, context)

    pulled = vjp(at_context, x)
    return pulled[0], Autograd(function, x, context, event_dim, pulled[1])


def linearize_by_autograd(
    function: Callable[..., Tensor], x: Tensor, context: Tensor | None = None, event_dim: int = 1
) -> Linearization:
    """Linearize any ``g`` whose samples do not mix, by automatic differentiation.

    Arguments:
        function: ``g(x)``, or ``g(x, context)`` when a context is given.
        x: where, shape ``(*batch, *event)``.
        context: passed on to ``function``, shape ``(*batch, size)``.
        event_dim: how many trailing dimensions of ``x`` form one event.

    Returns:
        A :class:`Linearization`; each ``mv`` or ``vm`` costs one sweep through ``function``.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0, 1.0]])
        >>> linearize_by_autograd(lambda x: 0.5 * x**2, x).as_matrix()
        tensor([[[0., 0.],
                 [0., 1.]]])
    """
    value, jacobian = autograd_map(function, x, context, event_dim)
    return Linearization(value, jacobian, event_dim)
