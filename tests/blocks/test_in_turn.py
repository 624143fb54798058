"""Blocks evaluated as one operation: equal to block by block, and left alone where that fails."""

from dataclasses import replace

import pytest
import torch

from pyro_iresnet import Exact, IResNet, ResidualBlock, Roulette, iresnet_stack
from pyro_iresnet.activations import LipSwish, Sine, Tanh
from pyro_iresnet.activations.sine import SIN, Sin
from pyro_iresnet.blocks import pack_blocks
from pyro_iresnet.contractions import Affine, Perceptron
from pyro_iresnet.coordinates import Asinh, DiagonalScale, TriangularScale
from pyro_iresnet.errors import ArgumentError
from pyro_iresnet.hosts.pyro import stack as stack_module
from pyro_iresnet.norms import Gram

from .. import zoo

OPTIONS = {
    "default": {},
    "plain": {"coordinates": None},
    "spread": {"coordinates": DiagonalScale(spread=1.0)},
    "sine": {"activation": Sine},
    "swish": {"activation": LipSwish},
    "gram": {"norm": Gram()},
    "one_dimension": {"input_dim": 1},
    "square": {"input_dim": 12, "hidden_dims": [12]},
}
LEFT_ALONE = {
    "two hidden layers": {"hidden_dims": [8, 8]},
    "no curvature": {"activation": Tanh},
    "stochastic": {"logdet": Roulette()},
    "triangular": {"coordinates": TriangularScale()},
    "nonlinear": {"coordinates": Asinh()},
    "Cayley": {"block": "cayley"},
    "narrow": {"hidden_dims": [3]},
}


EXACT = Exact()


def made(input_dim=4, hidden_dims=(12,), num_blocks=3, logdet=EXACT, packed=True, **options):
    torch.manual_seed(3)
    options = {"hidden_dims": hidden_dims, "logdet": logdet, **options}
    stack = iresnet_stack(input_dim, num_blocks, between=None, **options)
    if packed:
        pack_blocks(stack)
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return stack


@pytest.fixture
def taken(monkeypatch):
    """Record whether each run of blocks was evaluated as one operation."""
    found = []
    evaluate = stack_module.evaluate_in_turn

    def recorded(blocks, x):
        result = evaluate(blocks, x)
        found.append(result is not None)
        return result

    monkeypatch.setattr(stack_module, "evaluate_in_turn", recorded)
    return found


@pytest.fixture
def apart(monkeypatch):
    """Return a function that evaluates a stack block by block."""

    def evaluate(stack, x):
        with monkeypatch.context() as patch:
            patch.setattr(stack_module, "evaluate_in_turn", lambda blocks, x: None)
            return stack.evaluate(x)

    return evaluate


