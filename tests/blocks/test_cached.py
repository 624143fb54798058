import copy
import pickle

import pyro.distributions as dist
import pytest
import torch
from nflows.distributions import StandardNormal
from nflows.flows import Flow
from nflows.transforms import CompositeTransform, InverseTransform
from torch.utils.checkpoint import checkpoint

from pyro_iresnet import IResNetTransform, ResidualBlock, cached
from pyro_iresnet.errors import ArgumentError, ArgumentTypeError

from .. import zoo
from ..counting import CountingNorm, norms_in


def nflows_flow():
    parts = [IResNetTransform.from_block(zoo.block()) for _ in range(3)]
    return Flow(CompositeTransform(parts), StandardNormal([zoo.DIM]))


def pyro_flow():
    stack = zoo.PYRO_TRANSFORMS["stack"]()
    base = dist.Normal(torch.zeros(zoo.DIM), torch.ones(zoo.DIM)).to_event(1)
    flow = dist.TransformedDistribution(base, [stack.inv])
    flow.parameters = stack.parameters
    return flow


def loss_and_gradients(flow, x):
    loss = -flow.log_prob(x).mean()
    return [loss, *torch.autograd.grad(loss, list(flow.parameters()), allow_unused=True)]


@pytest.mark.parametrize("make", [nflows_flow, pyro_flow])
def test_same_loss_and_gradients(make):
    flow, x = make(), torch.randn(6, zoo.DIM)
    expected = loss_and_gradients(flow, x)
    with cached(flow):
        found = loss_and_gradients(flow, x.clone())
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def counted_blocks(n):
    return torch.nn.ModuleList(ResidualBlock(zoo.dense(norm=CountingNorm())) for _ in range(n))


def test_one_norm_per_shape():
    blocks, x = counted_blocks(4), torch.randn(3, zoo.DIM)
    shapes = {tuple(sorted(w.shape)) for w, *_ in blocks[0].contraction.raw_weights()}
    with cached(blocks):
        calls = norms_in(lambda: [b.forward_and_log_det(x) for _ in range(5) for b in blocks])
    assert calls == len(shapes)


def test_one_proven_bound():
    (block,), x = counted_blocks(1), torch.randn(3, zoo.DIM)
    with cached(block), torch.no_grad():
        y = block(x)
        block.inverse(y)
        found = []
        assert norms_in(lambda: found.extend(block.inverse(y) for _ in range(5))) == 0
        for back in found:
            torch.testing.assert_close(back, x)


@pytest.mark.parametrize("write", ["optimizer", "data", "replace"])
def test_notices_changed_weight(write):
    block, x = zoo.block(), torch.randn(3, zoo.DIM)
    layer = block.contraction.layers[0]
    with cached(block):
        before = block(x)
        if write == "optimizer":
            with torch.no_grad():
                layer.weight.mul_(-1.0)
        elif write == "data":
            layer.weight.data.mul_(-1.0)
        else:
            layer.weight = torch.nn.Parameter(-layer.weight.detach())
        after = block(x)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, block(x))


def test_same_training():
    results = []
    for share in (False, True):
        torch.manual_seed(0)
        block, x = zoo.block(), torch.randn(8, zoo.DIM)
        optimizer = torch.optim.Adam(block.parameters(), lr=1e-2)
        with cached(block if share else []):
            for _ in range(3):
                y, logdet = block.forward_and_log_det(x)
                optimizer.zero_grad()
                (y.square().sum() - logdet.sum()).backward()
                optimizer.step()
        results.append([p.detach() for p in block.parameters()])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("first", [torch.no_grad, torch.inference_mode])
def test_gradients_after_no_grad(first):
    block, x = zoo.block(), torch.randn(3, zoo.DIM)
    with cached(block):
        with first():
            value = block(x)
        y = block(x)
        y.sum().backward()
        with first():
            again = block(x)
    torch.testing.assert_close(y.detach(), value)
    torch.testing.assert_close(again, value)
    assert all(layer.weight.grad is not None for layer in block.contraction.layers)


def fail_inside(block, outer):
    with cached(block):
        assert block.contraction._shared[-1] is not outer
        block(torch.randn(3))


