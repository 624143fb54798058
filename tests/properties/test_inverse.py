"""Inverses are right to the error that their certificates state."""

import copy
from unittest import mock

import torch
from hypothesis import strategies as st

from pyro_iresnet import Anderson
from pyro_iresnet.inverse import mixed

from ..truth import distance
from .strategies import SOLVERS, flows, holds_for


@holds_for(
    60,
    flow=flows(),
    solver=st.sampled_from(tuple(SOLVERS)),
    digits=st.floats(1.0, 12.0),
    pays=st.sampled_from([1, mixed.PAYS]),
)
def test_error_bound_of_inverse(flow, solver, digits, pays):
    block = flow.make(solver=SOLVERS[solver](rtol=10**-digits))
    y, context = flow.points(8), flow.contexts(8)
    with mock.patch.object(mixed, "PAYS", pays):
        loose = block.solve(y, context)
    block.solver = Anderson(rtol=0.0)
    tight = block.solve(y, context)
    error = distance(loose.value, tight.value, block.event_dim)
    assert bool((loose.stats.error_bound <= loose.stats.tolerance).all())
    assert bool((error <= loose.stats.error_bound + tight.stats.error_bound).all())


@holds_for(
    60,
    flow=flows(blocks=("residual",), largest=0.97),
    solver=st.sampled_from(tuple(SOLVERS)),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_round_trip_of_block(flow, solver, dtype):
    block = flow.make(solver=SOLVERS[solver]()).to(dtype)
    x, context = flow.points(8).to(dtype), flow.contexts(8)
    context = None if context is None else context.to(dtype)
    with torch.no_grad():
        y = block(x, context)
    solution = block.solve(y, context)
    # Rounding moves y as much as a residual, so the solution for y moves by as much again.
    error = distance(solution.value, x, block.event_dim)
    assert bool((error <= 2 * solution.stats.error_bound).all())


@holds_for(40, flow=flows(blocks=("cayley",), largest=0.97))
def test_round_trip_of_cayley(flow):
    block = flow.make()
    x, context = flow.points(8), flow.contexts(8)
    with torch.no_grad():
        y = block(x, context)
        again = copy.deepcopy(block).inverse(y, context)
    torch.testing.assert_close(again, x, rtol=1e-5, atol=1e-5)
