"""The automatic guide: where it starts, what it fits, and what Pyro does to it."""

import copy
import io
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import (
    MCMC,
    NUTS,
    SVI,
    JitTrace_ELBO,
    Predictive,
    RenyiELBO,
    Trace_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from pyro.infer.autoguide import AutoGuideList, AutoNormal, init_to_value
from pyro.infer.reparam import NeuTraReparam
from pyro.nn import PyroModule
from pyro.nn.module import to_pyro_module_
from torch.distributions import biject_to

from pyro_iresnet import (
    ArgumentError,
    ArgumentTypeError,
    Asinh,
    AutoIResNet,
    Exact,
    HigherOrderError,
    Identity,
    LaplaceError,
    Roulette,
    TracingError,
    Triangular,
    TriangularAffine,
    cached,
)
from pyro_iresnet.guides.log_joint import LogJoint

DATA = torch.tensor([0.5, 1.0, 1.5]).double()


def banana(data=DATA):
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    y = pyro.sample("y", dist.Normal(x**2, 0.3))
    with pyro.plate("data", 3):
        pyro.sample("obs", dist.Normal(y, 1.0), obs=data)


def funnel():
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    with pyro.plate("coordinates", 9):
        pyro.sample("x", dist.Normal(0.0, (v / 2).exp()))


LOC = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
TRIL = torch.tensor([[1e-3, 0.0, 0.0], [0.3, 1.0, 0.0], [-0.2, 2.0, 0.5]]).double()


def gaussian():
    pyro.sample("z", dist.MultivariateNormal(LOC, scale_tril=TRIL))


def constrained():
    pyro.sample("simplex", dist.Dirichlet(torch.tensor([2.0, 3.0, 4.0])))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    pyro.sample("share", dist.Beta(2.0, 3.0))
    with pyro.plate("rows", 4):
        pyro.sample("effect", dist.Normal(0.0, scale))


def step(guide, model=banana, steps=3, elbo=None):
    elbo = elbo or Trace_ELBO(num_particles=8, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 1e-2}), elbo)
    return [svi.step() for _ in range(steps)]


# ---------------------------------------------------------------------------- the start


def test_a_normal_posterior_is_found_at_the_start():
    guide = AutoIResNet(gaussian, init="laplace")
    guide()
    outer = guide.transform.parts[-1]
    assert isinstance(outer, TriangularAffine)
    torch.testing.assert_close(outer.loc, LOC, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(outer.scale_tril, TRIL, atol=1e-6, rtol=1e-6)


def test_auto_takes_laplace_where_it_is_better():
    for seed in range(3):
        torch.manual_seed(seed)
        guide = AutoIResNet(gaussian)
        guide()
        torch.testing.assert_close(guide.transform.parts[-1].scale_tril, TRIL, atol=1e-6, rtol=1e-6)


def test_auto_starts_plainly_where_there_is_no_usable_mode():
    guide = AutoIResNet(funnel, init_scale=0.5)
    guide()
    torch.testing.assert_close(guide.transform.parts[-1].scale_tril, 0.5 * torch.eye(10))


def test_laplace_says_what_is_missing():
    def flat():
        pyro.sample("z", dist.Delta(pyro.sample("z0", dist.Normal(0.0, 1.0))))
        pyro.factor("saddle", pyro.sample("s", dist.Normal(0.0, 1.0)) ** 2)

    with pytest.raises(LaplaceError, match=r"no usable mode|ran away"):
        AutoIResNet(flat, init="laplace")()


def test_the_plain_start_is_at_the_point_of_init_loc_fn():
    values = {"x": torch.tensor(0.3), "y": torch.tensor(-0.7)}
    guide = AutoIResNet(banana, init="plain", init_loc_fn=init_to_value(values=values))
    guide()
    outer = guide.transform.parts[-1]
    torch.testing.assert_close(outer.loc, torch.tensor([0.3, -0.7]))
    torch.testing.assert_close(outer.scale_tril, torch.eye(2))


def test_the_guide_starts_near_its_start():
    guide = AutoIResNet(gaussian, init="laplace")
    loss = Trace_ELBO(num_particles=500, vectorize_particles=True, max_plate_nesting=0)
    assert loss.loss(gaussian, guide) < 0.3


def test_a_model_that_subsamples_is_started_plainly():
    data = torch.randn(100)

    def model():
        z = pyro.sample("z", dist.Normal(0.0, 10.0))
        with pyro.plate("data", 100, subsample_size=10) as rows:
            pyro.sample("obs", dist.Normal(z, 1.0), obs=data[rows])

    guide = AutoIResNet(model)
    guide()
    torch.testing.assert_close(guide.transform.parts[-1].scale_tril, torch.eye(1))
    assert math.isfinite(SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO()).step())


