"""Acting weights in eval mode: normalised once for many calls, and anew after any change."""

import copy
import gc
import pickle
import weakref
from dataclasses import dataclass

import pytest
import torch
from nflows.transforms import CompositeTransform
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.utils.checkpoint import checkpoint

from pyro_iresnet import ResidualBlock, cached, iresnet_flow, iresnet_stack
from pyro_iresnet._modules import contractions_of
from pyro_iresnet.contractions import SequentialContraction
from pyro_iresnet.hosts.nflows import IResNetComposite
from pyro_iresnet.norms import Gram, Norm

from .. import zoo

COUNTED = [0]


@pytest.fixture(autouse=True)
def _counted(monkeypatch):
    constrain = Norm.constrain_all

    def counted(self, weights, bounds, scales=None):
        COUNTED[0] += len(weights)
        return constrain(self, weights, bounds, scales)

    monkeypatch.setattr(Norm, "constrain_all", counted)


def norms_in(function):
    """Count the weights that a function normalises."""
    COUNTED[0] = 0
    function()
    return COUNTED[0]


def lone_block():
    return ResidualBlock(zoo.dense(norm=Gram()))


def composed():
    parts = [zoo.dense(norm=Gram(), lipschitz=0.9) for _ in range(2)]
    return ResidualBlock(SequentialContraction(*parts))


FLOWS = {
    "block": lone_block,
    "image": lambda: ResidualBlock(zoo.conv(norm=Gram())),
    "composed": composed,
    "stack": lambda: iresnet_stack(zoo.DIM, 3, [8, 7], norm=Gram()),
    "nflows": lambda: iresnet_flow(zoo.DIM, 3, hidden_features=[8, 7], norm=Gram())._transform,
}


def made(name="block"):
    """Make a flow in double precision, away from the start, in eval mode; and a point."""
    torch.manual_seed(0)
    flow = FLOWS[name]().double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    shape = (2, 3, 4) if name == "image" else (zoo.DIM,)
    return flow.eval(), torch.randn(3, *shape, dtype=torch.float64)


def value(flow, x):
    y = flow(x.clone())
    return y[0] if isinstance(y, tuple) else y


def anew(flow, x):
    """Return the value in train mode, which keeps nothing."""
    flow.train()
    found = value(flow, x)
    flow.eval()
    return found


def parameters(flow):
    return [p for p in flow.parameters() if p.requires_grad]


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("name", FLOWS)
def test_takes_norms_once(name, frozen):
    flow, x = made(name)
    flow.requires_grad_(not frozen)
    with torch.set_grad_enabled(frozen):
        assert norms_in(lambda: value(flow, x)) > 0
        assert norms_in(lambda: [value(flow, x) for _ in range(3)]) == 0
    with torch.no_grad():
        assert norms_in(lambda: value(flow, x)) == 0
        torch.testing.assert_close(value(flow, x), anew(flow, x))


@pytest.mark.parametrize("name", FLOWS)
def test_graph_of_each_call(name):
    flow, x = made(name)
    first = norms_in(lambda: value(flow, x))
    assert norms_in(lambda: value(flow, x)) == first
    assert value(flow, x).requires_grad


@pytest.mark.parametrize("name", FLOWS)
def test_takes_norms_anew_in_train_mode(name):
    flow, x = made(name)
    value(flow, x)
    flow.train()
    first = norms_in(lambda: value(flow, x))
    assert first > 0
    assert norms_in(lambda: value(flow, x)) == first


@pytest.mark.parametrize("name", FLOWS)
def test_gradients_of_many_calls(name):
    flow, x = made(name)
    leaves = [*parameters(flow), x.requires_grad_()]
    value(flow, x)
    losses = [value(flow, x).sin().sum(), value(flow, 2 * x).cos().sum()]
    found = [torch.autograd.grad(loss, leaves, allow_unused=True) for loss in losses]
    flow.train()
    for gradients, loss in zip(
        found, [value(flow, x).sin().sum(), value(flow, 2 * x).cos().sum()], strict=True
    ):
        expected = torch.autograd.grad(loss, leaves, allow_unused=True)
        torch.testing.assert_close(gradients, expected)


