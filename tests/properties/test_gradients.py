"""Gradients of random blocks: those of differences, in points, parameters and context."""

import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch.func import jacrev

from pyro_iresnet import Anderson, Exact

from .strategies import batch_of, flows, holds_for

COUNT = 2
# A norm of a weight, and so a bound, has kinks: a small step seldom crosses one. Differences keep
# some 14 digits of a value, and the step loses six.
STEP = 1e-6
CLOSE = {"rtol": 1e-4, "atol": 1e-6}

FORWARD, BACKWARD = "forward_and_log_det", "inverse_and_log_det"
SMALL = {
    "kinds": ("dense", "conv", "sum", "wrapped"),
    "dims": (1, 3),
    "largest": 0.9,
    "scales": (1.0,),
    "smooth": True,
}


def unit(variable):
    """Draw a direction of length 1."""
    direction = torch.randn_like(variable)
    return direction / direction.norm().clamp(min=1e-300)


def along(variables, directions, value):
    """Differentiate a value along directions, by central differences of fourth order."""
    kept, total = [v.detach().clone() for v in variables], 0.0
    with torch.no_grad():
        for step, weight in ((-2, 1), (-1, -8), (1, 8), (2, -1)):
            for variable, start, d in zip(variables, kept, directions, strict=True):
                variable.copy_(start + step * STEP * d)
            total = total + weight * value()
        for variable, start in zip(variables, kept, strict=True):
            variable.copy_(start)
    return total / (12 * STEP)


@holds_for(25, flow=flows(**SMALL), method=st.sampled_from([FORWARD, BACKWARD]))
def test_gradients_of_differences(flow, method):
    block = flow.make(logdet=Exact(), solver=Anderson(rtol=1e-14))
    x, context = flow.points(COUNT).requires_grad_(), flow.contexts(COUNT)
    variables = [x, *block.parameters()]
    if context is not None:
        variables.append(context.requires_grad_())
    weights = torch.randn_like(x), torch.randn(COUNT)

    def value():
        image, log_det = getattr(block, method)(x, context)
        return (weights[0] * image).sum() + (weights[1] * log_det).sum()

    grads = torch.autograd.grad(value(), variables, materialize_grads=True)
    for chosen in ([0], list(range(1, len(variables)))):
        some = [variables[i] for i in chosen]
        directions = [unit(v) for v in some]
        slope = sum((grads[i] * d).sum() for i, d in zip(chosen, directions, strict=True))
        torch.testing.assert_close(slope, along(some, directions, value), **CLOSE)


@holds_for(15, flow=flows(largest=0.95))
def test_jacobian_of_inverse(flow):
    block = flow.make(logdet=Exact(), solver=Anderson(rtol=1e-12))
    y, context = flow.points(COUNT), flow.contexts(COUNT)
    x = block.inverse(y, context).detach()
    evaluation = block.evaluate(*block.check(x, context))
    w = torch.randn_like(x)
    products = evaluation.vjp(w), evaluation.inverse_vjp(w)
    for i in range(COUNT):
        row = batch_of(context, i)
        size = x[i].numel()
        ahead = jacrev(lambda z, c=row: block(z, c))(x[i]).reshape(size, size)
        # A matrix that sinh has stretched in one direction loses the digits of the others.
        assume(torch.linalg.cond(ahead) < 1e8)
        back = jacrev(lambda z, c=row: block.inverse(z, c))(y[i]).reshape(size, size)
        torch.testing.assert_close(back @ ahead, torch.eye(size), rtol=1e-5, atol=1e-5)
        flat = w[i].flatten()
        torch.testing.assert_close(products[0][i].flatten(), ahead.mT @ flat)
        solved = torch.linalg.solve(ahead.mT, flat)
        torch.testing.assert_close(products[1][i].flatten(), solved)
