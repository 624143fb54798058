"""Log-determinants: those of automatic differentiation, sums over parts, negatives of inverses."""

import torch
from hypothesis import strategies as st
from torch.distributions import AffineTransform
from torch.func import jacrev

from pyro_iresnet import Exact, InverseIResNet, IResNet, actnorm
from pyro_iresnet.hosts.pyro import Stack

from .. import zoo
from .strategies import DETERMINISTIC, batch_of, flows, holds_for

PARTS = {
    "iresnet": IResNet,
    "inverse": InverseIResNet,
    "undone": lambda block: IResNet(block).inv,
    "affine": lambda block: AffineTransform(0.5, -2.0, event_dim=1),
    "actnorm": lambda block: zoo.spread(actnorm(block.contraction.event_shape[0])),
}
VECTORS = ("dense", "sequence", "sum", "wrapped")


def log_det_by_autograd(function, x, event_dim):
    """Differentiate row by row, since a solver does not run under vmap."""
    size = x.shape[x.dim() - event_dim :].numel()
    jacobians = [jacrev(function)(row).reshape(size, size) for row in x]
    return torch.linalg.slogdet(torch.stack(jacobians)).logabsdet


@holds_for(30, flow=flows(largest=0.95))
def test_logdet_of_autograd(flow):
    block = flow.make(logdet=Exact())
    x, context = flow.points(2), flow.contexts(1)
    row = batch_of(context, 0)
    log_det = block.forward_and_log_det(x, context)[1]
    expected = log_det_by_autograd(lambda z: block(z, row), x, block.event_dim)
    torch.testing.assert_close(log_det, expected)


@holds_for(
    30,
    # Beyond this the coordinates of asinh, four blocks deep, leave the range of float64.
    flow=flows(kinds=VECTORS, dims=(1, 4), largest=0.5, conditional=False),
    names=st.lists(st.sampled_from(tuple(PARTS)), min_size=1, max_size=4),
)
def test_chain_rule_of_stack(flow, names):
    parts = [PARTS[name](flow.make(logdet=Exact())) for name in names]
    stack, x = Stack(parts), flow.points(2)
    y = stack(x)
    total, here = torch.zeros(2), x
    for part in parts:
        there = part(here)
        log_det = part.log_abs_det_jacobian(here, there)
        total = total + log_det
        here = there
    torch.testing.assert_close(here, y)
    log_det = stack.log_abs_det_jacobian(x, y)
    torch.testing.assert_close(log_det, total)
    torch.testing.assert_close(log_det, log_det_by_autograd(stack, x, 1))


@holds_for(30, flow=flows(), logdet=st.sampled_from(DETERMINISTIC))
def test_negative_logdet_of_inverse(flow, logdet):
    block = flow.make(logdet=logdet)
    y, context = flow.points(4), flow.contexts(4)
    evaluation = block.evaluate_inverse(*block.check(y, context))
    x, log_det = block.inverse_and_log_det(y, context)
    torch.testing.assert_close(evaluation.x, x)
    torch.testing.assert_close(evaluation.inverted().log_det(), log_det)
    # The forward pass at the solution starts from another point of the coordinates of g.
    near = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(block.forward_and_log_det(x, context)[1], -log_det, **near)
