"""The value of ``g`` at a point, and its Jacobian as a linear map."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import vjp, vmap

from .._torch import disable_compiler
from .elementary import Matrices
from .linear_map import LinearMap


@dataclass(frozen=True)
class Linearization:
    """The value ``g(x)`` and the Jacobian ``J = dg/dx`` at ``x``.

    Both are differentiable in ``x``, in the parameters and in the context.

    Arguments:
        value: ``g(x)``, shape ``(*batch, *event)``.
        jacobian: ``J`` as a :class:`~pyro_iresnet.operators.LinearMap`.
        event_dim: the number of trailing dimensions that form one event.

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
        return self.value.shape[self.value.dim() - self.event_dim :].numel()

    def mv(self, v: Tensor) -> Tensor:
        """Return ``J v`` for ``v`` of shape ``(*lead, *batch, *event)``, the same shape."""
        return self.jacobian.mv(v)

    def vm(self, v: Tensor) -> Tensor:
        """Return ``J^T v`` for ``v`` of shape ``(*lead, *batch, *event)``, the same shape."""
        return self.jacobian.vm(v)

    def bilinear(self, left: Tensor, right: Tensor) -> Tensor:
        r"""Return :math:`\ell^\top J r` for each sample, shape ``(*lead, *batch)``."""
        left, right = self.jacobian.halfway(left, right)
        return self.sum_event(left * right)

    def as_matrix(self) -> Tensor:
        """Return ``J`` with events flattened, shape ``(*batch, D, D)``, in one batched pass."""
        return _as_matrix(self.jacobian, self.event_shape, self.value)

    def narrowed_matrix(self) -> Tensor:
        r"""Return a matrix ``A`` with :math:`\det(I + A) = \det(I + J)`, as small as is known.

        If a hidden layer of width k is narrower than D, Sylvester's identity
        :math:`\det(I_D + L R) = \det(I_k + R L)` gives a matrix of shape ``(*batch, k, k)``.
        """
        narrow = self.jacobian.narrowed()
        if narrow is self.jacobian:
            return _as_matrix(narrow, self.event_shape, self.value)
        return _as_matrix(narrow, narrow.widths()[:1], self.value)

    def trace(self, weight: Tensor | None = None) -> Tensor | None:
        """Return ``tr(M J)``, shape ``(*batch,)``, or None if it costs more than a few products.

        ``weight`` is ``M``, one matrix for all samples; the identity when None.
        """
        trace = self.jacobian.trace(weight)
        return None if trace is None else trace.expand(self.batch_shape)

    def select(self, index: Tensor) -> "Linearization":
        """Return the linearization of the samples ``index``, positions in the flattened batch."""
        flat = self.value.reshape(-1, *self.event_shape)
        return Linearization(flat[index], self.jacobian.select(index), self.event_dim)

    def sum_event(self, v: Tensor) -> Tensor:
        """Return the sum of ``v`` over its event dimensions."""
        return v.flatten(v.dim() - self.event_dim).sum(-1)

    def norm(self, v: Tensor) -> Tensor:
        """Return the Euclidean norm of ``v`` over its event dimensions."""
        return torch.linalg.vector_norm(v.flatten(v.dim() - self.event_dim), dim=-1)


def _as_matrix(a: LinearMap, event_shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Form a square map as a matrix with events flattened, shape ``(*batch, D, D)``, in one pass.

    ``like`` gives batch, dtype and device; its shape is ``(*batch, ...)``, with as many dimensions
    as ``(*batch, *event)``.
    """
    batch = like.shape[: like.dim() - len(event_shape)]
    if isinstance(a, Matrices):
        return a.matrices
    size = math.prod(event_shape)
    eye = torch.eye(size, dtype=like.dtype, device=like.device)
    basis = eye.reshape(size, *(1,) * len(batch), *event_shape)
    if a.transpose_is_cheaper:
        rows = a.vm(basis).expand(size, *batch, *event_shape)
        return rows.reshape(size, *batch, size).movedim(0, -2)
    columns = a.mv(basis).expand(size, *batch, *event_shape)
    return columns.reshape(size, *batch, size).movedim(0, -1)


# A compiler cannot carry a pullback from one graph to the next.
_uncompiled = disable_compiler("it differentiates a network of which only the calls are known")


@dataclass(frozen=True)
class Autograd(LinearMap):
    """The Jacobian of any function by automatic differentiation, one sweep for each product.

    ``function`` acts on each sample by itself, at ``x``, shape ``(*batch, *event)``, with a context
    or None. ``pullback`` is ``v -> J^T v``.
    """

    function: Callable[..., Tensor]
    x: Tensor
    context: Tensor | None
    event_dim: int
    pullback: Callable[[Tensor], tuple[Tensor]]

    @_uncompiled
    def mv(self, v: Tensor) -> Tensor:
        # The pullback is linear in its argument, so its own pullback is J itself: the user's
        # layers need no forward-mode rule, and g is not evaluated again.
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
    """Return the value of ``function`` at ``x`` and its Jacobian as an :class:`Autograd` map."""

    def at_context(point: Tensor) -> Tensor:
        return function(point) if context is None else function(point, context)

    pulled = vjp(at_context, x)
    return pulled[0], Autograd(function, x, context, event_dim, pulled[1])


def linearize_by_autograd(
    function: Callable[..., Tensor], x: Tensor, context: Tensor | None = None, event_dim: int = 1
) -> Linearization:
    """Linearize any ``g`` whose samples do not mix, by automatic differentiation.

    Each ``mv`` or ``vm`` of the result costs one sweep through ``function``.

    Arguments:
        function: ``g(x)``, or ``g(x, context)`` when a context is given.
        x: the point of linearization, shape ``(*batch, *event)``.
        context: passed on to ``function``, shape ``(*batch, size)``.
        event_dim: the number of trailing dimensions of ``x`` that form one event.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0, 1.0]])
        >>> linearize_by_autograd(lambda x: 0.5 * x**2, x).as_matrix()
        tensor([[[0., 0.],
                 [0., 1.]]])
    """
    value, jacobian = autograd_map(function, x, context, event_dim)
    return Linearization(value, jacobian, event_dim)


def vjp_of(function: Callable[[Tensor], Tensor], x: Tensor, w: Tensor) -> Tensor:
    """Return the product of ``w`` with the transposed Jacobian of a function at ``x``."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(function(x), x, w)[0]