@pytest.mark.parametrize("name", FLOWS)
def test_second_derivatives_of_many_calls(name):
    def second(loss):
        first = torch.autograd.grad(loss, leaves, create_graph=True, allow_unused=True)
        total = sum(g.square().sum() for g in first if g is not None)
        return torch.autograd.grad(total, leaves, allow_unused=True)

    flow, x = made(name)
    leaves = [*parameters(flow), x.requires_grad_()]
    losses = [value(flow, x).sin().sum(), value(flow, 2 * x).cos().sum()]
    found = [second(loss) for loss in losses]
    flow.train()
    for gradients, loss in zip(
        found, [value(flow, x).sin().sum(), value(flow, 2 * x).cos().sum()], strict=True
    ):
        torch.testing.assert_close(gradients, second(loss))


class Scaled(nn.Module):
    """A parametrization by a factor."""

    factor = -1.0

    def forward(self, weight):
        return self.factor * weight


def weight_of(block):
    return block.contraction.layers[0].weight


def by_optimizer(block):
    optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
    weight_of(block).grad = torch.ones_like(weight_of(block))
    optimizer.step()


def by_copy(block):
    with torch.no_grad():
        weight_of(block).copy_(-weight_of(block))


def by_load(block):
    state = block.state_dict()
    state["contraction.layers.0.weight"] = -weight_of(block).detach()
    block.load_state_dict(state)


def by_parametrization(block):
    parametrize.register_parametrization(block.contraction.layers[0], "weight", Scaled())


def by_pruning(block):
    prune.l1_unstructured(block.contraction.layers[0], "weight", amount=0.5)


def by_new_parameter(block):
    block.contraction.layers[0].weight = nn.Parameter(-weight_of(block).detach())


def by_new_layer(block):
    layer = block.contraction.layers[0]
    block.contraction.layers[0] = nn.Linear(layer.in_features, layer.out_features).double()


def by_table(block):
    table = block.contraction.layers[0]._parameters
    table["weight"] = nn.Parameter(-weight_of(block).detach())


def by_swap(block):
    block.contraction = zoo.dense(norm=Gram()).double().eval()


def by_bias(block):
    block.contraction.layers[-1].bias.data[0] += 1.0


CHANGES = {
    "optimizer": by_optimizer,
    "data": lambda block: weight_of(block).data.mul_(-1.0),
    "new data": lambda block: setattr(weight_of(block), "data", -weight_of(block).data),
    "copy": by_copy,
    "load": by_load,
    "parametrization": by_parametrization,
    "pruning": by_pruning,
    "new parameter": by_new_parameter,
    "new layer": by_new_layer,
    "table of parameters": by_table,
    "contraction": by_swap,
    "bias": by_bias,
    "constant": lambda block: setattr(block.contraction, "lipschitz", 0.1),
    "norm": lambda block: setattr(block.contraction, "norm", Gram(squarings=1)),
    "activation": lambda block: block.contraction.activations[0].raw_beta.data.add_(1.0),
    "dtype": lambda block: block.to(torch.float32).to(torch.float64),
}


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("name", CHANGES)
def test_notices(name, grad):
    block, x = made()
    with torch.set_grad_enabled(grad):
        before = value(block, x)
        CHANGES[name](block)
        after = value(block, x)
        assert not torch.equal(before, after)
        torch.testing.assert_close(after, anew(block, x), rtol=0, atol=0)


def test_notices_change_inside_parametrization():
    block, x = made()
    by_parametrization(block)
    before = value(block, x)
    block.contraction.layers[0].parametrizations.weight[0].factor = -0.1
    assert not torch.equal(before, value(block, x))
    torch.testing.assert_close(value(block, x), anew(block, x))


def test_notices_in_stack():
    stack, x = made("stack")
    before = value(stack, x)
    block = next(m for m in stack.modules() if isinstance(m, ResidualBlock))
    by_swap(block)
    assert not torch.equal(before, value(stack, x))
    torch.testing.assert_close(value(stack, x), value(copy.deepcopy(stack), x))


def test_normalises_what_changed():
    stack, x = made("stack")
    with torch.no_grad():
        value(stack, x)
        blocks = [m for m in stack.modules() if isinstance(m, ResidualBlock)]
        all_of_one = norms_in(lambda: copy.deepcopy(blocks[1])(x.clone()))
        weight_of(blocks[1]).data.mul_(-1.0)
        assert norms_in(lambda: value(stack, x)) == all_of_one


def test_freezing():
    block, x = made()
    weight = weight_of(block)
    weight.requires_grad_(False)
    value(block, x).sum().backward()
    assert weight.grad is None
    weight.requires_grad_(True)
    value(block, x).sum().backward()
    assert weight.grad is not None
    block.requires_grad_(False)
    assert not value(block, x).requires_grad


def test_refuses_hook_after_call():
    block, x = made()
    value(block, x)
    block.contraction.layers[0].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="hook"):
        value(block, x)


