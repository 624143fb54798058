"""Every dtype gives numbers right to its precision, or an error of the package."""

import copy

import torch
from hypothesis import strategies as st

from pyro_iresnet import Exact
from pyro_iresnet.errors import IResNetError

from .strategies import flows, holds_for

COARSE = (torch.float16, torch.bfloat16)
# Roundings of a whole network, in units of the spacing of the dtype. A solver stops at an error of
# 8 units, and a log-determinant may change several times as fast as the point.
ROUNDINGS = 32.0


def outcome(block, method, x, context):
    """Return the image and the log-determinant, or None if the block refuses."""
    try:
        with torch.no_grad():
            return getattr(block, method)(x, context)
    except IResNetError:
        return None


@holds_for(
    60,
    flow=flows(largest=0.9, scales=(1.0,)),
    dtype=st.sampled_from([torch.float32, *COARSE]),
    method=st.sampled_from(["forward_and_log_det", "inverse_and_log_det"]),
)
def test_precision_of_dtype(flow, dtype, method):
    precise = flow.make(logdet=Exact())
    with torch.no_grad():
        for parameter in precise.parameters():
            parameter.copy_(parameter.to(dtype))
    block = copy.deepcopy(precise).to(dtype)
    x, context = flow.points(6).to(dtype), flow.contexts(6)
    low = None if context is None else context.to(dtype)
    found = outcome(block, method, x, low)
    if found is None:
        assert dtype in COARSE
        return
    image, log_det = found
    assert image.dtype == log_det.dtype == dtype
    high = None if low is None else low.double()
    expected, expected_log_det = outcome(precise, method, x.double(), high)
    # The inverse enlarges rounding by 1 / (1 - L), and so does the log-determinant.
    spacing = ROUNDINGS * torch.finfo(dtype).eps / (1 - flow.network.lipschitz)
    size = float(expected.abs().max()) + float(x.abs().max())
    if "asinh" in flow.coordinates:
        # The relative error of a hyperbolic sine is the error of its argument.
        size *= 1 + float(precise.to_coordinates(expected).detach().abs().max())
    assert float((image.double() - expected).abs().max()) <= spacing * size
    apart = (log_det.double() - expected_log_det).abs().max()
    assert float(apart) <= spacing * x[0].numel()
