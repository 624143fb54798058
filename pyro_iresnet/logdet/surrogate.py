"""A value with the gradient of a surrogate, to first order only."""

import torch
from torch import Tensor
from torch.autograd import Function

from .._torch import undifferentiable


def value_with_gradient_of(value: Tensor, surrogate: Tensor) -> Tensor:
    """``value``, with the first derivatives of ``surrogate``; a second derivative raises.

    Arguments:
        value: the tensor to return; receives no gradient.
        surrogate: the tensor that receives the gradient, of the same shape.

    Raises:
        HigherOrderError: when differentiated twice, since the second derivative of the surrogate
            is not the second derivative of the log-determinant.
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
        return None, undifferentiable(
            grad_outputs[0],
            surrogate,
            "Roulette gives first derivatives only: the derivative of its gradient estimate is no "
            "estimate of the second derivative. Use Exact(), or call eval() on a module whose "
            "logdet is ByMode(train=Roulette(), evaluate=Exact()).",
        )