@pytest.mark.parametrize("second", [False, True], ids=["first", "second"])
@pytest.mark.parametrize("batch", [(), (1,), (6,), (2, 3), (0,)])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("packed", [False, True], ids=["apart", "packed"])
def test_equals_block_by_block(options, packed, batch, second, taken, apart):
    stack = made(packed=packed, **options)
    x = torch.randn(*batch, options.get("input_dim", 4), requires_grad=True)
    together = zoo.everything(stack, stack.evaluate(x), x, second=second)
    assert taken == [True]
    expected = zoo.everything(stack, apart(stack, x), x, second=second)
    torch.testing.assert_close(together, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("part", ["y", "log_det"])
def test_gradient_of_one_result(part, taken, apart):
    stack, x = made(), torch.randn(6, 4, requires_grad=True)
    found = []
    for evaluation in (stack.evaluate(x), apart(stack, x)):
        result = evaluation.y.sin() if part == "y" else evaluation.log_det()
        inputs = [x, *stack.parameters()]
        found.append(torch.autograd.grad(result.sum(), inputs, materialize_grads=True))
    assert taken == [True]
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("options", LEFT_ALONE.values(), ids=LEFT_ALONE)
def test_other_blocks(options, taken):
    made(**options).evaluate(torch.randn(6, 4))
    assert not any(taken)


def test_large_batches(taken):
    made().evaluate(torch.randn(10_000, 4))
    assert taken == [False]


def test_between_other_parts(taken, apart):
    torch.manual_seed(3)
    stack = iresnet_stack(4, 3, [12], logdet=Exact()).eval()
    alone = stack.evaluate(torch.randn(6, 4))
    assert not any(taken)
    parts = [*made().parts, stack.parts[0], *made().parts]
    mixed = stack_module.Stack(parts).eval()
    x = torch.randn(6, 4, requires_grad=True)
    together, expected = mixed.evaluate(x), apart(mixed, x)
    assert sum(taken) == 2
    torch.testing.assert_close(together.y, expected.y)
    torch.testing.assert_close(together.log_det(), expected.log_det())
    assert alone.y.shape == (6, 4)


def test_scales_far_apart(taken):
    stack = made()
    with torch.no_grad():
        stack.parts[0].block.coordinates.log_scale.copy_(torch.tensor([-4.0, 0.0, 0.0, 4.0]))
    stack.evaluate(torch.randn(6, 4))
    assert not any(taken)


def test_unequal_widths(taken):
    parts = [*made(hidden_dims=(12,)).parts, *made(hidden_dims=(8,)).parts]
    stack_module.Stack(parts).evaluate(torch.randn(6, 4))
    assert not any(taken)


def test_one_block_twice(taken, apart):
    [part] = made(num_blocks=1).parts
    stack, x = stack_module.Stack([part, part]), torch.randn(6, 4, requires_grad=True)
    together = zoo.everything(stack, stack.evaluate(x), x, second=True)
    expected = zoo.everything(stack, apart(stack, x), x, second=True)
    assert taken == [True]
    torch.testing.assert_close(together, expected)


def test_nan_rows(taken):
    stack, x = made(), torch.randn(6, 4)
    x[2] = torch.nan
    evaluation = stack.evaluate(x)
    assert taken == [True]
    for value in (evaluation.y, evaluation.log_det()):
        assert value.isnan().reshape(6, -1).any(1).tolist() == [i == 2 for i in range(6)]


def test_frozen_parameters(taken, apart):
    stack, x = made(packed=False), torch.randn(6, 4)
    frozen = stack.parts[1].block.contraction.layers[0].weight.requires_grad_(False)
    grads = []
    for evaluation in (stack.evaluate(x), apart(stack, x)):
        stack.zero_grad()
        (evaluation.y.sum() + evaluation.log_det().sum()).backward()
        assert frozen.grad is None
        grads.append([p.grad for p in stack.parameters() if p is not frozen])
    assert taken == [True]
    torch.testing.assert_close(*grads)


def test_gradient_of_the_points_alone(taken, apart):
    stack, x = made(packed=False), torch.randn(6, 4, requires_grad=True)
    found = []
    for evaluation in (stack.evaluate(x), apart(stack, x)):
        loss = evaluation.y.sin().sum() + evaluation.log_det().sum()
        found.append(torch.autograd.grad(loss, x, retain_graph=True)[0])
        # The weights are asked for later, and one of them alone.
        weight = stack.parts[1].block.contraction.layers[0].weight
        found.append(torch.autograd.grad(loss, weight)[0])
    assert taken == [True]
    torch.testing.assert_close(found[:2], found[2:])


def test_torch_func(taken):
    stack, x = made(), torch.randn(4)
    stack.eval()
    jacobian = torch.func.jacrev(lambda u: stack.evaluate(u).y)(x)
    expected = torch.linalg.slogdet(jacobian).logabsdet
    assert not any(taken)
    torch.testing.assert_close(stack.evaluate(x).log_det(), expected)


def test_batched_gradients(taken, apart):
    stack, x = made(), torch.randn(3, 4)

    def log_det(x):
        return stack.evaluate(x).log_det()

    together = torch.autograd.functional.jacobian(log_det, x, vectorize=True)
    assert any(taken)
    expected = torch.autograd.functional.jacobian(lambda x: apart(stack, x).log_det(), x)
    torch.testing.assert_close(together, expected)


def test_hooks_are_refused():
    stack = made()
    stack.parts[1].block.register_forward_hook(lambda *_: None)
    with pytest.raises(ArgumentError, match="block without hooks"):
        stack.evaluate(torch.randn(6, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtypes(dtype, taken, apart):
    stack = made().to(dtype)
    x = torch.randn(6, 4, dtype=dtype)
    together, expected = stack.evaluate(x), apart(stack, x)
    assert taken == [True]
    assert together.log_det().dtype == dtype
    torch.testing.assert_close(together.log_det(), expected.log_det())


class Doubled(Sin):
    def forward(self, x):
        return super().forward(x) / 2

    def value_and_slope(self, x):
        value, slope = super().value_and_slope(x)
        return value / 2, slope / 2


def test_activation_of_a_user(taken):
    made(activation=Doubled).evaluate(torch.randn(6, 4))
    assert not any(taken)


def test_activations_differ(taken, apart):
    parts = [*made(activation=Sine).parts, *made(activation=LipSwish).parts]
    stack, x = stack_module.Stack(parts), torch.randn(6, 4)
    torch.testing.assert_close(stack.evaluate(x).y, apart(stack, x).y)
    assert not any(taken)


class Shifted(Perceptron):
    """Network whose first layer has a shift of its own."""

    affine, kind = Affine, torch.nn.Linear

    def __init__(self, shift):
        super().__init__((4,), None, 0.9, Gram())
        self.layers = torch.nn.ModuleList([torch.nn.Linear(4, 8), torch.nn.Linear(8, 4)])
        self.activations = torch.nn.ModuleList([LipSwish()])
        self.shift = shift

    def layers_with(self, weights):
        first, *others = super().layers_with(weights)
        return [replace(first, shift=self.shift), *others]


def test_shift_of_a_user(taken, apart):
    parts = [IResNet(ResidualBlock(Shifted(torch.ones(8)), logdet=EXACT)) for _ in range(2)]
    stack, x = stack_module.Stack(parts), torch.randn(6, 4)
    torch.testing.assert_close(stack.evaluate(x).y, apart(stack, x).y)
    assert not any(taken)


def test_carries_have_no_graph(taken):
    stack, x = made(), torch.randn(6, 4)
    evaluation = stack.evaluate(x)
    w = torch.randn(6, 4, requires_grad=True)
    assert not evaluation.vjp(w).requires_grad
    assert not evaluation.inverse_vjp(w).requires_grad
    assert taken == [True]


def test_no_gradient_at_all(taken):
    class Nothing(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, *grads):
            return None

    stack, x = made(), torch.randn(6, 4, requires_grad=True)
    loss = Nothing.apply(stack.evaluate(x).y).sum() + x.square().sum()
    (grad,) = torch.autograd.grad(loss, x, create_graph=True)
    torch.testing.assert_close(grad, 2 * x)
    assert taken == [True]


@pytest.mark.parametrize("activation", [SIN, LipSwish().factors().core], ids=repr)
def test_curvature(activation):
    x = torch.linspace(-4.0, 4.0, 50).requires_grad_()
    value, slope, curvature = activation.value_slope_curvature(x)
    torch.testing.assert_close((value, slope), activation.value_and_slope(x))
    (expected,) = torch.autograd.grad(activation.value_and_slope(x)[1].sum(), x)
    torch.testing.assert_close(curvature, expected)
