"""Conditional transforms as modules: copies, tools for flows, and errors."""

import copy
import io

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import nn

from pyro_iresnet import (
    ConditionalIResNet,
    DenseContraction,
    actnorm,
    cached,
    certificate,
    conditional_iresnet,
    conditional_iresnet_stack,
    iresnet,
    logdet_with_error,
)
from pyro_iresnet.diagnostics import spectral_penalty
from pyro_iresnet.errors import ArgumentError, ArgumentTypeError
from pyro_iresnet.hosts.pyro import ConditionalStack

from .. import zoo
from ..truth import normal
from .test_conditional import contexts, family


def test_registers_parameters_once():
    parts = [actnorm(2), conditional_iresnet(2, 3), conditional_iresnet(2, 3).inv]
    stack = ConditionalStack(parts)
    expected = sum(p.numel() for part in parts for p in part.parameters())
    before = list(stack.state_dict())
    for _ in range(3):
        conditioned = stack.condition(contexts(5))
        conditioned(torch.randn(5, 2))
    assert sum(p.numel() for p in stack.parameters()) == expected
    assert list(stack.state_dict()) == before
    assert len(before) == len(set(before))
    assert list(stack.inv.parameters()) == list(stack.parameters())
    assert not any("context" in name for name in conditioned.state_dict())
    assert stack.inv.inv is stack


def test_mode_reaches_conditioned():
    stack = conditional_iresnet_stack(20, 3, 1)
    zoo.trained(stack[1].block.contraction)
    conditioned, x = stack.condition(contexts(400)), torch.randn(400, 20)
    y = conditioned(x)
    stack.eval()
    exact = conditioned.log_abs_det_jacobian(x, y)
    assert torch.equal(conditioned.log_abs_det_jacobian(x, y), exact)
    stack.train()
    assert not torch.equal(conditioned.log_abs_det_jacobian(x, y), exact)


def test_actnorm_start():
    stack = conditional_iresnet_stack(2, 3, 2)
    flow, data = family(stack.inv, dim=2), 3 + 2 * torch.randn(100, 2)
    flow.condition(contexts(100)).log_prob(data)
    started = stack[0](data)
    torch.testing.assert_close(started.mean(0), torch.zeros(2))
    torch.testing.assert_close(started.std(0), torch.ones(2))
    kept = stack[0].shift.clone()
    flow.condition(contexts(100)).log_prob(torch.randn(100, 2))
    assert torch.equal(stack[0].shift, kept)


def trained_by_pyro(stack, steps=3):
    def model(data, facts):
        pyro.module("stack", stack)
        with pyro.plate("data", len(data)):
            pyro.sample("x", family(stack.inv, dim=2).condition(facts), obs=data)

    facts = contexts(64)
    data = 1 + facts[:, :2] + torch.randn(64, 2)
    svi = SVI(model, lambda *_: None, pyro.optim.ClippedAdam({"lr": 1e-2}), Trace_ELBO())
    return [svi.step(data, facts) for _ in range(steps)]


def test_copies_after_training():
    stack = ConditionalStack(
        [actnorm(2), conditional_iresnet(2, 3), iresnet(2), conditional_iresnet(2, 3).inv]
    )
    losses = trained_by_pyro(stack, 20)
    assert losses[-1] < losses[0]
    x, context = torch.randn(5, 2), contexts(5)
    y = stack.condition(context)(x)
    file = io.BytesIO()
    torch.save(stack, file)
    file.seek(0)
    fresh = ConditionalStack(
        [actnorm(2), conditional_iresnet(2, 3), iresnet(2), conditional_iresnet(2, 3).inv]
    )
    fresh.load_state_dict(stack.state_dict())
    for other in (copy.deepcopy(stack), torch.load(file, weights_only=False), fresh):
        assert torch.equal(other.condition(context)(x), y)
        assert not any(a is b for a in other.parameters() for b in stack.parameters())
    trained_by_pyro(stack)
    torch.save(stack.condition(context), io.BytesIO())
    torch.testing.assert_close(
        copy.deepcopy(stack.condition(context))(x), stack.condition(context)(x)
    )


# ---------------------------------------------------------------------------- tools for flows


def held_in_every_way():
    stack = zoo.mixed()
    return {"stack": stack, "inverse": stack.inv, "distribution": family(stack.inv)}


@pytest.mark.parametrize("way", held_in_every_way())
def test_tools_accept_conditional(way):
    flow = held_in_every_way()[way]
    x, context = torch.randn(4, zoo.DIM), contexts(4)
    assert certificate(flow).holds
    proven = certificate(flow, x, context=context)
    assert proven.holds
    assert sum(row.stretch is not None for row in proven.rows) == 3
    assert spectral_penalty(flow) > 0
    transform = flow.condition(context)
    if way == "distribution":
        expected = transform.log_prob(x) - normal().log_prob(transform.transforms[0].inv(x))
    else:
        expected = transform.log_abs_det_jacobian(x, transform(x))
    mean, error = logdet_with_error(flow, x, 3, context=context)
    torch.testing.assert_close(mean, expected.detach())
    assert (error < 1e-12).all()
    assert logdet_with_error(flow, x[0], 3, context=context).mean.shape == (4,)
    with pytest.raises(ArgumentError, match=r"Expected a context for a .*; got none"):
        logdet_with_error(flow, x, 3)
    with pytest.raises(ArgumentError, match="conditioned already; got one"):
        logdet_with_error(transform, x, 3, context=context)


