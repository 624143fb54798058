"""Value and dense Jacobian as one operation: equal to layer by layer, and left alone elsewhere."""

from functools import partial

import pytest
import torch

from pyro_iresnet import Exact, ResidualBlock, Roulette
from pyro_iresnet.activations import Sine, Tanh
from pyro_iresnet.contractions import sequential as module
from pyro_iresnet.coordinates import Asinh, DiagonalScale
from pyro_iresnet.operators import perceptron

from .. import zoo

EXACT = Exact()
HIDDEN = [(9,), (9, 8), (8, 9, 8), (8, 8, 8, 9)]
NETWORKS = {
    "default": {},
    "sine": {"activation": partial(Sine, (0.5, 5.0))},
    "square": {"hidden_dims": (5, 5)},
}
LEFT_ALONE = {
    "no hidden layer": {"hidden_dims": ()},
    "no curvature": {"activation": Tanh},
    "narrow": {"hidden_dims": (9, 3)},
    "many coordinates": {"dim": 9},
}


def made(dim=5, hidden_dims=(9, 8), logdet=EXACT, coordinates=None, **options):
    torch.manual_seed(3)
    g = zoo.dense(dim, hidden_dims, lipschitz=0.9, **options)
    return ResidualBlock(g, logdet=logdet, coordinates=coordinates)


@pytest.fixture
def taken(monkeypatch):
    """Record whether each linearization was one operation."""
    found = []
    linearize = module.linearize_perceptron

    def recorded(*arguments):
        result = linearize(*arguments)
        found.append(result is not None)
        return result

    monkeypatch.setattr(module, "linearize_perceptron", recorded)
    return found


@pytest.fixture
def apart(monkeypatch):
    """Return a function that evaluates a block layer by layer."""

    def evaluate(block, *arguments):
        with monkeypatch.context() as patch:
            patch.setattr(module, "linearize_perceptron", lambda *_: None)
            return block.evaluate(*arguments)

    return evaluate


def check_equal(block, x, taken, apart, *, second=False, rtol=1e-9, atol=1e-10):
    found = zoo.everything(block, block.evaluate(x), x, second=second)
    assert taken == [True]
    expected = zoo.everything(block, apart(block, x), x, second=second)
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("second", [False, True], ids=["first", "second"])
@pytest.mark.parametrize("dim", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("hidden", HIDDEN)
def test_equals_layer_by_layer(hidden, dim, second, taken, apart):
    x = torch.randn(7, dim, requires_grad=True)
    check_equal(made(dim, hidden), x, taken, apart, second=second)


@pytest.mark.parametrize("second", [False, True], ids=["first", "second"])
@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)
def test_networks(options, second, taken, apart):
    x = torch.randn(7, 5, requires_grad=True)
    check_equal(made(**options), x, taken, apart, second=second)


@pytest.mark.parametrize("dim", [2, 5])
@pytest.mark.parametrize("hidden", HIDDEN[:3])
@pytest.mark.parametrize("batch", [(), (1,), (2, 3), (0,)])
def test_batches(batch, hidden, dim, taken, apart):
    x = torch.randn(*batch, dim, requires_grad=True)
    check_equal(made(dim, hidden), x, taken, apart, second=True)


@pytest.mark.parametrize("coordinates", [Asinh(), DiagonalScale()], ids=repr)
def test_coordinates(coordinates, taken, apart):
    x = torch.randn(7, 5, requires_grad=True)
    check_equal(made(coordinates=coordinates), x, taken, apart)