def mixture():
    means = pyro.sample("means", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    with pyro.plate("data", 3):
        z = pyro.sample("z", dist.Categorical(torch.ones(2)))
        pyro.sample("obs", dist.Normal(means[..., 0] * (1 - z) + means[..., 1] * z, 1.0), obs=DATA)


def test_a_model_that_draws_what_the_guide_does_not_know_is_started_plainly():
    guide = AutoIResNet(poutine.block(mixture, hide=["z"]), 2)
    guide()
    torch.testing.assert_close(guide.transform.parts[-1].scale_tril, torch.eye(2))
    with pytest.raises(LaplaceError, match="differs from call to call"):
        AutoIResNet(poutine.block(mixture, hide=["z"]), 2, init="laplace")()


def without_second_derivatives():
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    x = torch.linspace(0, 1, 4)[:, None] / scale
    cov = torch.exp(-(torch.cdist(x, x) ** 2)) + torch.eye(4)
    pyro.sample("obs", dist.MultivariateNormal(torch.zeros(4), cov), obs=torch.ones(4))


def fussy():
    x = pyro.sample("x", dist.Normal(1.0, 1.0))
    if not float(x.detach()) > 0:
        raise ValueError("x below 0")
    pyro.sample("obs", dist.Normal(10 * x, 1.0), obs=torch.tensor(-5.0))


def improper():
    pyro.sample("x", dist.ImproperUniform(constraints.real, (), ()))


@pytest.mark.parametrize("model", [without_second_derivatives, fussy, improper])
def test_where_a_laplace_approximation_fails_the_start_is_plain(model):
    values = {"x": torch.tensor(1.0), "scale": torch.tensor(1.0)}
    options = {"init_loc_fn": init_to_value(values=values), "init_scale": 0.01}
    guide = AutoIResNet(model, 2, **options)
    guide()
    assert guide.transform.parts[-1].scale_tril.item() == pytest.approx(0.01)
    with pytest.raises(LaplaceError):
        AutoIResNet(model, 2, init="laplace", **options)()


def test_a_start_changes_no_setting_and_no_buffer():
    norm = torch.nn.BatchNorm1d(1)

    def model():
        x = pyro.sample("x", dist.Normal(torch.zeros(4), 1.0).to_event(1))
        pyro.sample("obs", dist.Normal(norm(x[:, None]).sum(), 1.0), obs=torch.tensor(0.0))

    torch.distributions.Distribution.set_default_validate_args(False)
    try:
        guide = AutoIResNet(model, 1)
        guide._setup_prototype()
        # Once for the prototype, by Pyro.
        assert int(norm.num_batches_tracked) <= 1
        assert norm.training
        assert torch.distributions.Distribution._validate_args is False
    finally:
        torch.distributions.Distribution.set_default_validate_args(True)


def test_the_mode_before_the_first_call_is_kept():
    guide = AutoIResNet(gaussian, 1)
    guide.eval()
    guide()
    assert not any(m.training for m in guide.transform.modules())


def test_the_log_joint_is_the_models():
    guide = AutoIResNet(constrained)
    guide()
    log_joint = LogJoint(guide, constrained, (), {})
    assert log_joint.is_deterministic(torch.randn(guide.latent_dim))
    z = torch.randn(guide.latent_dim)
    values, correction = {}, 0.0
    for site, unconstrained in guide._unpack_latent(z):
        transform = biject_to(site["fn"].support)
        values[site["name"]] = transform(unconstrained)
        logdet = transform.log_abs_det_jacobian(unconstrained, values[site["name"]])
        correction += logdet.sum()
    expected = dist.Dirichlet(torch.tensor([2.0, 3.0, 4.0])).log_prob(values["simplex"])
    expected += dist.LogNormal(0.0, 0.5).log_prob(values["scale"])
    expected += dist.Beta(2.0, 3.0).log_prob(values["share"])
    expected += dist.Normal(0.0, values["scale"]).log_prob(values["effect"]).sum()
    torch.testing.assert_close(log_joint(z), expected + correction)


# ---------------------------------------------------------------------------- the fit


def test_it_fits_what_a_normal_guide_cannot():
    torch.manual_seed(0)

    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x**2, 0.3))

    guide = AutoIResNet(model, 4, init="plain")
    elbo = Trace_ELBO(num_particles=16, vectorize_particles=True, max_plate_nesting=0)
    optimizer = pyro.optim.ClippedAdam({"lr": 1e-2, "lrd": 0.05 ** (1 / 500)})
    svi = SVI(model, guide, optimizer, elbo)
    for _ in range(500):
        svi.step()
    guide.eval()
    with torch.no_grad():
        kl = Trace_ELBO(num_particles=5000, vectorize_particles=True, max_plate_nesting=0)
        # The best normal guide has 0.9 nats.
        assert kl.loss(model, guide) < 0.25


