"""Packed blocks: the function, the state and the indexing of blocks that are not packed."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils import prune

from pyro_iresnet import (
    Exact,
    InverseIResNet,
    Roulette,
    cached,
    conditional_iresnet_stack,
    iresnet,
    iresnet_flow,
    iresnet_stack,
)
from pyro_iresnet.activations import LipSwish, Sine, Tanh
from pyro_iresnet.blocks import pack_blocks
from pyro_iresnet.contractions.packed import pack, whole
from pyro_iresnet.coordinates import Asinh, DiagonalScale, TriangularScale
from pyro_iresnet.diagnostics import certificate
from pyro_iresnet.errors import ArgumentError, ArgumentTypeError
from pyro_iresnet.hosts.pyro import Stack
from pyro_iresnet.norms import Gram, Hard, Norm, SingularValue

B, D, HIDDEN = 4, 3, [6]
OPTIONS = {
    "default": {},
    "two layers": {"hidden_dims": [6, 5]},
    "linear": {"hidden_dims": []},
    "gram": {"norm": Gram()},
    "hard": {"norm": Hard(SingularValue())},
    "sine": {"activation": Sine},
    "swish": {"activation": LipSwish},
    "no parameters": {"activation": Tanh},
    "plain": {"coordinates": None},
    "triangular": {"coordinates": TriangularScale()},
    "nonlinear": {"coordinates": (Asinh(), DiagonalScale())},
    "cayley": {"block": "cayley"},
}


def pair(seed=0, **options):
    """Make a packed stack, and one of the same numbers that is not packed."""
    options = {"hidden_dims": HIDDEN, "logdet": Exact(), **options}
    torch.manual_seed(seed)
    packed = iresnet_stack(D, B, between=None, **options)
    pack_blocks(packed)
    torch.manual_seed(seed)
    apart = Stack([iresnet(D, **options) for _ in range(B)])
    torch.manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in apart.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    packed.load_state_dict(apart.state_dict())
    return packed, apart


def gradients(stack, loss):
    """Return gradients by the names of a state dict; those of packed blocks row by row."""
    parameters = dict(stack.named_parameters())
    grads = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
    by_id = {id(p): g for p, g in zip(parameters.values(), grads, strict=True)}
    found = {}
    for name, module in stack.named_modules():
        for key, parameter in module._parameters.items():
            grad = by_id[id(parameter)]
            packed = key.startswith("stacked_")
            found[f"{name}.{key.removeprefix('stacked_')}"] = grad[module._row] if packed else grad
    return found


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_state_dict_is_that_of_blocks_apart(options):
    packed, apart = pair(**options)
    expected, found = apart.state_dict(), packed.state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    fresh = pair(seed=7, **options)[1]
    fresh.load_state_dict(found)
    x = torch.randn(5, D)
    assert torch.equal(fresh(x), apart(x))


def results(stack, rows):
    x = torch.randn(rows, D, dtype=stack.state_dict()["0.block.contraction.layers.0.bias"].dtype)
    y = stack(x)
    log_det = stack.log_abs_det_jacobian(x, y)
    grads = gradients(stack, (y.sin().sum() + (y[:, 0].detach() * log_det).sum()))
    return [y, log_det, *[grads[name] for name in sorted(grads)]]


@pytest.mark.parametrize("rows", [1, 5, 100])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_equals_blocks_apart(options, rows):
    found = []
    for stack in pair(**options):
        torch.manual_seed(6)
        found.append(results(stack.double(), rows))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("rows", [5, 100])
def test_equals_blocks_apart_in_float32(rows):
    found = []
    for stack in pair(activation=LipSwish):
        torch.manual_seed(6)
        found.append(results(stack.float(), rows))
    torch.testing.assert_close(*found, rtol=2e-4, atol=2e-5)


def test_stochastic_estimators():
    """The same draws: packing changes no random number."""
    packed, apart = pair(logdet=Roulette())
    x, found = torch.randn(50, D), []
    for stack in (packed, apart):
        torch.manual_seed(5)
        found.append(stack.log_abs_det_jacobian(x, stack(x)))
    torch.testing.assert_close(*found)


def test_inverse():
    packed, apart = pair()
    y = torch.randn(5, D)
    torch.testing.assert_close(packed.inv(y), apart.inv(y))
    torch.testing.assert_close(packed(packed.inv(y)), y, rtol=0, atol=1e-10)


def test_certificate():
    packed, apart = pair()
    assert repr(certificate(packed)) == repr(certificate(apart))


@pytest.mark.parametrize("i", range(B))
def test_single_blocks(i):
    packed, apart = pair()
    x = torch.randn(5, D)
    block, expected = packed.parts[i].block, apart.parts[i].block
    assert type(block) is type(expected)
    torch.testing.assert_close(block.forward_and_log_det(x), expected.forward_and_log_det(x))
    torch.testing.assert_close(block.lipschitz_bound(), expected.lipschitz_bound())
    assert torch.equal(block.contraction.layers[0].weight, expected.contraction.layers[0].weight)
    assert list(block.state_dict()) == list(expected.state_dict())
    alone, before = iresnet(D, HIDDEN, logdet=Exact()), packed.state_dict()
    alone.load_state_dict(packed.parts[i].state_dict())
    torch.testing.assert_close(alone(x), apart.parts[i](x))
    packed.parts[i].load_state_dict(pair(seed=9)[1].parts[i].state_dict())
    assert not torch.equal(packed.parts[i](x), apart.parts[i](x))
    others = [name for name in before if not name.startswith(f"{i}.")]
    assert all(torch.equal(packed.state_dict()[name], before[name]) for name in others)


def test_one_tensor_for_each_weight():
    packed, apart = pair()
    ours, theirs = list(packed.parameters()), list(apart.parameters())
    assert len(ours) * B == len(theirs)
    assert sum(p.numel() for p in ours) == sum(p.numel() for p in theirs)
    assert all(p.is_leaf and p.requires_grad for p in ours)
    flow = iresnet_flow(D, B)
    pack_blocks(flow)
    blocks = [m for m in flow.modules() if hasattr(m, "contraction")]
    assert len({id(p) for b in blocks for p in b.parameters()}) == len(list(blocks[0].parameters()))


def test_training_is_that_of_blocks_apart():
    x, losses = torch.randn(40, D), []
    for stack in pair():
        optimizer = torch.optim.Adam(stack.parameters(), lr=1e-2)
        for _ in range(20):
            optimizer.zero_grad()
            y = stack(x)
            loss = (0.5 * y.square().sum(-1) - stack.log_abs_det_jacobian(x, y)).mean()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def clone_by_pickle(stack):
    return pickle.loads(pickle.dumps(stack))


@pytest.mark.parametrize("clone", [copy.deepcopy, clone_by_pickle])
def test_copies(clone):
    packed, _ = pair()
    x = torch.randn(5, D)
    y = packed(x)
    other = clone(packed)
    assert torch.equal(other(x), y)
    assert len(list(other.parameters())) == len(list(packed.parameters()))
    assert whole([p.block.contraction for p in other.parts]) is not None
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1)
    assert torch.equal(packed(x), y)
    assert not torch.allclose(other(x), y)


def test_strict_loading():
    packed, apart = pair()
    name = "1.block.contraction.layers.0.weight"
    missing = {k: v for k, v in apart.state_dict().items() if k != name}
    with pytest.raises(RuntimeError, match=f'Missing key.*"{name}"'):
        packed.load_state_dict(missing)
    assert packed.load_state_dict(missing, strict=False).missing_keys == [name]
    with pytest.raises(
        RuntimeError, match=r"size mismatch for 1\.block\.contraction\.layers\.0\.weight"
    ):
        packed.load_state_dict({**missing, name: torch.zeros(7, D)})
    other = iresnet_stack(D, B, HIDDEN, between=None, lipschitz=0.5)
    with pytest.raises(RuntimeError, match=r"lipschitz is 0\.97 in the state dict and 0\.5 here"):
        other.load_state_dict(apart.state_dict())


def test_loading_by_assignment():
    packed, _ = pair()
    _, apart = pair(seed=3)
    packed.load_state_dict(apart.state_dict(), assign=True)
    x = torch.randn(5, D)
    torch.testing.assert_close(packed(x), apart(x))
    empty = copy.deepcopy(packed).to("meta")
    with pytest.raises(ArgumentError, match="to_empty"):
        empty.load_state_dict(apart.state_dict(), assign=True)
    whole_again = empty.to_empty(device="cpu")
    whole_again.load_state_dict(apart.state_dict())
    torch.testing.assert_close(whole_again(x), apart(x))


@pytest.mark.filterwarnings("ignore:The state dict holds no settings")
def test_loads_stacked_tensors():
    """An average by hand over the parameters, loaded with ``strict=False``."""
    packed, _ = pair()
    shadow = {name: p.detach() + 0.1 for name, p in packed.named_parameters()}
    found = packed.load_state_dict(shadow, strict=False)
    assert not found.unexpected_keys
    assert all(torch.equal(p, shadow[name]) for name, p in packed.named_parameters())
    name = next(iter(shadow))
    with pytest.raises(RuntimeError, match="the rows of all packed blocks"):
        packed.load_state_dict({name: shadow[name][:2]}, strict=False)


def test_norms_of_a_user():
    class Single(Norm):
        """Knows matrices one by one."""

        def __call__(self, weight):
            return weight.square().sum((-2, -1)).sqrt()

        def constrain_all(self, weights, bounds, scales=None):
            assert all(w.dim() == 2 for w in weights)
            return super().constrain_all(weights, bounds, scales)

    stack = iresnet_stack(D, B, HIDDEN, between=None, norm=Single())
    count = len(list(stack.parameters()))
    pack_blocks(stack)
    assert len(list(stack.parameters())) == count
    packed, apart = pair()
    for stack in (packed, apart):
        for part in stack.parts:
            part.block.contraction.norm = Single()
    x = torch.randn(5, D)
    torch.testing.assert_close(packed(x), apart(x))


@pytest.mark.parametrize("make", ["conditional", "user"])
def test_leaves_the_rest_whole(make):
    class Own(LipSwish):
        pass

    if make == "conditional":
        stack = conditional_iresnet_stack(D, 2, B, HIDDEN)
    else:
        stack = iresnet_stack(D, B, HIDDEN, activation=Own)
    names = [name for name, _ in stack.named_parameters()]
    pack_blocks(stack)
    assert [name for name, _ in stack.named_parameters()] == names


def test_packs_once():
    packed, _ = pair()
    before = dict(packed.named_parameters())
    pack_blocks(packed)
    assert dict(packed.named_parameters()).keys() == before.keys()
    assert all(before[name] is p for name, p in packed.named_parameters())


def test_refuses_no_flow():
    with pytest.raises(ArgumentTypeError, match="flow"):
        pack_blocks(3)


def test_substituted_parameters():
    packed, _ = pair()
    x = torch.randn(5, D)
    before = packed(x)
    state = {name: p.detach() + 0.1 for name, p in packed.named_parameters()}
    moved = functional_call(packed, state, (x,))
    assert torch.equal(packed(x), before)
    with torch.no_grad():
        for parameter in packed.parameters():
            parameter.add_(0.1)
    torch.testing.assert_close(packed(x), moved)


def test_writes_in_place():
    packed, apart = pair()
    x = torch.randn(5, D)
    packed.eval()
    with torch.no_grad(), cached(packed):
        packed(x)
        for stack in (packed, apart):
            stack.parts[2].block.contraction.layers[0].weight.mul_(2.0)
            stack.parts[1].block.contraction.layers[1].bias.data.add_(1.0)
        torch.testing.assert_close(packed(x), apart(x))
    with torch.no_grad():
        torch.testing.assert_close(packed(x), apart(x))


def test_refuses_other_tensors():
    layer = pair()[0].parts[0].block.contraction.layers[0]
    for value in (torch.zeros(6, D), nn.Parameter(torch.zeros(6, D)), None):
        with pytest.raises(ArgumentError, match="Write rows in place"):
            layer.weight = value


def test_refuses_pruning():
    stack = pair()[0]
    with pytest.raises(ArgumentError, match="stack blocks of your own: Stack"):
        prune.identity(stack.parts[0].block.contraction.layers[0], "weight")
    stack(torch.randn(5, D))


def own_layer(stack):
    layer = nn.Linear(D, HIDDEN[0])
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(-1, 1, 18).reshape(6, 3))
        layer.bias.fill_(0.1)
    stack.parts[1].block.contraction.layers[0] = layer


def bound(stack):
    stack.parts[1].block.contraction.lipschitz = 0.5


def norm(stack):
    stack.parts[3].block.contraction.norm = Gram()


def frequency(stack):
    stack.parts[0].block.contraction.activations[0] = Sine((0.1, 3.0))


def bounds(stack):
    g = stack.parts[2].block.contraction
    raw = g.raw_weights
    g.raw_weights = lambda: [w._replace(bound=0.3 * w.bound) for w in raw()]


def order(stack):
    stack.parts = [*stack.parts[2:], *stack.parts[:2]]


def fewer(stack):
    stack.parts = stack.parts[1:]


def twice(stack):
    stack.parts = [*stack.parts, stack.parts[0]]


CHANGES = (own_layer, bound, norm, frequency, bounds, order, fewer, twice)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("rows", [5, 100])
def test_changes_of_single_blocks(change, rows):
    """A change of one block acts on this block, as it does without a pack."""
    stacks, x = pair(), torch.randn(rows, D)
    before = stacks[0](x)
    found = []
    for stack in stacks:
        change(stack)
        y = stack(x)
        found.append((y, stack.log_abs_det_jacobian(x, y)))
    torch.testing.assert_close(*found)
    assert not torch.allclose(found[0][0], before)


@pytest.mark.parametrize("i", range(2))
def test_refuses_hooks_on_any_block(i):
    packed, _ = pair()
    contraction = packed.parts[i].block.contraction
    contraction.layers[0].register_forward_hook(lambda *_: None)
    with pytest.raises(ArgumentError, match="without hooks on its call"):
        packed(torch.randn(5, D))


def test_frozen_together():
    packed, _ = pair()
    packed.requires_grad_(False)
    x = torch.randn(5, D, requires_grad=True)
    packed(x).sum().backward()
    assert all(p.grad is None for p in packed.parameters())
    assert x.grad is not None


def test_alternating_records():
    records = [{"lipschitz": 0.5}, {"lipschitz": 0.9}]
    torch.manual_seed(0)
    stack = iresnet_stack(D, B, HIDDEN, between=None)
    options = [stack.parts[0].block.options]
    made = [type(options[0])(**{**r, "hidden_dims": HIDDEN}) for r in records]
    stack = iresnet_stack(D, B, between=None, options=made)
    pack_blocks(stack)
    even, odd = ([p.block.contraction for p in stack.parts[i::2]] for i in range(2))
    assert whole(even) is not None
    assert whole(odd) is not None
    assert whole([*even, *odd]) is None
    x = torch.randn(5, D)
    expected = x
    for part in stack.parts:
        expected = part(expected)
    torch.testing.assert_close(stack(x), expected)


def test_inverse_blocks():
    made = [iresnet(D, HIDDEN, logdet=Exact()) for _ in range(B)]
    stack = Stack([t if i % 2 else InverseIResNet(t.block) for i, t in enumerate(made)])
    pack_blocks(stack)
    x = torch.randn(20, D)
    y = stack(x)
    torch.testing.assert_close(stack.inv(y.detach()), x, rtol=0, atol=1e-10)


def frozen(modules):
    modules[1].weight.requires_grad_(False)


def hooked(modules):
    modules[1].register_forward_hook(lambda *_: None)


def shared(modules):
    modules[1].weight = modules[0].weight


def of_another_dtype(modules):
    modules[1].double() if modules[0].weight.dtype is torch.float32 else modules[1].float()


def buffered(modules):
    modules[1].register_buffer("count", torch.zeros(()))


def parametrized(modules):
    nn.utils.parametrizations.weight_norm(modules[1])


@pytest.mark.parametrize(
    "spoil", [frozen, hooked, shared, of_another_dtype, buffered, parametrized]
)
def test_leaves_other_modules(spoil):
    modules = [nn.Linear(3, 4) for _ in range(3)]
    spoil(modules)
    kinds = [type(m) for m in modules]
    names = [[name for name, _ in m.named_parameters()] for m in modules]
    pack(modules)
    assert [type(m) for m in modules] == kinds
    assert [[name for name, _ in m.named_parameters()] for m in modules] == names


def test_leaves_blocks_with_shared_weights():
    """Layers that share a weight inside of a block would train apart."""
    stack = iresnet_stack(D, 2, [6, 6, 6], between=None)
    for part in stack.parts:
        layers = part.block.contraction.layers
        layers[2].weight = layers[1].weight
    names = [name for name, _ in part.block.contraction.named_parameters()]
    pack_blocks(stack)
    assert [name for name, _ in part.block.contraction.named_parameters()] == names


def test_leaves_blocks_of_other_shapes():
    parts = [iresnet(D, HIDDEN), iresnet(D, [7])]
    pack_blocks(parts)
    assert not any(hasattr(m, "stacked") for p in parts for m in p.block.contraction.modules())