@pytest.mark.parametrize("dim", [2, 5])
def test_float32(dim, taken, apart):
    x = torch.randn(7, dim, dtype=torch.float32, requires_grad=True)
    check_equal(made(dim).float(), x, taken, apart, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", LEFT_ALONE.values(), ids=LEFT_ALONE)
def test_other_networks(options, taken):
    block = made(**options)
    block.evaluate(torch.randn(7, options.get("dim", 5))).log_det()
    assert not any(taken)


def test_other_estimators_and_modes(taken):
    x = torch.randn(7, 5)
    made(logdet=Roulette()).evaluate(x).log_det()
    block = made()
    with torch.no_grad():
        block.evaluate(x).log_det()
    torch.func.vmap(lambda row: block.evaluate(row).log_det())(x)
    assert not any(taken)


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_products(batch, taken):
    g, x = made().contraction_map(), torch.randn(*batch, 5)
    found, expected = g.linearize_densely(x), g.linearize(x)
    assert taken == [True]
    v, index = torch.randn(3, *batch, 5), torch.tensor([0, 0])
    torch.testing.assert_close(found.mv(v), expected.mv(v))
    torch.testing.assert_close(found.vm(v), expected.vm(v))
    parts = [at.select(index).as_matrix() for at in (found, expected)]
    torch.testing.assert_close(*parts)
    assert found.jacobian.widths() == (5, 5)


def test_large_batches(taken, monkeypatch):
    monkeypatch.setattr(perceptron, "LARGEST", 7 * 5 * 9)
    made().evaluate(torch.randn(7, 5))
    made().evaluate(torch.randn(8, 5))
    assert taken == [True, False]


def test_context(taken):
    block = made(context_dim=2)
    block.evaluate(torch.randn(7, 5), torch.randn(7, 2)).log_det()
    assert not any(taken)


@pytest.mark.parametrize("part", ["y", "log_det"])
def test_gradient_of_one_result(part, taken, apart):
    block, x = made(), torch.randn(7, 5, requires_grad=True)
    found = []
    for evaluation in (block.evaluate(x), apart(block, x)):
        result = evaluation.y.sin() if part == "y" else evaluation.log_det()
        inputs = [x, *block.parameters()]
        found.append(torch.autograd.grad(result.sum(), inputs, materialize_grads=True))
    assert taken == [True]
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("dim", [2, 5])
def test_nan_rows(dim, taken):
    block, x = made(dim), torch.randn(6, dim)
    x[2] = torch.nan
    x.requires_grad_()
    evaluation = block.evaluate(x)
    loss = evaluation.y.sum() + evaluation.log_det().sum()
    assert taken == [True]
    (grad,) = torch.autograd.grad(loss, x)
    for value in (evaluation.y, evaluation.log_det(), grad):
        assert value.isnan().reshape(6, -1).any(1).tolist() == [i == 2 for i in range(6)]


@pytest.mark.parametrize("frozen", ["one", "all"])
def test_frozen_parameters(frozen, taken, apart):
    block, x = made(), torch.randn(7, 5, requires_grad=True)
    block.requires_grad_(frozen == "one")
    block.contraction.layers[1].weight.requires_grad_(False)
    found = []
    for evaluation in (block.evaluate(x), apart(block, x)):
        block.zero_grad()
        x.grad = None
        (evaluation.y.sin().sum() + evaluation.log_det().sum()).backward()
        assert block.contraction.layers[1].weight.grad is None
        found.append([x.grad, *[p.grad for p in block.parameters() if p.grad is not None]])
    assert taken == [True]
    torch.testing.assert_close(*found)


def test_shared_parameters(taken, apart):
    block, x = made(hidden_dims=(8, 8, 8)), torch.randn(7, 5, requires_grad=True)
    block.contraction.layers[2].weight = block.contraction.layers[1].weight
    check_equal(block, x, taken, apart, second=True)


def test_backward_twice():
    block, x = made(2), torch.randn(7, 2, requires_grad=True)
    evaluation = block.evaluate(x)
    loss = evaluation.y.sin().sum() + evaluation.log_det().sum()
    inputs = [x, *block.parameters()]
    once = torch.autograd.grad(loss, inputs, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(loss, inputs), once, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("dim", [2, 5])
def test_batched_gradients(dim, taken, apart):
    block, x = made(dim), torch.randn(3, dim)

    def log_det(x):
        return block.evaluate(x).log_det()

    found = torch.autograd.functional.jacobian(log_det, x, vectorize=True)
    assert any(taken)
    expected = torch.autograd.functional.jacobian(lambda x: apart(block, x).log_det(), x)
    torch.testing.assert_close(found, expected)


def test_second_derivative_in_the_last_bias_alone(apart):
    """The Jacobian does not depend on this parameter."""
    block, x = made().requires_grad_(False), torch.randn(3, 5)
    bias = block.contraction.layers[-1].bias.requires_grad_()
    found = []
    for evaluation in (block.evaluate(x), apart(block, x)):
        (grad,) = torch.autograd.grad(evaluation.y.sin().sum(), bias, create_graph=True)
        found += [grad, torch.autograd.grad(grad.square().sum(), bias)[0]]
    torch.testing.assert_close(found[:2], found[2:])
