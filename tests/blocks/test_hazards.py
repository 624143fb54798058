"""Hazards of a remembered or shared evaluation: threads, modes, replaced tensors, copies."""

import copy
import io
import math
import pickle
import threading

import pytest
import torch
from torch import nn
from torch.distributions import Transform, constraints
from torch.func import functional_call, grad, vmap

from pyro_iresnet import (
    Exact,
    Roulette,
    actnorm,
    cached,
    conditional_iresnet_stack,
    iresnet,
    iresnet_stack,
)
from pyro_iresnet.blocks import pack_blocks
from pyro_iresnet.coordinates import Asinh
from pyro_iresnet.hosts.pyro import LinearAutoregressive, Stack
from pyro_iresnet.logdet import ConvergedSeries, PowerSeries
from pyro_iresnet.operators import Diagonal, Linearization

from .. import zoo

TRANSFORMS = {
    "block": lambda: iresnet(3, [4]),
    "cayley": lambda: iresnet(3, [4], block="cayley"),
    "stack": lambda: iresnet_stack(3, 2, [4]),
    "nested": lambda: Stack([iresnet_stack(3, 1, [4]), iresnet(3, [4]).inv]),
    "actnorm": lambda: actnorm(3),
    "affine": lambda: LinearAutoregressive(3),
}


@pytest.fixture(params=TRANSFORMS)
def transform(request):
    """Make a transform whose ActNorms have started."""
    made = TRANSFORMS[request.param]()
    made(torch.randn(20, 3))
    return made


def parameters_of(transform):
    """List the parameters, those of a part that is no module included."""
    inverted = [part.inv for part in getattr(transform, "parts", ())]
    modules = [transform, *(m for m in inverted if isinstance(m, nn.Module))]
    return list({id(p): p for m in modules for p in m.parameters()}.values())


# ---------------------------------------------------------------------------- stale memory


def test_notices_data_write(transform):
    x = torch.randn(5, 3)
    for parameter in parameters_of(transform)[::3]:
        y = transform(x)
        transform.log_abs_det_jacobian(x, y)
        kept = parameter.data.clone()
        parameter.data.add_(0.3)
        expected = copy.deepcopy(transform)
        torch.testing.assert_close(transform(x), expected(x))
        torch.testing.assert_close(
            transform.log_abs_det_jacobian(x, transform(x)),
            expected.log_abs_det_jacobian(x, expected(x)),
        )
        assert parameter.grad is None
        parameter.data.copy_(kept)


def test_notices_equal_replacement():
    transform, x = iresnet(3, [4]), torch.randn(5, 3)
    layer = transform.block.contraction.layers[0]
    with cached(transform):
        transform(x)
        layer.weight = nn.Parameter(layer.weight.detach().clone())
        transform(x).sum().backward()
        assert layer.weight.grad is not None
    transform(x)
    layer.weight = nn.Parameter(layer.weight.detach().clone())
    transform(x).sum().backward()
    assert layer.weight.grad is not None


def test_notices_other_point(transform):
    x = torch.randn(5, 3)
    y = transform(x)
    assert transform.inv(y) is x
    assert transform.inv(y.clone()) is not x
    transform(x)
    x.data.add_(1.0)
    torch.testing.assert_close(transform(x), transform(x.clone()))


def test_notices_write_after_torch_func(transform):
    """Write to a parameter after a call inside a transform of torch.func, which keeps no values."""
    x = torch.randn(5, 3)
    before = grad(lambda scale: (scale * transform(x)).sum())(torch.ones(()))
    for parameter in parameters_of(transform):
        parameter.data.add_(0.3)
    after = transform(x).sum()
    assert not torch.allclose(after, before)
    torch.testing.assert_close(after, copy.deepcopy(transform)(x.clone()).sum())


# ---------------------------------------------------------------------------- copies


def test_copies_hold_no_graph(transform):
    x = torch.randn(5, 3)
    y = transform(x)
    transform.log_abs_det_jacobian(x, y)
    inverse = transform.inv
    inverse(y)
    with cached(transform):
        transform(x)
        for twin in (copy.deepcopy(transform), pickle.loads(pickle.dumps(transform))):
            assert twin._memory is None
            torch.testing.assert_close(twin(x), y)
            torch.testing.assert_close(twin.inv(twin(x).detach().clone()), x)
    file = io.BytesIO()
    torch.save(transform, file)


