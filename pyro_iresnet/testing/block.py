"""Check of a block."""

import torch
from torch import Tensor

from ..blocks import Block
from ..errors import ArgumentError, check_instance
from .promises import check_batch, close


def check_block(block: Block, x: Tensor, context: Tensor | None = None) -> None:
    """Check that inverse, log-determinant and products of a block fit its way forward.

    The Jacobian is that of automatic differentiation, one backward pass for each coordinate.

    Arguments:
        block: the block to check; in float64, so that rounding does not hide a fault, and with a
            log-determinant that is not drawn: in eval mode, or with ``logdet=Exact()``.
        x: some 20 points, shape ``(n, *event)``.
        context: shape ``(n, size)``, for a conditional block.

    Raises:
        AssertionError: a promise is broken; the message names it, with the numbers.
        ArgumentError, ArgumentTypeError: ``block`` is no block, or its log-determinant is drawn.

    Example:
        >>> import torch
        >>> from pyro_iresnet import DenseContraction, ResidualBlock, testing
        >>> block = ResidualBlock(DenseContraction(3)).double()
        >>> testing.check_block(block, torch.randn(20, 3, dtype=torch.float64))
    """
    check_instance(block, Block, "block", "ResidualBlock(DenseContraction(2))")
    check_batch(block.contraction, x)
    x, context = block.check(x.detach().requires_grad_(), context)
    evaluation = block.evaluate(x, context)
    if evaluation.drawn_by:
        raise ArgumentError(
            f"Expected block with a log-determinant that is not drawn; {evaluation.drawn_by} "
            "draws. Call block.eval() first, or make the block with logdet=Exact()."
        )
    y, n = evaluation.y, len(x)
    rows = [
        torch.autograd.grad(part.sum(), x, retain_graph=True)[0].reshape(n, -1)
        for part in y.reshape(n, -1).unbind(1)
    ]
    jacobian = torch.stack(rows, 1)
    alone = block(x[:1], None if context is None else context[:1])
    close(alone, y[:1], "the value of a sample depends on the other samples")
    exact = torch.linalg.slogdet(jacobian).logabsdet
    differs = "differs from the Jacobian of the way forward"
    close(evaluation.log_det(), exact, f"log_det {differs}")

    w = torch.randn_like(y)
    flat = w.reshape(n, -1, 1)
    back = torch.linalg.solve(jacobian.mT, flat).reshape(w.shape)
    close(evaluation.vjp(w), (jacobian.mT @ flat).reshape(w.shape), f"vjp {differs}")
    close(evaluation.inverse_vjp(w), back, f"inverse_vjp {differs}")
    end = y.detach().requires_grad_()
    inverse = block.evaluate_inverse(end, context)
    close(inverse.x, x, "the inverse does not lead back to x")
    close(inverse.log_det(), exact, f"log_det of the inverse {differs}")
    (found,) = torch.autograd.grad((inverse.x * w).sum(), end)
    close(found, back, f"the gradient through the inverse {differs}")
