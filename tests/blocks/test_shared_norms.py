"""Weights of a stack: normalised together, once in each call, and one memory for all parts."""

import pytest
import torch
from nflows.transforms import InverseTransform

from pyro_iresnet import (
    IResNetTransform,
    actnorm,
    cached,
    conditional_iresnet_flow,
    conditional_iresnet_stack,
    iresnet,
    iresnet_flow,
    iresnet_stack,
)
from pyro_iresnet.hosts.nflows import IResNetComposite
from pyro_iresnet.hosts.pyro import Stack

from .. import zoo
from ..counting import CountingNorm, norms_in

DIM, HIDDEN = 5, [8, 7]
# Matrices of 8 x 5, 7 x 8 and 5 x 7.
SHAPES = 3


STACKS = {
    "stack": lambda **o: iresnet_stack(DIM, 3, HIDDEN, **o),
    "nested": lambda **o: Stack(
        [iresnet_stack(DIM, 2, HIDDEN, **o), actnorm(DIM), Stack([iresnet(DIM, HIDDEN, **o)])]
    ),
    "nested_inverse": lambda **o: Stack(
        [iresnet_stack(DIM, 2, HIDDEN, **o).inv, iresnet(DIM, HIDDEN, **o).inv]
    ),
    "conditional": lambda **o: conditional_iresnet_stack(DIM, 3, 3, HIDDEN, **o).condition(
        torch.randn(20, 3)
    ),
}
FLOWS = {
    "flow": lambda **o: iresnet_flow(DIM, 3, hidden_features=HIDDEN, **o)._transform,
    "nested": lambda **o: IResNetComposite(
        [
            IResNetComposite([IResNetTransform(DIM, HIDDEN, **o) for _ in range(2)]),
            InverseTransform(IResNetTransform(DIM, HIDDEN, **o)),
        ]
    ),
}


@pytest.mark.parametrize("block", ["residual", "cayley"])
@pytest.mark.parametrize("name", STACKS)
def test_one_norm_per_shape(name, block):
    stack, x = STACKS[name](norm=CountingNorm(), block=block), torch.randn(20, DIM)
    # The ActNorms start.
    stack(x)
    x = torch.randn(20, DIM)
    assert norms_in(lambda: stack(x)) == SHAPES
    y = stack(x)
    assert norms_in(lambda: stack.log_abs_det_jacobian(x, y)) == 0
    y = y.detach().clone()
    assert norms_in(lambda: stack.inv.log_abs_det_jacobian(y, stack.inv(y))) == SHAPES
    assert norms_in(lambda: stack.log_abs_det_jacobian(x.clone(), y.clone())) == SHAPES
    with torch.no_grad():
        assert norms_in(lambda: stack(x.clone())) == SHAPES
        assert norms_in(lambda: stack.inv(y.clone())) == SHAPES


@pytest.mark.parametrize("block", ["residual", "cayley"])
@pytest.mark.parametrize("name", FLOWS)
def test_one_norm_in_nflows(name, block):
    flow, x = FLOWS[name](norm=CountingNorm(), block=block), torch.randn(20, DIM)
    y = flow(x)[0].detach()
    for direction, point in ((flow, x), (flow.inverse, y)):
        assert norms_in(lambda of=direction, at=point: of(at)) == SHAPES
        with torch.no_grad():
            assert norms_in(lambda of=direction, at=point: of(at)) == SHAPES


def test_one_norm_under_context():
    flow = conditional_iresnet_flow(DIM, 3, 3, hidden_features=HIDDEN, norm=CountingNorm())
    x, context = torch.randn(20, DIM), torch.randn(20, 3)
    assert norms_in(lambda: flow.log_prob(x, context)) == SHAPES
    assert norms_in(lambda: flow.sample(2, context)) == SHAPES


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("name", STACKS)
def test_no_norm_inside_cached(name, grad):
    stack, x = STACKS[name](norm=CountingNorm()), torch.randn(20, DIM)
    y = stack(x).detach()
    with torch.set_grad_enabled(grad), cached(stack):
        assert norms_in(lambda: stack(x.clone())) == SHAPES
        assert norms_in(lambda: [stack(x.clone()) for _ in range(3)]) == 0
        assert norms_in(lambda: stack.inv(y.clone())) == 0


@pytest.mark.parametrize("name", FLOWS)
def test_no_norm_in_cached_flow(name):
    flow, x = FLOWS[name](norm=CountingNorm()), torch.randn(20, DIM)
    y = flow(x)[0].detach()
    with cached(flow):
        assert norms_in(lambda: flow(x)) == SHAPES
        assert norms_in(lambda: (flow(x), flow.inverse(y))) == 0


def test_shares_end_with_call():
    stack = STACKS["nested"]()
    stack(torch.randn(20, DIM))
    with pytest.raises(TypeError):
        stack(torch.randn(20, DIM).float())
    x = torch.randn(20, DIM)
    x[3] = torch.nan
    with pytest.raises(RuntimeError, match="NaN"):
        stack.inv(x)
    contractions = [m for m in stack.modules() if hasattr(m, "materialize") and hasattr(m, "norm")]
    assert len(contractions) == 3
    assert all(c._shared == () for c in contractions)


def memories(transform):
    """List the memories of the parts of a stack, nested ones included."""
    found = []
    for part in transform.parts:
        inner = part if hasattr(part, "_memory") else part.inv
        found.append(inner._memory)
        found += memories(inner) if isinstance(inner, Stack) else []
    return found


@pytest.mark.parametrize("name", STACKS)
def test_only_outermost_remembers(name):
    stack, x = STACKS[name](), torch.randn(20, DIM)
    y = stack(x)
    stack.log_abs_det_jacobian(x, y)
    stack.inv(y.detach().clone())
    stack.inv.log_abs_det_jacobian(y, stack.inv(y))
    assert stack._memory is not None
    found = memories(stack)
    assert len(found) >= len(stack.parts)
    assert all(memory is None for memory in found)


def test_one_inverse():
    stack = zoo.PYRO_TRANSFORMS["stack"]()
    assert stack.inv is stack.inv
    assert stack.inv.inv is stack
    inverse = stack.inv
    assert inverse is stack.inv
    assert inverse.inv is stack


@pytest.mark.parametrize("name", STACKS)
def test_same_as_parts(name):
    stack, x = STACKS[name](), torch.randn(20, DIM)
    stack(x)
    stack.eval()
    y, total = x, 0
    for part in stack.parts:
        z = part(y)
        total, y = total + part.log_abs_det_jacobian(y, z), z
    torch.testing.assert_close(stack(x), y)
    torch.testing.assert_close(stack.log_abs_det_jacobian(x, stack(x)), total)