# ---------------------------------------------------------------------------- threads


def test_thread_inside_cached():
    block, x = zoo.block(), torch.randn(3, zoo.DIM)
    with cached(block):
        y = block(x)
        # The backward pass of one thread must not free the graph of the other.
        assert zoo.errors_in_threads(lambda: block(x).sum().backward(), count=1) == []
        y.sum().backward()
        again = block(x)
    torch.testing.assert_close(again, y)


class Gate(Transform):
    """Identity that waits, to hold a stack in the midst of a call."""

    domain = codomain = constraints.real_vector
    bijective = True

    def __init__(self):
        super().__init__()
        self.reached, self.open = threading.Event(), threading.Event()

    def _call(self, x):
        self.reached.set()
        assert self.open.wait(30)
        return x

    def log_abs_det_jacobian(self, x, y):
        return x.new_zeros(x.shape[:-1])

    def with_cache(self, cache_size=1):
        return self


def test_thread_inside_stack():
    gate, errors = Gate(), []
    stack, x = Stack([iresnet(3, [4]), gate, iresnet(3, [4])]), torch.randn(5, 3)
    block = stack.parts[2].block
    expected = block(x)

    def work():
        try:
            stack(x).sum().backward()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    assert gate.reached.wait(30)
    # The stack shares its weights in its own thread alone.
    assert len(block.contraction._shared) == 1
    y = block(x)
    torch.testing.assert_close(y, expected)
    y.sum().backward()
    gate.open.set()
    thread.join()
    assert errors == []
    assert block.contraction._shared == ()


# ---------------------------------------------------------------------------- NaN and empty


def test_infinite_slope_ends_series():
    slopes = torch.full((3, 2), 0.5)
    slopes[1] = math.inf
    at = Linearization(torch.zeros(3, 2), Diagonal(slopes))
    for estimator in (Roulette(control_variate=None), ConvergedSeries(), PowerSeries()):
        value = estimator(at, lipschitz=0.9)
        assert value.isfinite().tolist() == [True, False, True]


@pytest.mark.parametrize("estimator", [Exact(), Roulette(), PowerSeries(), ConvergedSeries()])
def test_nan_row_stays_alone(estimator):
    transform = iresnet(12, [8], logdet=estimator)
    x = torch.randn(4, 12)
    clean = transform(x)
    x[2, 5] = math.nan
    y = transform(x)
    log_det, rest = transform.log_abs_det_jacobian(x, y), torch.arange(4) != 2
    torch.testing.assert_close(y[rest], clean[rest])
    assert log_det.isfinite().tolist() == rest.tolist()


@pytest.mark.parametrize("batch", [(0,), (0, 3), (3, 0)])
def test_empty_batches(transform, batch):
    x = torch.zeros(*batch, 3, requires_grad=True)
    y = transform(x)
    log_det = transform.log_abs_det_jacobian(x, y)
    back = transform.inv(torch.zeros(*batch, 3))
    assert y.shape == back.shape == (*batch, 3)
    assert log_det.shape == batch
    (y.sum() + log_det.sum()).backward()
    assert x.grad.shape == x.shape


@pytest.mark.parametrize("estimator", [Roulette(), Roulette(probes=2), ConvergedSeries()])
def test_empty_batch_of_series(estimator):
    block = zoo.block(logdet=estimator)
    for batch in ((0,), (2, 0)):
        log_det = block.forward_and_log_det(torch.zeros(*batch, zoo.DIM))[1]
        assert log_det.shape == batch
        log_det.sum().backward()


@pytest.mark.parametrize("block", ["residual", "cayley"])
@pytest.mark.parametrize("coordinates", [None, Asinh()])
def test_empty_solve(block, coordinates):
    block = iresnet(3, [4], block=block, coordinates=coordinates).block
    solution = block.solve(torch.zeros(0, 3), max_steps=2)
    assert solution.value.shape == (0, 3)
    assert solution.converged.shape == (0,)


# ---------------------------------------------------------------------------- modes


