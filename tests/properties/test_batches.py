"""Each sample by itself: the order, the shape and the memory of a batch change nothing.

Forward values and log-determinants agree to the rounding of a matrix product, which may sum in
another order for another batch. Inverses agree to their certified errors.
"""

import torch
from hypothesis import strategies as st

from .strategies import DETERMINISTIC, batch_of, flows, holds_for

COUNT = 12
ROUNDING = {"rtol": 1e-11, "atol": 1e-11}
SHAPES = [(12,), (3, 4), (2, 1, 6), (1, 12), (12, 1, 1)]


def certified(block, y, context):
    solution = block.solve(y, context)
    return solution.value, solution.stats.error_bound


def check_same(block, x, context, other, other_context, back):
    """Check that ``back`` of the other batch's results are the results of the batch."""
    with torch.no_grad():
        results = block.forward_and_log_det(x, context)
        others = block.forward_and_log_det(other, other_context)
    for result, of_other in zip(results, others, strict=True):
        torch.testing.assert_close(back(of_other), result, **ROUNDING)
    value, bound = certified(block, x, context)
    other_value, other_bound = (back(t) for t in certified(block, other, other_context))
    apart = (value - other_value).flatten(1).norm(dim=1)
    assert bool((apart <= bound + other_bound).all())


@holds_for(25, flow=flows(), logdet=st.sampled_from(DETERMINISTIC), seed=st.integers(0, 999))
def test_order_of_batch(flow, logdet, seed):
    block, order = flow.make(logdet=logdet), None
    x, context = flow.points(COUNT), flow.contexts(COUNT)
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(seed))
    back = order.argsort()
    check_same(block, x, context, x[order], batch_of(context, order), lambda t: t[back])


@holds_for(25, flow=flows(), logdet=st.sampled_from(DETERMINISTIC), cut=st.integers(0, COUNT))
def test_parts_of_batch(flow, logdet, cut):
    block = flow.make(logdet=logdet)
    x, context = flow.points(COUNT), flow.contexts(COUNT)
    parts = slice(None, cut), slice(cut, None)
    with torch.no_grad():
        whole = block.forward_and_log_det(x, context)
        halves = [block.forward_and_log_det(x[p], batch_of(context, p)) for p in parts]
    for i in range(2):
        torch.testing.assert_close(torch.cat([h[i] for h in halves]), whole[i], **ROUNDING)
    value, bound = certified(block, x, context)
    solved = [certified(block, x[p], batch_of(context, p)) for p in parts]
    apart = (torch.cat([s[0] for s in solved]) - value).flatten(1).norm(dim=1)
    assert bool((apart <= bound + torch.cat([s[1] for s in solved])).all())


@holds_for(25, flow=flows(), logdet=st.sampled_from(DETERMINISTIC), shape=st.sampled_from(SHAPES))
def test_shape_of_batch(flow, logdet, shape):
    block = flow.make(logdet=logdet)
    x, context = flow.points(COUNT), flow.contexts(COUNT)
    wide = None if context is None else context.reshape(*shape, -1)
    check_same(
        block,
        x,
        context,
        x.reshape(*shape, *x.shape[1:]),
        wide,
        lambda t: t.flatten(0, len(shape) - 1),
    )


@holds_for(25, flow=flows(), logdet=st.sampled_from(DETERMINISTIC))
def test_single_sample(flow, logdet):
    block = flow.make(logdet=logdet)
    x, context = flow.points(1), flow.contexts(1)
    check_same(block, x, context, x[0], batch_of(context, 0), lambda t: t[None])


def scattered(x):
    """Copy a tensor into memory of another order, with gaps and an offset."""
    gaps = torch.full((2 * x.shape[-1] + 1, *x.shape[:-1]), torch.nan, dtype=x.dtype)
    view = gaps[1::2].movedim(0, -1)
    view.copy_(x)
    return view


def expanded(x):
    return x[:1].expand(x.shape)


MEMORIES = {
    "scattered": (lambda x: x, scattered),
    "expanded": (lambda x: expanded(x).contiguous(), expanded),
    "every_other": (lambda x: x, lambda x: x.repeat_interleave(2, 0)[::2]),
}


@holds_for(
    25,
    flow=flows(),
    logdet=st.sampled_from(DETERMINISTIC),
    memory=st.sampled_from(tuple(MEMORIES)),
)
def test_memory_of_batch(flow, logdet, memory):
    block = flow.make(logdet=logdet)
    plain, other = MEMORIES[memory]
    x, context = flow.points(COUNT), flow.contexts(COUNT)
    contexts = [None if context is None else way(context) for way in (plain, other)]
    check_same(block, plain(x), contexts[0], other(x), contexts[1], lambda t: t)


@holds_for(10, flow=flows(), logdet=st.sampled_from(DETERMINISTIC))
def test_empty_batch(flow, logdet):
    block = flow.make(logdet=logdet)
    x, context = flow.points(0), flow.contexts(0)
    for method in (block.forward_and_log_det, block.inverse_and_log_det):
        value, log_det = method(x, context)
        assert value.shape == x.shape
        assert log_det.shape == (0,)