@pytest.mark.parametrize("way", held_in_every_way())
def test_one_norm_for_contexts(way, monkeypatch):
    flow, x = held_in_every_way()[way], torch.randn(4, zoo.DIM)

    def value(context):
        at = flow.condition(context)
        return at.log_prob(x) if way == "distribution" else at(x)

    first, second = contexts(4), contexts(4)
    expected = value(first), value(second)
    calls, materialize = [], DenseContraction.materialize
    count = lambda g: calls.append(g) or materialize(g)  # noqa: E731
    monkeypatch.setattr(DenseContraction, "materialize", count)
    with cached(flow):
        for context, value_ in zip((first, second), expected, strict=True):
            torch.testing.assert_close(value(context), value_, atol=1e-6, rtol=1e-6)
    assert calls == []


def test_finds_nested_parts():
    stack = ConditionalStack([conditional_iresnet(2, 3), ConditionalStack([iresnet(2)]).inv])
    conditioned = stack.condition(contexts(4))
    around = dist.TransformedDistribution(normal(2), [conditioned.inv])
    flows = [stack, conditioned, around, family(stack, dim=2), family(stack, iresnet(2), dim=2)]
    found = [sum(row.layer == "g" for row in certificate(flow).rows) for flow in flows]
    assert found == [2, 2, 2, 2, 3]


# ---------------------------------------------------------------------------- errors


ERRORS = {
    "unconditional": (
        lambda: ConditionalIResNet(zoo.block()),
        ArgumentError,
        r"contraction with a context; got one without.* or use IResNet\(block\)",
    ),
    "no_block": (
        lambda: ConditionalIResNet(zoo.dense()),
        ArgumentTypeError,
        r"block to be a Block such as .*context_dim=3\)\)",
    ),
    "size": (
        lambda: conditional_iresnet(2, 3).condition(torch.randn(5, 4)),
        ArgumentError,
        r"context with event shape \(3,\); got \(5, 4\)",
    ),
    "size_in_a_stack": (
        lambda: conditional_iresnet_stack(2, 3, 1).condition(torch.randn(5, 4)),
        ArgumentError,
        r"context with event shape \(3,\); got \(5, 4\)",
    ),
    "size_of_an_inverse": (
        lambda: family(conditional_iresnet(2, 3).inv, dim=2).condition(torch.randn(4)),
        ArgumentError,
        r"context with event shape \(3,\); got \(4,\)",
    ),
    "scalar": (
        lambda: conditional_iresnet(2, 1).condition(torch.tensor(1.0)),
        ArgumentError,
        r"context with event shape \(1,\); got \(\)",
    ),
    "none": (
        lambda: conditional_iresnet(2, 3).condition(None),
        ArgumentError,
        "context of size 3; got none",
    ),
    "superfluous": (
        lambda: zoo.dense().check_context(torch.randn(5, 3)),
        ArgumentError,
        "Expected no context; got one",
    ),
    "dtype": (
        lambda: conditional_iresnet(2, 3).condition(torch.randn(5, 3).float()),
        ArgumentTypeError,
        r"context of dtype torch\.float64, .* got torch\.float32",
    ),
    "integers": (
        lambda: conditional_iresnet(2, 3).condition(torch.ones(5, 3, dtype=torch.long)),
        ArgumentTypeError,
        "context of a floating dtype",
    ),
    "list": (
        lambda: conditional_iresnet(2, 3).condition([1.0, 2.0, 3.0]),
        ArgumentTypeError,
        r"context to be a torch\.Tensor; got list",
    ),
    "batches": (
        lambda: conditional_iresnet(2, 3).condition(torch.randn(5, 3))(torch.randn(4, 2)),
        ArgumentError,
        r"broadcast; got \(4,\) of x and \(5,\) of context",
    ),
    "batches_of_the_base": (
        lambda: dist.ConditionalTransformedDistribution(
            normal(2).expand((4,)), [conditional_iresnet(2, 3)]
        ).condition(torch.randn(5, 3)),
        ArgumentError,
        r"broadcast; got \(4,\) of shape and \(5,\) of context",
    ),
    "event": (
        lambda: conditional_iresnet(2, 3).condition(torch.randn(5, 3)).inv(torch.randn(5, 4)),
        ArgumentError,
        r"y with event shape \(2,\); got \(5, 4\)",
    ),
    "pair": (
        lambda: (
            conditional_iresnet(2, 3)
            .condition(torch.randn(3))
            .log_abs_det_jacobian(torch.randn(4, 2), torch.randn(5, 2))
        ),
        ArgumentError,
        r"x and y of one batch; got shapes \(4, 2\) and \(5, 2\)",
    ),
    "context_dim": (
        lambda: conditional_iresnet(2, 0),
        ArgumentError,
        "context_dim to be at least 1; got 0",
    ),
    "context_dim_none": (
        lambda: conditional_iresnet(2, None),
        ArgumentTypeError,
        "context_dim to be an integer of at least 1; got None",
    ),
    "part": (
        lambda: ConditionalStack([conditional_iresnet(2, 3), nn.Linear(2, 2)]),
        ArgumentTypeError,
        r"parts\[1\] to be a transform or a conditional transform, .* got Linear",
    ),
    "between": (
        lambda: conditional_iresnet_stack(2, 3, between="actnorm"),
        ArgumentTypeError,
        "between to be a callable",
    ),
    "num_blocks": (
        lambda: conditional_iresnet_stack(2, 3, num_blocks=0),
        ArgumentError,
        "num_blocks to be at least 1; got 0",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_refuses_wrong_argument(case):
    call, kind, message = ERRORS[case]
    with pytest.raises(kind, match=message):
        call()


def test_refuses_bare_inverse():
    inverse = iresnet(2).inv
    # Importing zuko renames this class.
    name = type(inverse).__name__
    with pytest.raises(
        ArgumentError, match=rf"parts\[1\] to be a module, .* got {name}\. Pass the module"
    ):
        ConditionalStack([conditional_iresnet(2, 3), inverse])
