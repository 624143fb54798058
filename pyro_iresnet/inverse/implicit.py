r"""Gradients through the inverse, by the implicit function theorem.

From :math:`x + g(x) = y` follows :math:`dx = (I + J)^{-1} (dy - dg)`, with :math:`dg` the change of
g at fixed x through parameters and context. A backward pass is one linear solve with :math:`(I +
J)^\top` at the solution, and no step of the solver is recorded.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.func import functional_call, vjp

from .._torch import full_precision, no_forward_mode, undifferentiable
from ..errors import HigherOrderError, TracingError
from ..operators import (
    DENSE,
    ContractionMap,
    DenseSolve,
    Linearization,
    LinearSolve,
    auto_linear_solve,
)

Adjoint = Callable[..., tuple[Tensor | None, ...]]


def implicit_inverse(
    contraction: nn.Module,
    g: ContractionMap,
    solution: Tensor,
    y: Tensor,
    context: Tensor | None,
    *,
    lipschitz: float,
    sign: int = 1,
) -> Tensor:
    """Make the solution of ``x + g(x) = y`` differentiable in y, parameters and context.

    The solution has derivatives of second order for every D, and of any order up to 16 coordinates.
    Higher derivatives raise.

    Arguments:
        contraction: ``g`` or ``-g`` as a module, called as ``contraction(x, context)``.
        g: the map ``g``, with its acting weights.
        solution: ``x``, solved without gradients; receives none.
        y: shape ``(*batch, *event)``.
        context: shape ``(*batch, size)``, or None.
        lipschitz: the proven bound of ``Lip(g)``.
        sign: 1 if the module is ``g``, -1 if the module is ``-g``.
    """
    at_solution = g.linearize(solution.detach(), context)
    linear_solve = auto_linear_solve(at_solution.event_size)
    # The tensors of this moment: a functional call may have put them in place for one call.
    state = {**dict(contraction.named_parameters()), **dict(contraction.named_buffers())}
    named = {name: t for name, t in state.items() if t.requires_grad}
    fixed = {name: t for name, t in state.items() if not t.requires_grad}
    needs_context = context is not None and context.requires_grad
    held = (*named.values(), *((context,) if needs_context else ()))

    def minus_g(x: Tensor, *held: Tensor) -> Tensor:
        parameters = dict(zip(named, held, strict=False))
        its_context = held[-1] if needs_context else context
        value = functional_call(contraction, {**fixed, **parameters}, (x, its_context))
        return -sign * value

    def adjoint(grad: Tensor, x: Tensor, *held: Tensor) -> tuple[Tensor | None, ...]:
        if not torch.is_grad_enabled():
            w = linear_solve(at_solution, grad, transpose=True, lipschitz=lipschitz).value
            return w, *(None for _ in held)
        if minus_g(x.detach(), *(h.detach() for h in held)).requires_grad:
            raise HigherOrderError(
                "A second derivative through the inverse needs every tensor of g that requires a "
                "gradient to be a parameter or a buffer of its module; one is not. Register it."
            )
        # A second derivative is under way, so J must be a function of x.
        w = _solve_transposed(g.linearize(x, context), grad, lipschitz=lipschitz, by=linear_solve)
        # The gradient reaches parameters and context through z, at x held fixed. The share of x in
        # the derivative is the same gradient as a function of x, less its value.
        moving, still = (vjp(partial(minus_g, p), *held)[1](w) for p in (x, x.detach()))
        return w, *(a - b for a, b in zip(moving, still, strict=True))

    return _Implicit.apply(y - at_solution.value, solution.detach(), adjoint, *held)


def _solve_transposed(j: Linearization, v: Tensor, *, lipschitz: float, by: LinearSolve) -> Tensor:
    """Return ``(I + J)^{-T} v``, differentiable in ``v`` and in all that J depends on."""
    if isinstance(by, DenseSolve):
        return by(j, v, transpose=True, lipschitz=lipschitz).value
    with torch.no_grad():
        w = by(j, v, transpose=True, lipschitz=lipschitz).value

    def adjoint(grad: Tensor, _: Tensor) -> tuple[Tensor, ...]:
        value = _linear_solve(j, grad, transpose=False, lipschitz=lipschitz, by=by)
        if torch.is_grad_enabled():
            # The value is linear in the gradient; the dependence on J is not followed.
            value = value + undifferentiable(
                torch.zeros_like(value),
                "The inverse has first and second derivatives; a third one, with more than "
                f"{DENSE} coordinates, would be wrong.",
                j.value,
            )
        return (value,)

    return _Implicit.apply(v - j.vm(w), w, adjoint)


def _linear_solve(
    j: Linearization, v: Tensor, *, transpose: bool, lipschitz: float, by: LinearSolve
) -> Tensor:
    """Return ``(I + J)^{-1} v`` or its transpose, differentiable in ``v`` alone."""
    with torch.no_grad():
        w = by(j, v, transpose=transpose, lipschitz=lipschitz).value

    def adjoint(grad: Tensor, _: Tensor) -> tuple[Tensor, ...]:
        return (_linear_solve(j, grad, transpose=not transpose, lipschitz=lipschitz, by=by),)

    return _Implicit.apply(v, w, adjoint)


class _Implicit(Function):
    """The known solution of ``x + A(x) = z`` as a function of ``z = y - A(x)`` at fixed ``x``.

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
    def vmap(info, in_dims, *inputs: Any) -> tuple[Tensor, int]:
        raise TracingError(
            "The inverse cannot run under torch.func.vmap: its steps depend on the data. It takes "
            "a batch as it is."
        )

    @staticmethod
    def jvp(ctx, *grad_inputs: Any) -> Tensor:
        raise no_forward_mode("The inverse")

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, *held = ctx.saved_tensors
        with full_precision(x):
            of_z, *of_held = ctx.adjoint(*grad_outputs, x, *held)
        return of_z, None, None, *of_held
