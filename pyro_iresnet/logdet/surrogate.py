"""A value with the gradient of a surrogate, to first order only."""

import torch
from torch import Tensor
from torch.autograd import Function

from .._torch import undifferentiable

FIRST_ONLY = (
    "Roulette gives first derivatives only: the derivative of its gradient estimate is no estimate "
    "of the second derivative. Use Exact(), or call eval() on a module whose logdet is "
    "ByMode(train=Roulette(), evaluate=Exact())."
)


def value_with_gradient_of(value: Tensor, surrogate: Tensor) -> Tensor:
    """Return ``value``, with the first derivatives of ``surrogate``, a tensor of the same shape.

    ``value`` receives no gradient. A second derivative raises :class:`HigherOrderError`, since the
    second derivative of the surrogate is not that of the log-determinant.
    """
    return _ValueWithGradientOf.apply(value, surrogate)


class _ValueWithGradientOf(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, surrogate: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor) -> tuple[None, Tensor]:
        if not torch.is_grad_enabled():
            return None, grad_outputs[0]
        (surrogate,) = ctx.saved_tensors
        return None, undifferentiable(grad_outputs[0], FIRST_ONLY, surrogate)
