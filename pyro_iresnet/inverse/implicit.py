r"""Gradients through the inverse, by the implicit function theorem.

From :math:`x + g(x) = y` follows :math:`dx = (I + J)^{-1} (dy - dg)`, with :math:`dg` the change of
g at fixed x through parameters and context. So a backward pass is one linear solve with
:math:`(I + J)^\top` at the solution; no step of the solver is recorded.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import Function

from ..linear_solve import LinearSolve, auto_linear_solve
from ..linearization import Linearizable, Linearization


def implicit_inverse(
    g: Linearizable, solution: Tensor, y: Tensor, context: Tensor | None, *, lipschitz: float
) -> Tensor:
    """The solution of ``x + g(x) = y``, differentiable to any order in y, parameters and context.

    Arguments:
        g: with the weights that act in place.
        solution: ``x``, solved without gradients; receives none.
        y: shape ``(*batch, *event)``.
        context: shape ``(*batch, size)``, or None.
        lipschitz: the proven bound of ``Lip(g)``.
    """
    at_solution = g.linearize(solution.detach(), context)
    linear_solve = auto_linear_solve(at_solution.event_size)

    def adjoint(grad: Tensor, x: Tensor) -> Tensor:
        # A second derivative needs J as a function of x; a first one its numbers only.
        j = g.linearize(x, context) if torch.is_grad_enabled() else at_solution
        return _solve(j, grad, transpose=True, lipschitz=lipschitz, by=linear_solve)

    return _Implicit.apply(y - at_solution.value, solution.detach(), adjoint)


def _solve(
    j: Linearization, v: Tensor, *, transpose: bool, lipschitz: float, by: LinearSolve
) -> Tensor:
    """``(I + J)^{-1} v`` or its transpose, differentiable in ``v`` and in all that J depends on."""
    with torch.no_grad():
        w = by(j, v, transpose=transpose, lipschitz=lipschitz)
    if not torch.is_grad_enabled():
        return w
    product = j.vm if transpose else j.mv

    def adjoint(grad: Tensor, _: Tensor) -> Tensor:
        return _solve(j, grad, transpose=not transpose, lipschitz=lipschitz, by=by)

    return _Implicit.apply(v - product(w), w, adjoint)


class _Implicit(Function):
    """A known solution of ``x + A(x) = z`` as a function of ``z = y - A(x)`` at fixed ``x``."""

    @staticmethod
    def forward(z: Tensor, solution: Tensor, adjoint: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        return solution.clone()

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.adjoint = inputs[2]
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        return ctx.adjoint(*grad_outputs, x), None, None
