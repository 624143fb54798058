r"""Gradients through the inverse, by the implicit function theorem.

From :math:`x + g(x) = y` follows :math:`dx = (I + J)^{-1} (dy - dg)`, with :math:`dg` the change of
g at fixed x through parameters and context. So a backward pass is one linear solve with
:math:`(I + J)^\top` at the solution; no step of the solver is recorded.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.func import functional_call, vjp

from ..errors import HigherOrderError
from ..linear_solve import DenseSolve, LinearSolve, auto_linear_solve
from ..linearization import Linearizable, Linearization

Adjoint = Callable[..., tuple[Tensor | None, ...]]


def implicit_inverse(
    contraction: nn.Module,
    g: Linearizable,
    solution: Tensor,
    y: Tensor,
    context: Tensor | None,
    *,
    lipschitz: float,
) -> Tensor:
    r"""The solution of ``x + g(x) = y``, differentiable in y, parameters and context.

    To second order for every D, to any order up to 32 coordinates; what is not, raises.

    Arguments:
        contraction: ``g`` as a module, called as ``contraction(x, context)``.
        g: the same with the weights that act in place.
        solution: ``x``, solved without gradients; receives none.
        y: shape ``(*batch, *event)``.
        context: shape ``(*batch, size)``, or None.
        lipschitz: the proven bound of ``Lip(g)``.
    """
    at_solution = g.linearize(solution.detach(), context)
    linear_solve = auto_linear_solve(at_solution.event_size)
    named = {name: p for name, p in contraction.named_parameters() if p.requires_grad}
    needs_context = context is not None and context.requires_grad
    held = (*named.values(), *((context,) if needs_context else ()))

    def adjoint(grad: Tensor, x: Tensor, *held: Tensor) -> tuple[Tensor | None, ...]:
        if not torch.is_grad_enabled():
            w = linear_solve(at_solution, grad, transpose=True, lipschitz=lipschitz)
            return w, *(None for _ in held)
        # A second derivative is under way, so J has to be a function of x, not numbers only.
        w = _solve_transposed(g.linearize(x, context), grad, lipschitz=lipschitz, by=linear_solve)

        def gradient_at(point: Tensor) -> tuple[Tensor, ...]:
            def minus_g(*held: Tensor) -> Tensor:
                parameters = dict(zip(named, held, strict=False))
                its_context = held[-1] if needs_context else context
                return -functional_call(contraction, parameters, (point, its_context))

            return vjp(minus_g, *held)[1](w)

        # The gradient reaches parameters and context through z, at x held fixed. What x adds to
        # its derivative is the same gradient as a function of x, less its value.
        moving, still = gradient_at(x), gradient_at(x.detach())
        return w, *(a - b for a, b in zip(moving, still, strict=True))

    return _Implicit.apply(y - at_solution.value, solution.detach(), adjoint, *held)


def _solve_transposed(j: Linearization, v: Tensor, *, lipschitz: float, by: LinearSolve) -> Tensor:
    """``(I + J)^{-T} v``, differentiable in ``v`` and in all that J depends on."""
    if isinstance(by, DenseSolve):
        return by(j, v, transpose=True, lipschitz=lipschitz)
    with torch.no_grad():
        w = by(j, v, transpose=True, lipschitz=lipschitz)

    def adjoint(grad: Tensor, _: Tensor) -> tuple[Tensor, ...]:
        if torch.is_grad_enabled():
            raise HigherOrderError(
                "The inverse has first and second derivatives; a third one, with more than 32 "
                "coordinates, would be wrong. Call backward without create_graph the second time."
            )
        return (by(j, grad, transpose=False, lipschitz=lipschitz),)

    return _Implicit.apply(v - j.vm(w), w, adjoint)


class _Implicit(Function):
    """A known solution of ``x + A(x) = z`` as a function of ``z = y - A(x)`` at fixed ``x``.

    ``adjoint(grad, x, *held)`` gives the gradients of ``z`` and of the tensors ``held``.
    """

    @staticmethod
    def forward(z: Tensor, solution: Tensor, adjoint: Adjoint, *held: Tensor) -> Tensor:
        return solution.clone()

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        _, _, ctx.adjoint, *held = inputs
        ctx.save_for_backward(output, *held)

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, *held = ctx.saved_tensors
        of_z, *of_held = ctx.adjoint(*grad_outputs, x, *held)
        return of_z, None, None, *of_held
