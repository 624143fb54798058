"""Pyro's protocol, and what Pyro does to a transform."""

import copy
import io
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.transforms import iterated
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormalizingFlow
from torch.distributions import AffineTransform, ExpTransform, constraints

from pyro_iresnet import (
    ArgumentError,
    Exact,
    Gram,
    Identity,
    InverseIResNet,
    IResNet,
    ResidualBlock,
    Roulette,
    Sine,
    Stack,
    actnorm,
    iresnet,
    iresnet_stack,
)

from . import zoo

NAMES = list(zoo.PYRO_TRANSFORMS)
BATCHES = [(), (5,), (3, 4), (0,)]


def base(dim=zoo.DIM):
    return dist.Normal(torch.zeros(dim), torch.ones(dim)).to_event(1)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", NAMES)
def test_both_directions_and_shapes(name, batch):
    transform = zoo.PYRO_TRANSFORMS[name]().with_cache(0)
    x = torch.randn(*batch, zoo.DIM)
    y = transform(x)
    assert y.shape == x.shape
    assert transform.log_abs_det_jacobian(x, y).shape == batch
    torch.testing.assert_close(transform.inv(y.clone()), x, atol=1e-7, rtol=1e-7)
    assert transform.forward_shape(x.shape) == x.shape
    assert transform.inverse_shape(x.shape) == x.shape
    assert transform.domain.event_dim == transform.codomain.event_dim == 1
    if x.numel():  # torch's own check cannot reshape an empty batch
        assert transform.domain.check(x).shape == batch
    assert transform.bijective
    assert transform.sign == 1


@pytest.mark.parametrize("name", NAMES)
def test_the_log_determinant_against_finite_differences(name):
    transform = zoo.PYRO_TRANSFORMS[name]().with_cache(0)
    x, h = torch.randn(zoo.DIM), 1e-6
    rows = [(transform(x + h * e) - transform(x - h * e)) / (2 * h) for e in torch.eye(zoo.DIM)]
    expected = torch.linalg.slogdet(torch.stack(rows)).logabsdet
    logdet = transform.log_abs_det_jacobian(x, transform(x))
    torch.testing.assert_close(logdet, expected, atol=1e-6, rtol=1e-6)
    inverse = transform.inv
    y = transform(x)
    torch.testing.assert_close(inverse.log_abs_det_jacobian(y, inverse(y)), -logdet)


@pytest.mark.parametrize("cache_size", [0, 1])
@pytest.mark.parametrize("name", NAMES)
def test_the_two_directions_of_a_density_agree(name, cache_size):
    transform = zoo.PYRO_TRANSFORMS[name]().with_cache(cache_size)
    flow = dist.TransformedDistribution(base(), [transform])
    back = dist.TransformedDistribution(flow, [transform.inv])
    x = flow.rsample((4,))
    assert x.requires_grad
    log_prob = flow.log_prob(x)
    torch.testing.assert_close(flow.log_prob(x.detach().clone()), log_prob)
    torch.testing.assert_close(
        back.log_prob(x.detach()), base().log_prob(x.detach()), atol=1e-7, rtol=1e-7
    )
    assert flow.event_shape == (zoo.DIM,)
    assert not flow.sample((2,)).requires_grad


@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize("name", NAMES)
def test_three_steps_of_adam_in_both_directions(name, direction):
    transform = zoo.PYRO_TRANSFORMS[name]()
    flow = dist.TransformedDistribution(
        base(), [transform if direction == "forward" else transform.inv]
    )
    optimizer = torch.optim.Adam(transform.parameters(), lr=1e-2)
    data = 2.0 + 0.5 * torch.randn(64, zoo.DIM)
    losses = []
    for _ in range(3):
        loss = -flow.log_prob(data).mean()
        optimizer.zero_grad()
        loss.backward()
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in transform.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[1] < losses[0]


def counted(transform):
    """Count the evaluations and inversions of the block of a transform."""
    counts = {"evaluate": 0, "evaluate_inverse": 0}
    for name in counts:
        method = getattr(transform.block, name)

        def wrapper(*args, _method=method, _name=name, **kwargs):
            counts[_name] += 1
            return _method(*args, **kwargs)

        setattr(transform.block, name, wrapper)
    return counts


def test_a_step_evaluates_once():
    transform = iresnet(3)
    counts = counted(transform)
    flow = dist.TransformedDistribution(base(3), [transform])
    y = flow.rsample((5,))
    flow.log_prob(y)
    assert counts == {"evaluate": 1, "evaluate_inverse": 0}


