"""Both hosts give the numbers of the block that they hold."""

import torch
from hypothesis import strategies as st

from pyro_iresnet import ConditionalIResNet, InverseIResNet, IResNet, IResNetTransform

from .strategies import DETERMINISTIC, flows, holds_for


@holds_for(40, flow=flows(), logdet=st.sampled_from(DETERMINISTIC))
def test_hosts_agree(flow, logdet):
    block = flow.make(logdet=logdet)
    x, context = flow.points(3), flow.contexts(3)
    theirs = IResNetTransform.from_block(block)
    ours = IResNet(block) if context is None else ConditionalIResNet(block).condition(context)
    y, log_det = theirs(x, context)
    assert torch.equal(ours(x), y)
    assert torch.equal(ours.log_abs_det_jacobian(x, y), log_det)
    back, inverse_log_det = theirs.inverse(x, context)
    found = ours.inv(x)
    assert torch.equal(found, back)
    # One memory knows the pair of the last call, and another pair is evaluated anew.
    assert torch.equal(ours.inv.log_abs_det_jacobian(x, found), inverse_log_det)
    anew = ours.inv.log_abs_det_jacobian(x.clone(), found.clone())
    torch.testing.assert_close(anew, inverse_log_det, rtol=1e-5, atol=1e-5)


@holds_for(20, flow=flows(conditional=False), logdet=st.sampled_from(DETERMINISTIC))
def test_inverse_transform(flow, logdet):
    block = flow.make(logdet=logdet)
    x = flow.points(3)
    transform, theirs = InverseIResNet(block), IResNetTransform.from_block(block)
    y = transform(x)
    back, log_det = theirs.inverse(x)
    assert torch.equal(y, back)
    assert torch.equal(transform.log_abs_det_jacobian(x, y), log_det)
    torch.testing.assert_close(transform.inv(y.clone()), block(y))
