"""Errors of wrong input name the argument, the expectation and the remedy."""

import pytest
import torch
from torch import nn

import pyro_iresnet
from pyro_iresnet import (
    ByMode,
    CayleyBlock,
    DenseContraction,
    Exact,
    FixedPoint,
    InversionError,
    IResNet,
    IResNetError,
    IResNetTransform,
    Newton,
    PowerSeries,
    ResidualBlock,
    Roulette,
    actnorm,
    conditional_iresnet,
    conditional_iresnet_flow,
    conditional_iresnet_stack,
    iresnet,
    iresnet_stack,
    testing,
    wrap,
)
from pyro_iresnet.activations import LipSwish, Sine
from pyro_iresnet.blocks import Block
from pyro_iresnet.contractions import Contraction
from pyro_iresnet.errors import ArgumentError, ArgumentTypeError
from pyro_iresnet.hosts.pyro import ConditionalStack, Stack
from pyro_iresnet.logdet import Adaptive
from pyro_iresnet.norms import Gram, PowerIteration
from pyro_iresnet.solvers import solve

from .. import zoo


class Forgetful(Contraction):
    def __init__(self, **said):
        super().__init__()
        vars(self).update(said)

    def forward(self, x, context=None):
        return 0.5 * x

    def lipschitz_bound(self):
        return torch.tensor(0.5)


class Shrinks(nn.Module):
    def forward(self, x):
        return x[..., :1]


VALUES = {
    "lipschitz_one": (lambda: iresnet(2, lipschitz=1.0), r"lipschitz in \(0, 1\); got 1.0"),
    "lipschitz_zero": (lambda: iresnet(2, lipschitz=0.0), r"lipschitz in \(0, 1\); got 0.0"),
    "lipschitz_nan": (lambda: iresnet(2, lipschitz=float("nan")), "got nan"),
    "dim": (lambda: iresnet(0), "input_dim to be at least 1; got 0"),
    "hidden": (lambda: iresnet(2, [8, 0]), r"hidden_dims\[1\] to be at least 1; got 0"),
    "hidden_features": (lambda: IResNetTransform(2, 0), "hidden_features to be at least 1"),
    "context": (lambda: IResNetTransform(2, 8, 0), "context_features to be at least 1"),
    "num_blocks": (lambda: iresnet_stack(2, 0), "num_blocks to be at least 1; got 0"),
    "actnorm": (lambda: actnorm(0), "input_dim to be at least 1; got 0"),
    "terms": (lambda: PowerSeries(terms=0), "terms to be at least 1"),
    "probes": (lambda: Roulette(probes=0), "probes to be at least 1"),
    "threshold": (lambda: Adaptive(threshold=0.0), "threshold to be finite and above 0"),
    "exact_terms": (lambda: Adaptive(exact_terms=0), "exact_terms to be at least 1"),
    "squarings": (lambda: Gram(0), "squarings to be at least 1"),
    "steps": (lambda: PowerIteration(0), "steps to be at least 1"),
    "rtol": (lambda: FixedPoint(rtol=-1.0), "rtol to be finite and at least 0; got -1.0"),
    "atol": (lambda: FixedPoint(atol=-1.0), "atol to be finite and at least 0; got -1.0"),
    "max_steps": (lambda: FixedPoint(max_steps=0), "max_steps to be at least 1"),
    "beta": (lambda: LipSwish(beta=0.0), "beta to be finite and above 0"),
    "low frequency": (lambda: Sine((-1.0, 2.0)), "limit of frequencies to be finite and above 0"),
    "frequencies": (lambda: Sine((2.0, 1.0)), "two numbers, the lower first, in"),
    "bound": (lambda: wrap(nn.Identity(), lipschitz=1.5), r"lipschitz in \(0, 1\); got 1.5"),
    "event_dim": (lambda: wrap(nn.Identity(), lipschitz=0.5, event_dim=0), "event_dim"),
    "event": (
        lambda: zoo.block(2)(torch.randn(256, 3)),
        r"Expected x with event shape \(2,\); got \(256, 3\)",
    ),
    "event_of_y": (
        lambda: zoo.block(2).inverse(torch.randn(256, 3)),
        r"Expected y with event shape \(2,\); got \(256, 3\)",
    ),
    "no_event": (lambda: zoo.block(2)(torch.tensor(1.0)), r"event shape \(2,\); got \(\)"),
    "image": (
        lambda: zoo.CONTRACTIONS["wrapped_image"]()(torch.randn(3, 4)),
        r"event shape \(any, any, any\); got \(3, 4\)",
    ),
    "keeps_shape": (
        lambda: wrap(Shrinks(), lipschitz=0.5)(torch.randn(4, 3)),
        r"module to keep the shape \(4, 3\) of x; it returned \(4, 1\)",
    ),
    "context_missing": (
        lambda: zoo.CONDITIONAL["conditional_dense"]()(torch.randn(4, zoo.DIM)),
        "context of size 3; got none",
    ),
    "context_superfluous": (
        lambda: zoo.block()(torch.randn(4, zoo.DIM), torch.randn(4, 3)),
        "Expected no context",
    ),
    "context_batch": (
        lambda: zoo.CONDITIONAL["conditional_dense"]()(
            torch.randn(4, zoo.DIM), torch.randn(5, zoo.CONTEXT)
        ),
        "batch shapes that broadcast",
    ),
    "x0_nan": (
        lambda: solve(zoo.dense(), torch.randn(zoo.DIM), x0=torch.full((zoo.DIM,), torch.nan)),
        "x0 to be finite",
    ),
    "pair": (
        lambda: iresnet(2).log_abs_det_jacobian(torch.randn(3, 2), torch.randn(3, 4)),
        r"y with event shape \(2,\); got \(3, 4\)",
    ),
    "x0": (
        lambda: solve(zoo.dense(), torch.randn(4, zoo.DIM), x0=torch.randn(3, zoo.DIM)),
        r"x0 of the shape \(4, 5\) of y; got \(3, 5\)",
    ),
    "forward_shape": (lambda: iresnet(2).forward_shape((7, 3)), r"got \(7, 3\)"),
    "attributes": (
        lambda: ResidualBlock(Forgetful()),
        "Forgetful.__init__ to set event_shape, context_dim, lipschitz",
    ),
    "promise": (
        lambda: ResidualBlock(Forgetful(event_shape=(2,), context_dim=None, lipschitz=1.5)),
        r"lipschitz in \(0, 1\); got 1.5",
    ),
    "checked_attributes": (
        lambda: testing.check_contraction(Forgetful(), torch.randn(5, 2)),
        "Forgetful.__init__ to set event_shape",
    ),
    "no_context_embedded": (
        lambda: conditional_iresnet_flow(2, 3, embedding_net=nn.Linear(4, 3)).log_prob(
            torch.randn(5, 2)
        ),
        "Expected a context for this conditional flow; got none",
    ),
    "unconditioned": (
        lambda: conditional_iresnet(2, 3)(torch.randn(5, 2)),
        r"ConditionalIResNet is conditional. Call transform.condition\(context\)",
    ),
    "unconditioned_stack": (
        lambda: conditional_iresnet_stack(2, 3)(torch.randn(5, 2)),
        "Expected a context first: ConditionalStack",
    ),
}