def test_a_density_step_never_inverts():
    stack = iresnet_stack(3, 3)
    counts = [counted(part) for part in stack.parts if isinstance(part, IResNet)]
    flow = dist.TransformedDistribution(base(3), [stack.inv])
    flow.log_prob(torch.randn(5, 3))
    assert counts == [{"evaluate": 1, "evaluate_inverse": 0}] * 3


def test_without_a_cache_a_step_inverts_with_gradients():
    transform = iresnet(3).with_cache(0)
    counts = counted(transform)
    flow = dist.TransformedDistribution(base(3), [transform])
    flow.log_prob(flow.rsample((5,))).sum().backward()
    assert counts["evaluate_inverse"] == 1
    assert all(p.grad is not None for p in transform.parameters())


def test_no_call_is_remembered_that_is_no_longer_true():
    transform = iresnet(3)
    x = torch.randn(5, 3)
    with torch.no_grad():
        transform(x)
    y = transform(x)
    assert y.requires_grad
    assert transform(x) is y
    logdet = transform.log_abs_det_jacobian(x, y)
    torch.testing.assert_close(transform.log_abs_det_jacobian(x, y), logdet)
    logdet.sum().backward()
    torch.optim.SGD(transform.parameters(), lr=1.0).step()
    after = transform(x)
    assert not torch.equal(after, y)
    torch.testing.assert_close(transform.inv(y), iresnet_like(transform).inv(y))
    x.mul_(2)
    assert not torch.equal(transform(x), after)
    assert transform.inv(transform(x)) is x


def iresnet_like(transform):
    fresh = IResNet(copy.deepcopy(transform.block), cache_size=0)
    fresh.load_state_dict(transform.state_dict())
    return fresh


def write_by_torch(transform, x):
    torch.optim.Adam(transform.parameters(), lr=0.1).step()


def write_by_pyro(transform, x):
    for parameter in transform.parameters():
        pyro.optim.clipped_adam.ClippedAdam([parameter], lr=0.1).step()


def write_by_data(transform, x):
    for parameter in transform.parameters():
        parameter.data.mul_(3)


def write_to_x(transform, x):
    x.data.mul_(3)


WRITES = [write_by_torch, write_by_pyro, write_by_data, write_to_x]


@pytest.mark.parametrize("write", WRITES)
def test_no_write_is_overlooked(write):
    transform = iresnet(3)
    x = torch.randn(5, 3)
    y = transform(x)
    before = transform.log_abs_det_jacobian(x, y)
    before.sum().backward()
    write(transform, x)
    fresh = x.clone()
    torch.testing.assert_close(transform(x), transform(fresh))
    after = transform.log_abs_det_jacobian(x, transform(x))
    torch.testing.assert_close(after, iresnet_like(transform).log_abs_det_jacobian(fresh, fresh))
    assert not torch.allclose(after, before)


def test_pyros_optimiser_trains_on_one_full_batch():
    stack, data = iresnet_stack(2, 2), torch.randn(64, 2)

    def density():
        pyro.module("stack", stack)
        with pyro.plate("data", 64):
            flow = dist.TransformedDistribution(base(2), [stack.inv])
            pyro.sample("x", flow, obs=data)

    svi = SVI(density, lambda: None, pyro.optim.ClippedAdam({"lr": 1e-2}), Trace_ELBO())
    losses = [svi.step() for _ in range(30)]
    assert losses[-1] < losses[0]


def test_a_functional_call_is_not_answered_from_another():
    transform = iresnet(2, [], norm=Gram(), metric=Identity())
    x = torch.randn(5, 2)
    name = "block.contraction.layers.0.weight"
    with torch.no_grad():
        for i in range(20):
            weight = torch.full((2, 2), i / 100.0)
            y = torch.func.functional_call(transform, {name: weight}, (x,))
            expected = x + x @ weight.T + transform.block.contraction.layers[0].bias
            torch.testing.assert_close(y, expected)
            del weight


def test_inference_and_autocast_and_dtype_are_part_of_what_is_remembered():
    transform = iresnet(3)
    x = torch.randn(5, 3)
    with torch.inference_mode():
        inner = transform(x)
        z = torch.randn(5, 3)
        first = transform(z).clone()
        z.add_(1)
        assert not torch.equal(transform(z), first)
        transform(x)
    with torch.no_grad():
        assert not transform(x).is_inference()
        torch.testing.assert_close(transform(x), inner)
    transform(x)
    transform.float()
    with pytest.raises(TypeError, match=r"x of dtype torch\.float32"):
        transform(x)