def test_quantiles_and_medians_are_those_of_draws():
    guide = AutoIResNet(constrained)
    step(guide, constrained)
    guide.num_draws = 40_000
    levels = [0.1, 0.5, 0.9]
    found = guide.quantiles(levels)
    shapes = {"simplex": (3, 3), "scale": (3,), "share": (3,), "effect": (3, 4)}
    assert {name: tuple(q.shape) for name, q in found.items()} == shapes
    draws = Predictive(constrained, guide=guide, num_samples=20_000, parallel=True)()
    for name, q in found.items():
        values = draws[name].reshape(20_000, *q.shape[1:])
        for level, value in zip(levels, q, strict=True):
            share = (values <= value).double().mean(0)
            assert (share - level).abs().max() < 0.02
        torch.testing.assert_close(guide.median()[name], q[1], atol=0.05, rtol=0.05)
    for site in ("scale", "share"):
        assert (found[site].diff(dim=0) > 0).all()


def test_bad_quantiles_are_named():
    guide = AutoIResNet(banana)
    with pytest.raises(ArgumentError, match="quantiles"):
        guide.quantiles([0.5, 1.5])
    with pytest.raises(ArgumentTypeError, match="a list or a tensor"):
        guide.quantiles(0.5)


def test_many_coordinates():
    def model():
        pyro.sample("z", dist.Normal(torch.zeros(1200), 1.0).to_event(1))

    guide = AutoIResNet(model, 1, hidden_dims=[8])
    guide.num_draws = 100
    assert guide.median()["z"].shape == (1200,)