TYPES = {
    "lipschitz": (lambda: iresnet(2, lipschitz="0.9"), "lipschitz to be a number"),
    "dim": (lambda: iresnet(2.0), "input_dim to be an integer"),
    "hidden": (
        lambda: iresnet(2, 64),
        r"hidden_dims to be a sequence of integers such as \[64, 64\]",
    ),
    "hidden_string": (lambda: iresnet(2, "64"), "hidden_dims to be a sequence"),
    "norm": (lambda: iresnet(2, norm="gram"), r"norm to be a Norm such as Gram\(\); got str"),
    "norm_class": (lambda: iresnet(2, norm=Gram), "got the class Gram. Call it"),
    "logdet": (lambda: iresnet(2, logdet="exact"), r"logdet to be a LogDet such as Exact\(\)"),
    "solver": (lambda: iresnet(2, solver=5), r"solver to be a Solver such as Anderson\(\)"),
    "by_mode": (lambda: ByMode(train=Exact, evaluate=Exact()), "got the class Exact"),
    "truncation": (lambda: Roulette(truncation=0.3), "truncation to be a Truncation"),
    "activation": (lambda: iresnet(2, activation=LipSwish()), "pass the class"),
    "activation_function": (lambda: iresnet(2, activation=nn.ReLU), "it made a ReLU"),
    "activation_name": (lambda: iresnet(2, activation="elu"), "activation to be a class"),
    "block": (lambda: IResNet(DenseContraction(2)), "block to be a Block"),
    "from_block": (lambda: IResNetTransform.from_block(2), "block to be a Block"),
    "contraction": (lambda: ResidualBlock(nn.Linear(2, 2)), r"or wrap\(module, lipschitz=0.9\)"),
    "module": (lambda: wrap(torch.tanh, lipschitz=0.5), "module to be a Module"),
    "dtype": (
        lambda: zoo.block(2)(torch.randn(3, 2, dtype=torch.float32)),
        "x of dtype torch.float64, that of the parameters; got torch.float32",
    ),
    "integers": (lambda: zoo.block(2)(torch.ones(3, 2, dtype=torch.int64)), "got torch.int64"),
    "list": (lambda: zoo.block(2)([[1.0, 2.0]]), "x to be a torch.Tensor; got list"),
    "x0": (
        lambda: solve(zoo.dense(), torch.randn(zoo.DIM), x0=torch.randn(zoo.DIM).float()),
        "x0 of dtype torch.float64",
    ),
    "solve_block": (
        lambda: solve(zoo.block(), torch.randn(zoo.DIM)),
        "transform.block.solve",
    ),
    "wrapped_integers": (
        lambda: zoo.CONTRACTIONS["wrapped"]()(torch.ones(3, zoo.DIM, dtype=torch.int64)),
        "x of a floating dtype; got torch.int64",
    ),
    "dim_name": (lambda: DenseContraction("2"), "Expected dim to be an integer"),
    "parts": (lambda: Stack([iresnet(2), 2]), r"parts\[1\] to be a transform.*got int"),
    "parts_block": (lambda: Stack([iresnet(2).block]), r"Wrap it: IResNet\(block\)"),
    "promise": (
        lambda: ResidualBlock(Forgetful(event_shape=(2,), context_dim=None, lipschitz="0.5")),
        "lipschitz to be a number",
    ),
    "parts_one": (lambda: Stack(iresnet(2)), "parts to be a sequence of transforms; got IResNet"),
    "conditional_parts": (lambda: ConditionalStack([2]), r"parts\[0\] to be a transform or a"),
    "coordinates_name": (lambda: iresnet_stack(2, coordinates="asinh"), "got str 'asinh'"),
    "not_a_contraction": (
        lambda: testing.check_contraction(nn.Linear(2, 2), torch.randn(5, 2)),
        "contraction to be a Contraction such as",
    ),
    "option": (lambda: iresnet(2, lipshitz=0.9), "got 'lipshitz'. Did you mean 'lipschitz'"),
}