def test_nests_and_ends():
    block = zoo.block()
    with cached(block):
        (outer,) = block.contraction._shared
        with pytest.raises(ArgumentError):
            fail_inside(block, outer)
        assert block.contraction._shared == (outer,)
    assert block.contraction._shared == ()


def test_enters_twice():
    block = zoo.block()
    share = cached(block)
    with share, share:
        pass
    assert block.contraction._shared == ()


def test_copies_inside():
    block, x = zoo.block(), torch.randn(3, zoo.DIM)
    with cached(block):
        y = block(x)
        for other in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
            assert other.contraction._shared == ()
            torch.testing.assert_close(other(x), y)


def test_functional_call():
    block, x = zoo.block(), torch.randn(3, zoo.DIM)
    others = {name: 0.5 * p.detach() for name, p in block.named_parameters()}
    expected = torch.func.functional_call(block, others, (x,))
    with cached(block):
        block(x)
        torch.testing.assert_close(torch.func.functional_call(block, others, (x,)), expected)


def test_finds_every_block():
    block = zoo.block()
    transform = IResNetTransform.from_block(block)
    stack = zoo.PYRO_TRANSFORMS["stack"]()
    base = dist.Normal(torch.zeros(zoo.DIM), torch.ones(zoo.DIM)).to_event(1)
    for flow, parts in [
        (block, 1),
        (InverseTransform(transform), 1),
        (Flow(CompositeTransform([transform, transform]), StandardNormal([zoo.DIM])), 1),
        (stack, 2),
        (stack.inv, 2),
        (dist.TransformedDistribution(base, [stack.inv]), 2),
        (dist.TransformedDistribution(base, [stack.inv]).expand([3]), 2),
        (dist.TransformedDistribution(base, [stack.inv]).expand([3]).to_event(1), 2),
        (dist.TransformedDistribution(base, [stack.inv]).mask(True), 2),
        ([stack, block], 3),
        (base, 0),
    ]:
        assert len(cached(flow)._contractions) == parts


def test_refuses_number():
    with pytest.raises(ArgumentTypeError, match=r"Expected flow to be a module, .* got int"):
        cached(3)


def test_gradients_after_unfreezing():
    block, x = zoo.block(), torch.randn(3, zoo.DIM)
    with cached(block):
        block.requires_grad_(False)
        block(x)
        block.requires_grad_(True)
        block(x).sum().backward()
    assert all(layer.weight.grad is not None for layer in block.contraction.layers)


def test_notices_changed_setting():
    block, x = zoo.block(), torch.randn(3, zoo.DIM)
    with cached(block):
        before = block(x)
        block.contraction.lipschitz = 0.1
        after = block(x)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, block(x))


def test_overlapping_caches_end():
    block = zoo.block()
    first, second = cached(block), cached(block)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert len(block.contraction._shared) == 1
    second.__exit__(None, None, None)
    assert block.contraction._shared == ()


def test_threads_share_nothing():
    block = zoo.block()

    def work():
        for _ in range(5):
            with cached(block):
                block(torch.randn(3, zoo.DIM, dtype=torch.float64)).sum().backward()

    assert zoo.errors_in_threads(work) == []
    assert block.contraction._shared == ()


def test_gradients_after_inference_mode():
    block, x = zoo.block(), torch.randn(3, zoo.DIM)
    with cached(block):
        with torch.inference_mode(), torch.enable_grad():
            block(x)
        block(x).sum().backward()
    assert block.contraction.layers[0].weight.grad is not None


def test_gradients_under_reentrant_checkpoint():
    (block,), x = counted_blocks(1), torch.randn(3, zoo.DIM, requires_grad=True)
    block(block(x)).sum().backward()
    wanted = [p.grad.clone() for p in block.parameters()]
    block.zero_grad()
    with cached(block):
        y = checkpoint(block, x, use_reentrant=True)
        checkpoint(block, y, use_reentrant=True).sum().backward()
    torch.testing.assert_close([p.grad for p in block.parameters()], wanted)


def test_replica_computes_by_itself():
    (block,), x = counted_blocks(1), torch.randn(3, zoo.DIM)
    with torch.no_grad(), cached(block):
        y = block(x)
        replica = block._replicate_for_data_parallel()
        contraction = block.contraction._replicate_for_data_parallel()
        replica._modules = {**block._modules, "contraction": contraction}
        torch.testing.assert_close(replica(x), y)