@pytest.mark.parametrize(
    "elbo",
    [
        Trace_ELBO(),
        Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1),
        Trace_ELBO(num_particles=2, vectorize_particles=True),
        TraceMeanField_ELBO(),
        TraceGraph_ELBO(),
        RenyiELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1),
    ],
    ids=lambda e: type(e).__name__,
)
@pytest.mark.parametrize("model", [banana, funnel, constrained])
def test_every_elbo(elbo, model):
    with pyro.validation_enabled():
        losses = step(AutoIResNet(model, 2), model, elbo=elbo)
    assert torch.tensor(losses).isfinite().all()


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_traced_elbo_is_the_elbo():
    def loss(elbo):
        pyro.clear_param_store()
        torch.manual_seed(0)
        guide = AutoIResNet(funnel, 2)
        guide()
        torch.manual_seed(1)
        return step(guide, funnel, 4, elbo)

    options = {"num_particles": 4, "vectorize_particles": True, "max_plate_nesting": 1}
    plain = loss(Trace_ELBO(**options))
    traced = loss(JitTrace_ELBO(**options))
    # The compilation itself draws once.
    assert all(math.isfinite(x) for x in traced)
    assert abs(sum(traced) - sum(plain)) < 30
    pyro.clear_param_store()
    guide = AutoIResNet(funnel, 2, logdet=Roulette())
    with pytest.raises(TracingError, match=r"torch\.jit"):
        step(guide, funnel, 1, JitTrace_ELBO(**options))


def test_validation_and_double_precision_and_single():
    for dtype in (torch.float32, torch.float64):
        torch.set_default_dtype(dtype)
        pyro.clear_param_store()
        guide = AutoIResNet(funnel, 2)
        step(guide, funnel)
        assert all(p.dtype == dtype for p in guide.parameters())
        assert guide.median()["v"].dtype == dtype
    torch.set_default_dtype(torch.float64)


def test_predictive_and_posterior_and_transform():
    guide = AutoIResNet(banana, 2)
    step(guide)
    drawn = Predictive(banana, guide=guide, num_samples=10)(None)
    assert drawn["obs"].shape == (10, 3)
    posterior = guide.get_posterior()
    x = posterior.sample((5,))
    assert posterior.log_prob(x.clone()).shape == (5,)
    base, transform = guide.get_base_dist(), guide.get_transform()
    again = dist.TransformedDistribution(base, [transform])
    torch.testing.assert_close(again.log_prob(x), posterior.log_prob(x))


def test_inside_a_list_of_guides():
    guide = AutoGuideList(banana)
    guide.append(AutoIResNet(poutine.block(banana, expose=["x"]), 2))
    guide.append(AutoNormal(poutine.block(banana, expose=["y"])))
    assert torch.tensor(step(guide)).isfinite().all()
    assert set(guide.median()) == {"x", "y"}
    assert set(guide.quantiles([0.5])) == {"x", "y"}


# ---------------------------------------------------------------------------- path gradients


def gradients(model, guide, particles=1):
    elbo = Trace_ELBO(num_particles=particles, vectorize_particles=True, max_plate_nesting=1)
    guide.zero_grad()
    loss = elbo.differentiable_loss(model, guide)
    loss.backward()
    found = [p.grad.flatten() for p in guide.parameters() if p.grad is not None]
    return loss.item(), torch.cat(found)


def bent(model, **options):
    pyro.clear_param_store()
    torch.manual_seed(4)
    guide = AutoIResNet(model, 2, hidden_dims=[8], init="plain", **options)
    guide()
    torch.manual_seed(5)
    with torch.no_grad():
        for p in guide.parameters():
            p.add_(0.3 * torch.randn_like(p).tril() if p.dim() == 2 else 0.3 * torch.randn_like(p))
    return guide


