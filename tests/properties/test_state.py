"""Calls change nothing, copies give the same numbers, and torch's seed alone decides the draws."""

import copy
import pickle

import torch
from hypothesis import assume
from hypothesis import strategies as st

from pyro_iresnet import Roulette

from .strategies import DETERMINISTIC, flows, holds_for


def numbers(block, x, context):
    """Return the results of every call of a block, at one seed."""
    torch.manual_seed(0)
    solution = block.solve(x, context)
    return [
        block(x, context),
        *block.forward_and_log_det(x, context),
        *block.inverse_and_log_det(x, context),
        solution.value,
        solution.stats.error_bound,
        solution.stats.steps,
        block.lipschitz_bound(),
    ]


def assert_equal(first, second):
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


LOGDETS = st.sampled_from([*DETERMINISTIC, Roulette(), None])
DUPLICATES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda block: pickle.loads(pickle.dumps(block)),
}


@holds_for(20, flow=flows(), logdet=LOGDETS, way=st.sampled_from(tuple(DUPLICATES)))
def test_copies(flow, logdet, way):
    # Torch refuses to pickle its own parametrizations, which the wrapped network has.
    assume(way == "deepcopy" or flow.network.kind != "wrapped")
    block = flow.make(logdet=logdet)
    x, context = flow.points(3), flow.contexts(3)
    first = numbers(block, x, context)
    twin = DUPLICATES[way](block)
    assert_equal(numbers(twin, x, context), first)
    # A copy shares no parameter with its origin.
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert_equal(numbers(block, x, context), first)


@holds_for(20, flow=flows(), logdet=LOGDETS)
def test_state_of_block(flow, logdet):
    block, fresh = flow.make(logdet=logdet), flow.make(logdet=logdet)
    x, context = flow.points(3), flow.contexts(3)
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.add_(1.0)
    fresh.load_state_dict(block.state_dict())
    assert_equal(numbers(fresh, x, context), numbers(block, x, context))


@holds_for(20, flow=flows(), logdet=LOGDETS)
def test_modes_of_block(flow, logdet):
    block = flow.make(logdet=logdet)
    x, context = flow.points(3), flow.contexts(3)
    train, evaluate = (
        [block(x, context), block.inverse(x, context)] for block in (block.train(), block.eval())
    )
    assert_equal(train, evaluate)


@holds_for(20, flow=flows(), logdet=LOGDETS)
def test_purity_of_calls(flow, logdet):
    block = flow.make(logdet=logdet)
    x, context = flow.points(3), flow.contexts(3)
    kept = copy.deepcopy((x, context, block.state_dict()))
    attributes = {name: set(vars(module)) for name, module in block.named_modules()}
    first = numbers(block, x, context)
    assert_equal(numbers(block, x, context), first)
    assert torch.equal(x, kept[0])
    assert context is None or torch.equal(context, kept[1])
    assert not x.requires_grad
    assert all(torch.equal(v, kept[2][k]) for k, v in block.state_dict().items())
    assert all(p.grad is None for p in block.parameters())
    assert attributes == {name: set(vars(module)) for name, module in block.named_modules()}


@holds_for(20, flow=flows(), logdet=st.sampled_from(DETERMINISTIC))
def test_deterministic_draws_nothing(flow, logdet):
    block = flow.make(logdet=logdet)
    x, context = flow.points(3), flow.contexts(3)
    state = torch.get_rng_state()
    block.forward_and_log_det(x, context)
    block.inverse_and_log_det(x, context)
    block.solve(x, context)
    block.lipschitz_bound()
    assert torch.equal(state, torch.get_rng_state())


@holds_for(20, flow=flows(dims=(2, 6)), probes=st.integers(1, 3))
def test_seed_of_draws(flow, probes):
    block = flow.make(logdet=Roulette(probes=probes))
    x, context = flow.points(3), flow.contexts(3)
    # No call before moves the draws of the next.
    draws = []
    for _ in range(2):
        torch.manual_seed(7)
        draws.append(block.forward_and_log_det(x, context)[1])
        block.forward_and_log_det(x, context)
    assert_equal(draws[:1], draws[1:])