def test_grad_mode_between_calls(transform):
    x = torch.randn(5, 3)
    with torch.no_grad():
        y = transform(x)
        assert not transform.log_abs_det_jacobian(x, y).requires_grad
    y = transform(x)
    assert y.requires_grad
    assert transform.log_abs_det_jacobian(x, y).requires_grad
    with torch.no_grad():
        assert not transform(x).requires_grad
    with torch.inference_mode():
        assert transform(x).is_inference()
    assert not transform(x).is_inference()


def few_blocks():
    return iresnet_stack(3, 3, [8], between=None, logdet=Exact())


def packed_blocks():
    stack = few_blocks()
    pack_blocks(stack)
    return stack


@pytest.mark.parametrize(
    ("make", "rows"),
    [
        (few_blocks, 5),
        (few_blocks, 500),
        (packed_blocks, 5),
        (lambda: iresnet_stack(20, 2, [32, 32]), 50),
        (lambda: iresnet_stack(20, 2, [32, 32], logdet=Roulette()), 50),
    ],
)
def test_backward_inside_autocast(make, rows):
    """Autocast rounds no gradient of the log-determinant, and breaks none."""
    torch.manual_seed(0)
    stack = make().float()
    x = torch.randn(rows, stack.parts[-1].event_shape[0]).float()
    stack(x)
    found = []
    for inside in (False, True):
        torch.manual_seed(1)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=inside):
            y = stack(x.clone())
            loss = (y.sin().sum() + stack.log_abs_det_jacobian(x, y).sum()).float()
            parameters = list(stack.parameters())
            found.append(torch.autograd.grad(loss, parameters, allow_unused=True))
    sizes = [g.abs().max() for g in found[0] if g is not None]
    for g, h in zip(*found, strict=True):
        assert (g is None) == (h is None)
        if g is not None:
            torch.testing.assert_close(g, h, rtol=0.05, atol=0.05 * float(max(sizes)))


def test_autocast_between_calls(transform):
    for parameter in parameters_of(transform):
        parameter.data = parameter.data.float()
    x = torch.randn(5, 3, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = transform(x)
        at = transform.evaluation(x=x)
        products = at.vjp(x), at.inverse_vjp(x)
    again = transform(x)
    assert again is not y
    torch.testing.assert_close(again, transform.with_cache(0)(x), rtol=0, atol=0)
    torch.testing.assert_close(y, again)
    at = transform.evaluation(x=x)
    torch.testing.assert_close(products, (at.vjp(x), at.inverse_vjp(x)))


@pytest.mark.parametrize("make", [iresnet, iresnet_stack])
def test_mode_between_calls(make):
    transform = make(20, hidden_dims=[8], logdet=None).train()
    x = torch.randn(50, 20)
    transform(x)
    x = x.clone()
    y = transform(x)
    drawn = transform.log_abs_det_jacobian(x, y)
    exact = transform.eval().log_abs_det_jacobian(x, y)
    assert torch.equal(transform.log_abs_det_jacobian(x, y), exact)
    assert not torch.equal(exact, drawn)
    assert not torch.equal(transform.train().log_abs_det_jacobian(x, y), exact)


def test_zero_cache(transform):
    other, x = transform.with_cache(0), torch.randn(5, 3)
    y = other(x)
    assert other(x) is not y
    assert other._memory is None
    torch.testing.assert_close(other.inv(y), x)
    assert other.inv(y) is not x
    torch.testing.assert_close(other(x), transform(x))
    assert other.with_cache(0) is other
    again = other.with_cache(1)
    assert again.inv(again(x)) is x
    assert {id(p) for p in parameters_of(other)} == {id(p) for p in parameters_of(transform)}


@pytest.mark.compiled
def test_compiles_after_call():
    """Compile after a call whose memory the graph must not meet."""
    transform, x = iresnet_stack(3, 1, [4]), torch.randn(20, 3)
    transform(x)

    def both(x):
        y = transform(x)
        return y, transform.log_abs_det_jacobian(x, y)

    compiled = torch.compile(both, fullgraph=True, backend="eager")
    x = x.clone()
    expected = both(x)
    torch.testing.assert_close(compiled(x), expected)
    with torch.no_grad():
        for parameter in transform.parameters():
            parameter.add_(0.1)
    found = compiled(x)
    assert not torch.allclose(found[0], expected[0])
    torch.testing.assert_close(found, both(x))


FRESH = {
    "stack": lambda: iresnet_stack(3, 1, [], between=None),
    "conditional": lambda: conditional_iresnet_stack(3, 2, 1, [], between=None).condition(
        torch.randn(5, 2)
    ),
}


@pytest.mark.compiled
@pytest.mark.parametrize("name", FRESH)
def test_compiles_fresh_stack(name):
    """Compile a stack that no call has seen."""
    torch._dynamo.reset()
    stack, x = FRESH[name](), torch.randn(5, 3)
    compiled = torch.compile(stack, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), stack(x))


