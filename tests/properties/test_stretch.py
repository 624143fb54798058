"""Proven bounds hold for every pair of points: of contractions, and of blocks in coordinates."""

import torch
from hypothesis import strategies as st

from pyro_iresnet import testing

from .strategies import SCALES, flows, holds_for, networks


@holds_for(
    120,
    network=networks(channels=3, sides=((3, 3), (5, 4), (1, 6)), widest=12),
    scale=st.sampled_from(SCALES),
    reach=st.floats(0.1, 1e6),
)
def test_no_stretched_points(network, scale, reach):
    g = network.make()
    testing.check_lipschitz_bound(g, network.points(20, scale), network.contexts(20, reach))


@holds_for(40, flow=flows())
def test_slopes_of_block(flow):
    block = flow.make()
    first, context = flow.points(20), flow.contexts(20)
    second = first + torch.logspace(-3, 2, 20).reshape(-1, *(1,) * block.event_dim) * flow.points(
        20
    )
    with torch.no_grad():
        before = block.to_coordinates(first) - block.to_coordinates(second)
        images = [block.to_coordinates(block(x, context)) for x in (first, second)]
    slope = (images[0] - images[1]).flatten(1).norm(dim=1) / before.flatten(1).norm(dim=1)
    bound = float(block.lipschitz_bound())
    least, most = {
        "residual": (1 - bound, 1 + bound),
        "cayley": ((1 - bound) / (1 + bound), (1 + bound) / (1 - bound)),
    }[flow.block]
    assert float(slope.min()) >= least * (1 - 1e-5)
    assert float(slope.max()) <= most * (1 + 1e-5)