@pytest.mark.parametrize(
    "options",
    [{}, {"metric": Triangular()}, {"chart": (Asinh(), None)}, {"metric": Identity()}],
    ids=str,
)
def test_path_gradients_are_those_of_the_density_at_fixed_parameters(options):
    guide = bent(funnel, **options)
    posterior = guide.get_posterior()
    x = posterior.rsample((6,))
    entropy = posterior.score_parts(x).entropy_term
    torch.testing.assert_close(entropy, posterior.log_prob(x.detach().clone()))
    slope = torch.autograd.grad(entropy.sum(), x)[0]
    z = x.detach().clone().requires_grad_()
    expected = torch.autograd.grad(posterior.log_prob(z).sum(), z)[0]
    torch.testing.assert_close(slope, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("logdet", [None, Roulette()])
def test_path_gradients_are_unbiased(logdet):
    guide = bent(banana, logdet=logdet)
    found = {}
    for path in (False, True):
        guide.path_gradients = path
        draws = [gradients(banana, guide, 200)[1] for _ in range(100)]
        found[path] = torch.stack(draws)
    means = [draws.mean(0) for draws in found.values()]
    error = sum(draws.var(0) / len(draws) for draws in found.values()).sqrt()
    z = (means[0] - means[1]) / error.clamp(min=1e-12)
    assert z.abs().max() < 5


def test_a_guide_at_its_posterior_has_gradients_without_noise():
    def model():
        pyro.sample("z", dist.MultivariateNormal(LOC, scale_tril=TRIL))

    guide = AutoIResNet(model, 1, init="laplace")
    guide()
    with torch.no_grad():
        for p in guide.transform.parts[0].block.contraction.layers[-1].parameters():
            p.zero_()
    _, path = gradients(model, guide, 5)
    guide.path_gradients = False
    _, score = gradients(model, guide, 5)
    assert path.abs().max() < 1e-7
    assert score.abs().max() > 1e-2


def test_a_second_derivative_of_a_path_gradient_raises():
    guide = bent(banana)
    elbo = Trace_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1)
    log_scale = guide.transform.parts[-1].log_scale
    loss = elbo.differentiable_loss(banana, guide)
    first = torch.autograd.grad(loss, log_scale, create_graph=True)[0]
    with pytest.raises(HigherOrderError, match="path_gradients=False"):
        torch.autograd.grad(first.sum(), log_scale)


def test_the_loss_is_the_same_with_either_gradient():
    losses = []
    for path in (False, True):
        guide = bent(funnel, path_gradients=path)
        torch.manual_seed(7)
        losses.append(gradients(funnel, guide, 16)[0])
    assert losses[0] == pytest.approx(losses[1])


def test_renyi_keeps_its_own_gradient():
    found = []
    for path in (False, True):
        guide = bent(funnel, path_gradients=path)
        torch.manual_seed(7)
        elbo = RenyiELBO(num_particles=8, vectorize_particles=True, max_plate_nesting=1)
        guide.zero_grad()
        elbo.loss_and_grads(funnel, guide)
        found.append([p.grad.clone() for p in guide.parameters() if p.grad is not None])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


# ---------------------------------------------------------------------------- copies and stores


def same(a, b):
    x = torch.randn(4, a.latent_dim)
    return torch.equal(a.transform(x), b.transform(x))


def test_a_copy_before_the_first_call_is_a_guide_of_its_own():
    guide = AutoIResNet(banana, 2)
    other = copy.deepcopy(guide)
    torch.manual_seed(0)
    a = step(guide)
    pyro.clear_param_store()
    torch.manual_seed(0)
    assert step(other) == a
    assert not any(p is q for p, q in zip(guide.parameters(), other.parameters(), strict=True))


def test_a_copy_after_a_step_goes_on():
    guide = AutoIResNet(banana, 2)
    step(guide)
    other = copy.deepcopy(guide)
    assert same(guide, other)
    pyro.clear_param_store()
    step(other)
    assert not same(guide, other)
    step(guide)


def test_saving_the_transform_and_the_guide():
    guide = AutoIResNet(banana, 2)
    step(guide)
    for what in (guide.transform, guide):
        file = io.BytesIO()
        torch.save(what, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=False)
        transform = getattr(loaded, "transform", loaded)
        x = torch.randn(4, 2)
        assert torch.equal(transform(x), guide.transform(x))
    step(guide)


def test_a_state_dict_in_a_fresh_guide():
    guide = AutoIResNet(gaussian, 2)
    step(guide, gaussian)
    fresh = AutoIResNet(gaussian, 2, init="plain")
    fresh()
    fresh.load_state_dict(guide.state_dict())
    assert same(fresh, guide)