@pytest.mark.compiled
def test_compiles_inverse():
    stack, y = Stack([LinearAutoregressive(3), LinearAutoregressive(3)]), torch.randn(5, 3)
    stack.parts[0].start_at(torch.ones(3), 2 * torch.eye(3))
    stack(y)
    compiled = torch.compile(lambda y: stack.inv(y), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(y), stack.inv(y))


# ---------------------------------------------------------------------------- derivatives


def test_backward_after_backward(transform):
    """Take gradients again, after a backward pass has freed the graph."""
    x = torch.randn(5, 3)
    gradients = []
    for of in ("y", "log_det", "both", "log_det", "y"):
        transform.zero_grad()
        y = transform(x)
        loss = x.new_zeros(())
        if of != "log_det":
            loss = loss + y.pow(2).sum()
        if of != "y":
            loss = loss + transform.log_abs_det_jacobian(x, y).sum()
        if loss.requires_grad:
            loss.backward()
        held = parameters_of(transform)
        gradients.append([0 * p if p.grad is None else p.grad.clone() for p in held])
        for p in held:
            p.grad = None
    for first, second, both in zip(*gradients[:3], strict=True):
        torch.testing.assert_close(first + second, both)
    for first, again in zip(gradients[:2], gradients[:2:-1], strict=True):
        for a, b in zip(first, again, strict=True):
            torch.testing.assert_close(a, b)


def test_second_derivatives(transform):
    def both(x):
        y = transform(x)
        return y.pow(2).sum() + transform.log_abs_det_jacobian(x, y).sum()

    def slope(x, create_graph=True):
        return torch.autograd.grad(both(x), x, create_graph=create_graph)[0].pow(2).sum()

    x = torch.randn(4, 3, requires_grad=True)
    expected = torch.autograd.grad(slope(x), x)[0]
    found = grad(lambda x: grad(both)(x).pow(2).sum())(x.detach())
    torch.testing.assert_close(found, expected)
    again = torch.autograd.grad(slope(x), x)[0]
    torch.testing.assert_close(again, expected)
    h = 1e-5 * torch.randn(4, 3)
    x = x.detach()
    ends = [slope((x + s * h).requires_grad_(), False) for s in (1, -1)]
    torch.testing.assert_close((ends[0] - ends[1]) / 2, (h * expected).sum(), rtol=1e-5, atol=0)


def test_functional_gradients(transform):
    """Gradients in substituted parameters, with a memory and without."""
    x = torch.randn(5, 3)
    state = {n: p.detach() for n, p in transform.named_parameters() if p.requires_grad}

    def loss(parameters):
        return functional_call(transform, parameters, (x,)).pow(2).sum()

    y = transform(x)
    found = grad(loss)(state)
    y.pow(2).sum().backward()
    for name, parameter in transform.named_parameters():
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(found[name], expected)
    # The memory of the call before is that of the module's own parameters.
    moved = {name: value + 0.1 for name, value in state.items()}
    assert not torch.allclose(functional_call(transform, moved, (x,)), y)
    torch.testing.assert_close(transform(x), y)


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("name", ["block", "stack", "affine"])
def test_ensemble_of_parameters(name, share):
    """Map over substituted parameters, with two calls that might share."""
    transform, x = TRANSFORMS[name]().eval(), torch.randn(5, 3)
    state = {n: p.detach() for n, p in transform.named_parameters()}
    states = {n: torch.stack([p, p + 0.1]) for n, p in state.items()}

    def twice(state):
        first = functional_call(transform, state, (x,))
        return first + functional_call(transform, state, (2 * x,))

    expected = torch.stack([twice({n: p[i] for n, p in states.items()}) for i in range(2)])
    with cached(transform if share else []):
        y = transform(x)
        torch.testing.assert_close(vmap(twice)(states), expected)
        torch.testing.assert_close(transform(x), y)