def test_hook_on_parameter():
    block, x = made()
    weight = weight_of(block)
    value(block, x)
    (plain,) = torch.autograd.grad(value(block, x).sum(), weight)
    weight.register_hook(lambda g: 3 * g)
    (found,) = torch.autograd.grad(value(block, x).sum(), weight)
    torch.testing.assert_close(found, 3 * plain)


def test_write_between_call_and_backward():
    block, x = made()
    leaves = parameters(block)
    losses = [value(block, x).sum() for _ in range(3)]
    wanted = torch.autograd.grad(losses[0], leaves)
    by_copy(block)
    torch.testing.assert_close(torch.autograd.grad(losses[1], leaves), wanted)
    found = torch.autograd.grad(losses[2], leaves, create_graph=True)
    torch.testing.assert_close([g.detach() for g in found], list(wanted))


def test_mode_between_call_and_backward():
    block, x = made()
    leaves = parameters(block)
    loss = value(block, x).sum()
    block.train()
    wanted = torch.autograd.grad(value(block, x).sum(), leaves)
    found = torch.autograd.grad(loss, leaves, create_graph=True)
    torch.testing.assert_close([g.detach() for g in found], list(wanted))
    sum(g.sum() for g in found).backward()
    block.eval()
    torch.testing.assert_close(torch.autograd.grad(value(block, x).sum(), leaves), wanted)


def test_batched_gradients():
    block, x = made()
    y = value(block, x).sum(0)
    arguments = {"inputs": weight_of(block), "grad_outputs": torch.eye(len(y)).to(y)}
    (found,) = torch.autograd.grad(y, **arguments, is_grads_batched=True, retain_graph=True)
    each = [torch.autograd.grad(v, weight_of(block), retain_graph=True)[0] for v in y]
    torch.testing.assert_close(found, torch.stack(each))


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoint(reentrant):
    block, x = made()
    value(block, x.requires_grad_()).sum().backward()
    wanted = [p.grad.clone() for p in block.parameters()]
    block.zero_grad()
    checkpoint(block, x, use_reentrant=reentrant).sum().backward()
    torch.testing.assert_close([p.grad for p in block.parameters()], wanted)


@pytest.mark.parametrize("first", [torch.no_grad, torch.inference_mode])
def test_modes_of_torch(first):
    block, x = made()
    with first():
        expected = value(block, x)
    y = value(block, x)
    y.sum().backward()
    assert all(layer.weight.grad is not None for layer in block.contraction.layers)
    torch.testing.assert_close(y.detach(), expected.clone())
    with first():
        torch.testing.assert_close(value(block, x), expected)


def test_torch_func():
    block, x = made()
    expected = value(block, x)
    others = {name: 0.5 * p.detach() for name, p in block.named_parameters()}
    found = torch.func.functional_call(block, others, (x,))
    assert not torch.allclose(found, expected)
    torch.testing.assert_close(value(block, x), expected)
    tangents = {n: torch.ones_like(p) for n, p in others.items()}
    _, slope = torch.func.jvp(
        lambda p: torch.func.functional_call(block, p, (x,)), (others,), (tangents,)
    )
    assert slope.abs().max() > 0


@pytest.mark.parametrize("how", ["attribute", "functional_call"])
def test_weight_that_a_network_makes(how):
    block, x = made()
    value(block, x)
    source = weight_of(block).detach().clone().requires_grad_()
    layer = block.contraction.layers[0]
    if how == "attribute":
        del layer._parameters["weight"]

    def gradients():
        weight = 2 * source
        if how == "attribute":
            layer.weight = weight
            y = value(block, x)
        else:
            state = {"contraction.layers.0.weight": weight}
            y = torch.func.functional_call(block, state, (x.clone(),))
        return torch.autograd.grad(y.sum(), [weight, source])

    found = [gradients() for _ in range(2)]
    block.train()
    torch.testing.assert_close(found, [gradients()] * 2)


class Hidden(Gram):
    """A norm whose factor nobody can see from outside."""

    def apply(self, weights, bounds, scales):
        acting, _ = super().apply(weights, bounds, scales)
        return FACTORS[0] * acting, None


FACTORS = [torch.tensor(0.5, dtype=torch.float64, requires_grad=True)]


def test_keeps_no_weights_of_hidden_parameter():
    block, x = made()
    block.contraction.norm = Hidden()
    first = value(block, x)
    with torch.no_grad():
        FACTORS[0].mul_(0.5)
    assert not torch.equal(first, value(block, x))
    assert torch.autograd.grad(value(block, x).sum(), FACTORS[0])[0] != 0