def test_a_guide_goes_on_from_a_loaded_store(tmp_path):
    guide = AutoIResNet(gaussian, 2)
    step(guide, gaussian)
    pyro.get_param_store().save(tmp_path / "params")
    pyro.clear_param_store()
    pyro.get_param_store().load(tmp_path / "params")
    fresh = AutoIResNet(gaussian, 2, init="plain")
    fresh()
    assert same(fresh, guide)
    step(fresh, gaussian)
    assert not same(fresh, guide)
    pyro.get_param_store().save(tmp_path / "more")
    pyro.clear_param_store()
    pyro.get_param_store().load(tmp_path / "more")
    further = AutoIResNet(gaussian, 2)
    further()
    assert same(fresh, further)


def test_a_store_of_another_guide_is_told():
    step(AutoIResNet(gaussian, 2), gaussian)
    with pytest.raises(ArgumentError, match="clear_param_store"):
        step(AutoIResNet(gaussian, 2, hidden_dims=[7]), gaussian)


def test_parameters_of_its_own():
    with pyro.settings.context(module_local_params=True):
        guide, other = AutoIResNet(banana, 2), AutoIResNet(banana, 2)
        other()
        # SVI.step looks for Pyro's own parameters only, with any flow of torch parameters.
        loss = Trace_ELBO(num_particles=4, vectorize_particles=True)(banana, guide)
        loss()
        optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2)
        values = []
        for _ in range(3):
            optimizer.zero_grad()
            value = loss()
            value.backward()
            optimizer.step()
            values.append(value.item())
        assert torch.tensor(values).isfinite().all()
        assert not same(guide, other)
        assert not list(pyro.get_param_store().keys())


def test_the_same_seed_gives_the_same_guide():
    def run():
        pyro.clear_param_store()
        pyro.set_rng_seed(3)
        return step(AutoIResNet(funnel, 2), funnel, 4)

    assert run() == run()


def test_weights_as_random_variables_are_refused_in_words():
    guide = AutoIResNet(banana, 1, hidden_dims=[4])
    guide()
    with pytest.raises(ArgumentTypeError, match="random variables"):
        to_pyro_module_(guide)
    with pytest.raises(ArgumentTypeError, match="random variables"):
        PyroModule[type(guide.transform.parts[0])]


# ---------------------------------------------------------------------------- NeuTra


def test_neutra_has_the_density_of_the_model():
    guide = AutoIResNet(banana, 2)
    step(guide)
    guide.eval()
    neutra = NeuTraReparam(guide)
    model = neutra.reparam(banana)
    z = torch.randn(2)
    traced = poutine.trace(poutine.condition(model, {"x_shared_latent": z})).get_trace()
    latent = guide.transform(z)
    values = {"x": latent[0], "y": latent[1]}
    trace = poutine.trace(poutine.condition(banana, values)).get_trace()
    logdet = guide.transform.log_abs_det_jacobian(z, latent)
    torch.testing.assert_close(traced.log_prob_sum(), trace.log_prob_sum() + logdet)


@pytest.mark.slow
def test_nuts_through_a_guide_samples_the_posterior():
    guide = AutoIResNet(gaussian, 2, init="laplace")
    guide()
    guide.eval()
    neutra = NeuTraReparam(guide)
    kernel = NUTS(neutra.reparam(gaussian))
    chain = MCMC(kernel, num_samples=150, warmup_steps=50, disable_progbar=True)
    with cached(guide):
        chain.run()
    found = neutra.transform_sample(chain.get_samples()["z_shared_latent"])["z"].detach()
    scale = TRIL.square().sum(1).sqrt()
    assert ((found.mean(0) - LOC) / scale).abs().max() < 0.4
    assert (found.std(0) / scale - 1).abs().max() < 0.4
    assert not chain.diagnostics()["divergences"]["chain 0"]


