"""Under which of torch's modes a call runs, and which calls refuse to run there.

Every private name of torch that the package needs stands here.
"""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor
from torch._C import _functorch as functorch  # pyright: ignore[reportAttributeAccessIssue]
from torch.autograd import Function, forward_ad

from .errors import HigherOrderError, TracingError

P = ParamSpec("P")
R = TypeVar("R")


def is_tracing() -> bool:
    """Whether ``torch.jit.trace`` is recording."""
    return torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]


def in_torch_func() -> bool:
    """Whether a transform of torch.func (vmap, grad, jvp, ...) is active."""
    return torch._C._are_functorch_transforms_active()


def in_forward_mode() -> bool:
    """Whether forward-mode differentiation is active."""
    return forward_ad._current_level >= 0


def is_compiling() -> bool:
    """Whether ``torch.compile`` or ``torch.export`` is recording."""
    return torch.compiler.is_compiling()


def disable_compiler(reason: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator that keeps ``torch.compile`` out of a function, and says why."""
    return torch.compiler.disable(reason=reason)


def in_plain_autograd() -> bool:
    """Whether reverse mode is all that may look at a call: no recorder, no transform of torch.func.

    Only there a fused rule pays and is safe: a compiler fuses by itself, the others want to see
    the operations.
    """
    return not (is_compiling() or is_tracing() or in_forward_mode() or in_torch_func())


def full_precision(like: Tensor) -> torch.autocast:
    """Autocast off: of rounded weights no bound would hold, nor would a certificate."""
    return torch.autocast(like.device.type, enabled=False)


def undifferentiable(value: Tensor, of: Tensor, message: str) -> Tensor:
    """``value``, a function of ``of`` whose derivative would be wrong: asked for, it raises.

    Raises:
        HigherOrderError: with ``message``, when differentiated in ``value`` or ``of``.
    """
    return _Undifferentiable.apply(value, of, message)


class _Undifferentiable(Function):
    """The identity of its first argument; takes the second so that it stands in its graph."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, of: Tensor, message: str) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.message = inputs[2]

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        raise HigherOrderError(ctx.message)


def refuse_forward_mode(what: str, tensor: Tensor) -> None:
    """Raise under forward-mode differentiation, which would go through a random draw."""
    if is_compiling():
        return
    if in_forward_mode() and forward_ad.unpack_dual(tensor).tangent is not None:
        raise HigherOrderError(
            f"{what} has no forward-mode derivative (torch.func.jvp, jacfwd, hessian). Use reverse "
            "mode (grad, jacrev, vjp), or Exact() for the log-determinant."
        )


def refuse_transforms(what: str, tensor: Tensor) -> None:
    """Raise under ``torch.jit.trace``, which would record one run of ``what`` as if it were all,
    and under ``torch.func.vmap``, which knows no loop whose length depends on the data.

    A compiler refuses by itself what it cannot record."""
    if is_compiling():
        return
    if is_tracing():
        raise TracingError(
            f"{what} cannot be traced by torch.jit: its random draws or its number of steps would "
            "be frozen at those of the example. Use Exact() for the log-determinant and keep the "
            "inverse out of the trace."
        )
    if functorch.is_legacy_batchedtensor(tensor):
        raise TracingError(
            f"{what} cannot run under is_grads_batched or vectorize: its steps depend on the data. "
            "Take one vector at a time."
        )
    while functorch.is_functorch_wrapped_tensor(tensor):
        if functorch.is_batchedtensor(tensor):
            raise TracingError(
                f"{what} cannot run under torch.func.vmap, nor under what is made of it (jacrev, "
                "hessian) where that runs it again: its steps depend on the data. It takes a batch "
                "as it is: call it without vmap, or use Exact() for the log-determinant."
            )
        tensor = functorch.get_unwrapped(tensor)