def test_copies_keep_nothing():
    block, x = made()
    y, state = value(block, x), block.state_dict()
    assert list(state) == list(lone_block().state_dict())
    for other in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        assert norms_in(lambda one=other: torch.testing.assert_close(one(x), y)) > 0


def test_replica_computes_by_itself():
    block, x = made()
    y = value(block, x)
    contraction = block.contraction._replicate_for_data_parallel()
    replica = block._replicate_for_data_parallel()
    contraction._modules = {
        name: copy.deepcopy(part) for name, part in block.contraction._modules.items()
    }
    replica._modules = {**block._modules, "contraction": contraction}
    contraction.layers[0].weight.data.mul_(-1.0)
    assert not torch.allclose(replica(x), y)
    torch.testing.assert_close(value(block, x), y)


def test_threads():
    block, x = made()
    leaves = parameters(block)
    expected = torch.autograd.grad(value(block, x).sum(), leaves)

    def work():
        for _ in range(20):
            found = torch.autograd.grad(value(block, x).sum(), leaves)
            torch.testing.assert_close(found, expected)

    assert zoo.errors_in_threads(work) == []


@pytest.mark.parametrize("name", ["block", "composed", "stack"])
def test_weights_die_with_module(name):
    flow, x = made(name)
    value(flow, x).sum().backward()
    with torch.no_grad():
        value(flow, x)
    kept = [weakref.ref(p) for p in flow.parameters()]
    gc.collect()
    gc.disable()
    try:
        del flow
        if name != "stack":
            # A torch transform is in a cycle of its own.
            assert all(ref() is None for ref in kept)
    finally:
        gc.enable()
    gc.collect()
    assert all(ref() is None for ref in kept)


def test_train_mode_frees_weights():
    flow, x = made("stack")
    with torch.no_grad():
        value(flow, x)
    held = [weakref.ref(m._kept[False].map) for m in contractions_of(flow)]
    assert all(ref() is not None for ref in held)
    flow.train()
    gc.collect()
    assert all(ref() is None for ref in held)


def test_inside_cached():
    block, x = made()
    y = value(block, x)
    with cached(block):
        torch.testing.assert_close(value(block, x), y)
        weight_of(block).data.mul_(-1.0)
        assert not torch.allclose(value(block, x), y)
    torch.testing.assert_close(value(block, x), anew(block, x))


def test_composite_of_nflows():
    flow, x = made("nflows")
    assert isinstance(flow, IResNetComposite)
    plain = CompositeTransform(list(flow._transforms)).eval()
    with torch.no_grad():
        expected = plain(x)
        assert norms_in(lambda: plain(x)) == 0
        torch.testing.assert_close(flow(x), expected)


@pytest.mark.parametrize("trained", ["one part", "all but one"])
def test_trains_a_part(trained):
    stack, x = made("stack")
    first, *others = contractions_of(stack)
    (first if trained == "all but one" else stack).requires_grad_(False)
    others[0].requires_grad_(True)
    for _ in range(3):
        value(stack, x).sum().backward()
        with torch.no_grad():
            for parameter in others[0].parameters():
                parameter.mul_(1.01)
        torch.testing.assert_close(value(stack, x), value(copy.deepcopy(stack), x))


def test_same_values_written_again():
    block, x = made()
    value(block, x)
    block.load_state_dict(block.state_dict())
    value(block, x).sum().backward()
    assert all(p.grad is not None for p in parameters(block))


def test_frozen_between_call_and_backward():
    block, x = made()
    loss = value(block, x).sum()
    weight_of(block).requires_grad_(False)
    loss.backward()
    assert all(p.grad is not None for p in parameters(block))


class Noisy(nn.Module):
    def forward(self, weight):
        return weight + 0.1 * torch.randn_like(weight)


@torch.no_grad()
def test_random_weights_are_not_kept():
    block, x = made()
    parametrize.register_parametrization(block.contraction.layers[0], "weight", Noisy())
    assert not torch.equal(value(block, x), value(block, x))


FACTOR = [1.0]


@dataclass(frozen=True)
class ByGlobal(Gram):
    def __call__(self, weight):
        return FACTOR[0] * super().__call__(weight)


@torch.no_grad()
def test_norm_of_a_user_is_not_kept():
    block, x = made()
    block.contraction.norm = ByGlobal()
    before = value(block, x)
    FACTOR[0] = 3.0
    try:
        assert not torch.equal(value(block, x), before)
    finally:
        FACTOR[0] = 1.0