def test_the_log_determinant_of_an_inverse_block_needs_no_second_solve():
    transform = InverseIResNet(zoo.block(3))
    counts = counted(transform)
    x = torch.randn(5, 3)
    y = transform(x)
    logdet = transform.log_abs_det_jacobian(x, y.clone())
    assert counts["evaluate_inverse"] == 1
    torch.testing.assert_close(logdet, transform.log_abs_det_jacobian(x, y))


def test_the_mode_is_part_of_what_is_remembered():
    transform = IResNet(zoo.block(20))
    x = torch.randn(500, 20)
    y = transform(x)
    trained = transform.log_abs_det_jacobian(x, y)
    transform.eval()
    assert not torch.equal(transform.log_abs_det_jacobian(x, y), trained)


def test_with_cache_shares_parameters_and_keeps_the_mode():
    for transform in (iresnet(3), actnorm(3)):
        transform.eval()
        other = transform.with_cache(0)
        assert other is not transform
        assert transform.with_cache(1) is transform
        ours, theirs = list(transform.parameters()), list(other.parameters())
        assert all(a is b for a, b in zip(ours, theirs, strict=True))
        assert not other.training


def test_a_stack_registers_its_parameters_inverse_blocks_too():
    block = ResidualBlock(zoo.dense(3))
    stack = dist.ComposeTransformModule([iresnet(3), InverseIResNet(block)])
    assert sum(p.numel() for p in stack.parameters()) == sum(
        p.numel() for part in stack.parts for p in part.parameters()
    )
    assert len(list(iterated(4, iresnet, 3).parameters())) == 4 * len(list(iresnet(3).parameters()))


def test_an_inverse_block_undoes_its_block():
    block = zoo.block(3)
    x = torch.randn(5, 3)
    y = IResNet(block)(x)
    torch.testing.assert_close(InverseIResNet(block)(y), x)


def test_an_inverse_block_stretches_beyond_what_a_block_can():
    block = ResidualBlock(zoo.wrap(zoo.Scaled(-0.9, torch.eye(1)), bound=0.9))
    y = InverseIResNet(block)(torch.ones(1, 1))
    torch.testing.assert_close(y, torch.full((1, 1), 10.0))


def test_images():
    block = ResidualBlock(zoo.CONTRACTIONS["wrapped_image"]())
    transform = IResNet(block)
    x = torch.randn(2, *zoo.event_shape("wrapped_image"))
    assert transform.domain.event_dim == 3
    y = transform(x)
    assert transform.log_abs_det_jacobian(x, y).shape == (2,)
    torch.testing.assert_close(transform.inv(y.clone()), x)
    assert transform.forward_shape(x.shape) == x.shape
    with pytest.raises(ArgumentError):
        transform.forward_shape((3, 4))


def test_torch_transforms_around_it():
    transform = torch.distributions.ComposeTransform(
        [AffineTransform(1.0, 2.0), iresnet(3), ExpTransform()]
    )
    flow = torch.distributions.TransformedDistribution(base(3), [transform])
    assert flow.log_prob(flow.sample((4,))).shape == (4,)
    assert constraints.independent(constraints.positive, 1).check(flow.sample((4,))).all()


# ---------------------------------------------------------------------------- guides


def model(data=None):
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    y = pyro.sample("y", dist.Normal(x**2, 0.3))
    with pyro.plate("data", 3):
        pyro.sample("obs", dist.Normal(y, 1.0), obs=data)


DATA = torch.tensor([0.5, 1.0, 1.5])
INITS = {
    "iterated": partial(iterated, 4, iresnet),
    "stack": partial(iresnet_stack, num_blocks=2),
}


def fitted(guide, steps, elbo=None):
    elbo = elbo or Trace_ELBO(num_particles=8, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 1e-2}), elbo)
    return [svi.step(DATA) for _ in range(steps)]


@pytest.mark.parametrize("init", INITS)
def test_a_guide_fits_in_fifty_steps(init):
    guide = AutoNormalizingFlow(model, INITS[init])
    losses = fitted(guide, 50)
    assert sum(losses[-10:]) < sum(losses[:10])
    predicted = Predictive(model, guide=guide, num_samples=20)(DATA)
    assert predicted["x"].reshape(-1).shape == (20,)
    assert guide.get_posterior().sample((3,)).shape == (3, 2)


@pytest.mark.parametrize(
    "elbo",
    [
        Trace_ELBO(),
        Trace_ELBO(num_particles=2),
        TraceMeanField_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1),
    ],
)
def test_a_guide_under_every_way_to_draw_particles(elbo):
    with pyro.validation_enabled():
        losses = fitted(AutoNormalizingFlow(model, INITS["stack"]), 3, elbo)
    assert torch.tensor(losses).isfinite().all()