@pytest.mark.parametrize("name", VALUES)
def test_refuses_wrong_values(name):
    call, words = VALUES[name]
    with pytest.raises(ArgumentError, match=words) as caught:
        call()
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, IResNetError)


@pytest.mark.parametrize("name", TYPES)
def test_refuses_wrong_types(name):
    call, words = TYPES[name]
    with pytest.raises(TypeError, match=words) as caught:
        call()
    assert isinstance(caught.value, ArgumentTypeError) or name == "option"


def test_one_base_error():
    errors = [
        e
        for e in vars(pyro_iresnet.errors).values()
        if isinstance(e, type) and issubclass(e, Exception) and not issubclass(e, Warning)
    ]
    assert len(errors) == 9
    assert all(issubclass(e, IResNetError) for e in errors)


def test_forward_of_cayley():
    block = CayleyBlock(zoo.near_minus(), solver=FixedPoint(max_steps=1))
    with pytest.raises(InversionError, match="forward pass of CayleyBlock solves") as caught:
        block(torch.randn(3, zoo.DIM))
    assert caught.value.solution.stats.steps.shape == (3,)
    with pytest.raises(InversionError) as caught:
        block.inverse(torch.randn(3, zoo.DIM))
    assert "forward pass" not in str(caught.value)


def test_repr_follows_block():
    transform = iresnet(2, lipschitz=0.5)
    transform.block.solver = Newton(rtol=0.125)
    shown = repr(transform)
    assert "solver=Newton(rtol=0.125" in shown
    assert "options=BlockOptions(" in shown
    assert "lipschitz=0.5" in shown


def test_ignores_default_device():
    g = zoo.dense()
    with torch.device("meta"):
        assert g.lipschitz_bound().device.type == "cpu"


def test_hosts_ask_block():
    class Positive(Block):
        def check(self, x, context=None, name="x"):
            x, context = super().check(x, context, name)
            if bool((x < 0).any()):
                raise ArgumentError(f"Expected {name} of at least 0.")
            return x, context

        def evaluate(self, x, context=None):
            raise AssertionError("not reached")

        def evaluate_inverse(self, y, context=None, *, x0=None):
            raise AssertionError("not reached")

    block, x = Positive(zoo.dense()), -torch.ones(2, zoo.DIM)
    for call in (block, IResNet(block), IResNetTransform.from_block(block)):
        with pytest.raises(ArgumentError, match="of at least 0"):
            call(x)