def test_a_density_that_is_drawn_is_refused():
    def model():
        pyro.sample("z", dist.Normal(torch.zeros(40), 1.0).to_event(1))

    guide = AutoIResNet(model, 2)
    guide()
    with pytest.raises(ArgumentError, match=r"guide\.eval\(\)"):
        NeuTraReparam(guide).reparam(model)()
    guide.eval()
    NeuTraReparam(guide).reparam(model)()
    exact = AutoIResNet(model, 2, logdet=Exact())
    exact()
    NeuTraReparam(exact).reparam(model)()


# ---------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"num_blocks": 0}, ArgumentError, "num_blocks"),
        ({"num_blocks": 2.5}, ArgumentTypeError, "num_blocks"),
        ({"init": "map"}, ArgumentError, "init to be one of auto, laplace, plain"),
        ({"init_scale": 0.0}, ArgumentError, "init_scale"),
        ({"init_loc_fn": 3}, ArgumentTypeError, "init_loc_fn"),
        ({"path_gradients": "no"}, ArgumentTypeError, "path_gradients"),
        ({"lipschitz": 1.2}, ArgumentError, "lipschitz"),
        ({"hidden_dims": "64"}, ArgumentTypeError, "hidden_dims"),
        ({"metric": 3}, ArgumentTypeError, "metric"),
    ],
)
def test_wrong_options_are_told_at_once(options, error, words):
    with pytest.raises(error, match=words):
        AutoIResNet(banana, **options)


def test_a_guide_that_has_seen_no_model():
    with pytest.raises(ArgumentTypeError, match="model"):
        AutoIResNet(3)
    with pytest.raises(ArgumentError, match="has seen its model"):
        AutoIResNet(banana).get_transform()


def test_a_plate_of_particles_and_a_plate_of_data():
    def model(data):
        loc = pyro.sample("loc", dist.Normal(0.0, 5.0))
        with pyro.plate("group", 3, dim=-2):
            scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
            with pyro.plate("row", 7, dim=-1):
                pyro.sample("obs", dist.Normal(loc, scale), obs=data)

    data = torch.randn(3, 7)
    guide = AutoIResNet(model, 2)
    elbo = Trace_ELBO(num_particles=5, vectorize_particles=True, max_plate_nesting=2)
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 1e-2}), elbo)
    assert math.isfinite(svi.step(data))
    assert guide.median(data)["scale"].shape == (3, 1)


def test_the_affine_map():
    transform = TriangularAffine(3)
    transform.start_at(LOC, TRIL)
    torch.nn.init.normal_(transform.shift)
    torch.nn.init.normal_(transform.log_scale)
    torch.nn.init.normal_(transform.below)
    x = torch.randn(2, 4, 3)
    y = transform(x)
    torch.testing.assert_close(y, transform.loc + x @ transform.scale_tril.mT)
    torch.testing.assert_close(transform.inv(y.clone()), x, atol=1e-8, rtol=1e-8)
    jacobian = torch.func.jacrev(transform._call)(x[0, 0])
    expected = torch.linalg.slogdet(jacobian)[1].expand(2, 4)
    torch.testing.assert_close(transform.log_abs_det_jacobian(x, y), expected)
    assert constraints.lower_cholesky.check(transform.scale_tril)
    transform(x).sum().backward()
    assert transform.start_loc.grad is None
    assert transform.below.grad is not None
    assert transform.with_cache(0).with_cache(1).shift is transform.shift


@pytest.mark.parametrize(
    ("loc", "tril", "words"),
    [
        (torch.zeros(2), torch.eye(3), "shape"),
        (torch.zeros(3), -torch.eye(3), "positive diagonal"),
        (torch.zeros(3), torch.ones(3, 3), "lower triangular"),
        (torch.full((3,), torch.nan), torch.eye(3), "finite"),
    ],
)
def test_an_affine_map_starts_at_a_normal_distribution(loc, tril, words):
    with pytest.raises(ArgumentError, match=words):
        TriangularAffine(3).start_at(loc, tril)