@pytest.mark.parametrize("init", INITS)
def test_a_guide_copies_and_saves_after_training(init):
    guide = AutoNormalizingFlow(model, INITS[init])
    fitted(guide, 3)
    copy.deepcopy(guide)
    file = io.BytesIO()
    torch.save(guide.transform, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    x = torch.randn(4, 2)
    assert torch.equal(loaded(x), guide.transform(x))
    fitted(guide, 2)


def test_a_guide_comes_back_from_its_state():
    guide = AutoNormalizingFlow(model, INITS["stack"])
    fitted(guide, 3)
    fresh = AutoNormalizingFlow(model, INITS["stack"])
    fresh(DATA)
    fresh.load_state_dict(guide.state_dict())
    x = torch.randn(4, 2)
    assert torch.equal(fresh.transform(x), guide.transform(x))


@pytest.mark.parametrize("estimator", [Exact(), Roulette()])
def test_training_is_reproducible_under_pyros_seed(estimator):
    def run():
        pyro.clear_param_store()
        pyro.set_rng_seed(7)
        guide = AutoNormalizingFlow(model, partial(iterated, 2, partial(iresnet, logdet=estimator)))
        return fitted(guide, 5)

    assert run() == run()


@pytest.mark.parametrize("direction", ["density", "sample"])
def test_a_second_backward_pass_through_the_same_point(direction):
    stack = zoo.PYRO_TRANSFORMS["stack"]()
    base = dist.Normal(torch.zeros(zoo.DIM), torch.ones(zoo.DIM)).to_event(1)
    transforms = [stack.inv] if direction == "density" else [stack]
    flow = dist.TransformedDistribution(base, transforms)
    x = torch.randn(4, zoo.DIM)
    gradients = []
    for _ in range(2):
        stack.zero_grad()
        flow.log_prob(x).sum().backward()
        gradients.append([p.grad.clone() for p in stack.parameters() if p.grad is not None])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_a_stack_gives_its_density_without_inverting(monkeypatch):
    stack = zoo.PYRO_TRANSFORMS["stack"]()
    stack = type(stack)([part.with_cache(0) for part in stack.parts])
    base = dist.Normal(torch.zeros(zoo.DIM), torch.ones(zoo.DIM)).to_event(1)
    flow = dist.TransformedDistribution(base, [stack.inv])
    x = torch.randn(4, zoo.DIM)
    assert stack.inv.inv is stack
    sample = flow.sample((3,))
    torch.testing.assert_close(stack.inv(stack(x)), x)

    def refuse(*args, **options):
        raise AssertionError("an inversion")

    monkeypatch.setattr("pyro_iresnet.block.solve", refuse)
    assert flow.log_prob(x).shape == (4,)
    assert flow.log_prob(sample).shape == (3,)
    assert stack.with_cache(1).inv.log_abs_det_jacobian(stack(x), x).shape == (4,)


def test_every_log_density_draws_afresh():
    transform = iresnet(20)
    zoo.trained(transform.block.contraction)
    flow = dist.TransformedDistribution(base(20), [transform.inv])
    x = torch.randn(3, 20)
    with torch.no_grad():
        draws = torch.stack([flow.log_prob(x) for _ in range(50)])
        others = torch.stack([flow.log_prob(x.clone()) for _ in range(50)])
    assert (draws.std(0) > 0.3 * others.std(0)).all()


def change_the_estimator(transform):
    transform.block.logdet = Exact()


def change_the_activation(transform):
    transform.block.contraction.activations[0].frequency = 3.0


def change_the_bound(transform):
    transform.block.contraction.lipschitz = 0.1


@pytest.mark.parametrize("change", [change_the_estimator, change_the_activation, change_the_bound])
def test_no_change_of_a_setting_is_overlooked(change):
    transform = iresnet(20, activation=Sine)
    zoo.trained(transform.block.contraction)
    x = torch.randn(5, 20)
    y = transform(x)
    transform.log_abs_det_jacobian(x, y)
    change(transform)
    y = transform(x)
    torch.testing.assert_close(y, transform.block(x))
    if isinstance(transform.block.logdet, Exact):
        expected = transform.block.forward_and_logdet(x)[1]
        torch.testing.assert_close(transform.log_abs_det_jacobian(x, y), expected)


def test_a_stack_of_the_parts_of_a_stack():
    inner = Stack([iresnet(2), iresnet(2)])
    x = torch.randn(5, 2)
    for outer in (Stack(inner), Stack([inner]), Stack(part for part in inner)):
        torch.testing.assert_close(outer(x), inner(x))
