"""Start of the automatic guide."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import (
    SVI,
    Trace_ELBO,
)
from pyro.infer.autoguide import init_to_value
from torch.distributions import biject_to

from pyro_iresnet import AutoIResNet
from pyro_iresnet.errors import (
    ArgumentError,
    LaplaceError,
)
from pyro_iresnet.hosts.pyro import LinearAutoregressive
from pyro_iresnet.hosts.pyro.guide.log_joint import LogJoint

from .models import DATA, LOC, TRIL, banana, constrained, funnel, gaussian


def test_finds_normal_posterior():
    guide = AutoIResNet(gaussian, init="laplace")
    guide()
    outer = guide.transform.parts[-1]
    assert isinstance(outer, LinearAutoregressive)
    torch.testing.assert_close(outer.loc, LOC, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(outer.start_scale_tril, TRIL, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-60, 1e300])
def test_names_scale_that_dtype_lacks(scale):
    torch.set_default_dtype(torch.float32)

    def model():
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    for init in ("plain", "auto"):
        with pytest.raises(ArgumentError, match=r"^Expected init_scale to be a number that"):
            AutoIResNet(model, init=init, init_scale=scale)()


def test_auto_prefers_laplace():
    for seed in range(3):
        torch.manual_seed(seed)
        guide = AutoIResNet(gaussian)
        guide()
        torch.testing.assert_close(
            guide.transform.parts[-1].start_scale_tril, TRIL, atol=1e-6, rtol=1e-6
        )


def test_plain_without_mode():
    guide = AutoIResNet(funnel, init_scale=0.5)
    guide()
    torch.testing.assert_close(guide.transform.parts[-1].start_scale_tril, 0.5 * torch.eye(10))


def test_laplace_without_mode():
    def flat():
        pyro.sample("z", dist.Delta(pyro.sample("z0", dist.Normal(0.0, 1.0))))
        pyro.factor("saddle", pyro.sample("s", dist.Normal(0.0, 1.0)) ** 2)

    with pytest.raises(LaplaceError, match=r"no usable mode|ran away"):
        AutoIResNet(flat, init="laplace")()


def test_plain_at_init_loc():
    values = {"x": torch.tensor(0.3), "y": torch.tensor(-0.7)}
    for scale in (None, 1.0):
        pyro.clear_param_store()
        start = {"init_loc_fn": init_to_value(values=values), "init_scale": scale}
        guide = AutoIResNet(banana, init="plain", **start)
        guide()
        outer = guide.transform.parts[-1]
        torch.testing.assert_close(outer.loc, torch.tensor([0.3, -0.7]))
    torch.testing.assert_close(outer.start_scale_tril, torch.eye(2))


GROUPS = 20
EFFECTS = torch.linspace(-1, 1, GROUPS)


def regression():
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    tau = pyro.sample("tau", dist.HalfNormal(0.3))
    sigma = pyro.sample("sigma", dist.HalfNormal(0.3))
    with pyro.plate("group", GROUPS, dim=-1):
        slope = pyro.sample("slope", dist.Normal(mu, tau))
        with pyro.plate("row", 10, dim=-2):
            x = torch.linspace(-2, 2, 10)[:, None]
            pyro.sample("obs", dist.Normal(slope * x, sigma), obs=EFFECTS * x + 0.1 * x.cos())


def wide():
    pyro.sample("z", dist.Normal(torch.zeros(3), 2.0).to_event(1))


@pytest.mark.parametrize("init", ["auto", "plain"])
@pytest.mark.parametrize(("model", "scale"), [(regression, 0.1), (wide, 1.0)])
def test_larger_elbo_at_start(model, scale, init):
    elbo = Trace_ELBO(num_particles=200, vectorize_particles=True, max_plate_nesting=2)

    def start(init_scale):
        pyro.clear_param_store()
        torch.manual_seed(0)
        guide = AutoIResNet(model, 1, hidden_dims=[8], init=init, init_scale=init_scale)
        guide()
        state = torch.get_rng_state()
        return guide.transform.parts[-1].start_scale_tril, elbo.loss(model, guide), state

    found, others = start(None), [start(s) for s in (1.0, 0.1)]
    assert found[1] <= min(loss for _, loss, _ in others) + 1.0
    if init == "plain":
        expected = scale * torch.eye(len(found[0]))
        torch.testing.assert_close(found[0], expected)
        assert torch.equal(found[2], others[0][2])


def test_small_initial_loss():
    guide = AutoIResNet(gaussian, init="laplace")
    loss = Trace_ELBO(num_particles=500, vectorize_particles=True, max_plate_nesting=0)
    assert loss.loss(gaussian, guide) < 0.3


def test_plain_when_subsampling():
    data = torch.randn(100)

    def model():
        z = pyro.sample("z", dist.Normal(0.0, 10.0))
        with pyro.plate("data", 100, subsample_size=10) as rows:
            pyro.sample("obs", dist.Normal(z, 1.0), obs=data[rows])

    guide = AutoIResNet(model)
    guide()
    torch.testing.assert_close(guide.transform.parts[-1].start_scale_tril, 0.1 * torch.eye(1))
    assert math.isfinite(SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO()).step())


def mixture():
    means = pyro.sample("means", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    with pyro.plate("data", 3):
        z = pyro.sample("z", dist.Categorical(torch.ones(2)))
        pyro.sample("obs", dist.Normal(means[..., 0] * (1 - z) + means[..., 1] * z, 1.0), obs=DATA)


def test_plain_with_hidden_draws():
    guide = AutoIResNet(poutine.block(mixture, hide=["z"]), 2)
    guide()
    torch.testing.assert_close(guide.transform.parts[-1].start_scale_tril, 0.1 * torch.eye(2))
    with pytest.raises(LaplaceError, match="differs from call to call"):
        AutoIResNet(poutine.block(mixture, hide=["z"]), 2, init="laplace")()


def precise():
    z = pyro.sample("z", dist.Normal(0.0, 10.0))
    pyro.sample("y", dist.Normal(z, 0.01), obs=torch.tensor(5.0))


@pytest.mark.parametrize("hidden", [{"expose": ["z"]}, {"hide": ["y"]}])
def test_plain_with_hidden_observations(hidden):
    # The Laplace approximation of what is left would be the prior.
    model = poutine.block(precise, **hidden)
    guide = AutoIResNet(model)
    guide()
    torch.testing.assert_close(guide.transform.parts[-1].start_scale_tril, 0.1 * torch.eye(1))
    with pytest.raises(LaplaceError, match="a part of a model"):
        AutoIResNet(model, init="laplace")()


def short():
    z = pyro.sample("z", dist.Normal(0.0, 0.1))
    assert abs(float(z.detach())) < 1, "z too far"
    pyro.sample("y", dist.Normal(z, 1.0), obs=torch.tensor(0.1))


def tabled():
    z = pyro.sample("z", dist.Normal(0.5, 0.1))
    pyro.sample("y", dist.Normal([1.0, 2.0][int(z.detach())] * z, 1.0), obs=torch.tensor(0.1))


@pytest.mark.parametrize("model", [short, tabled])
@pytest.mark.parametrize("init", ["auto", "plain"])
def test_model_that_fails_far_out(model, init):
    guide = AutoIResNet(model, 1, hidden_dims=[8], init=init)
    assert abs(guide()["z"]) < 2


class Holder:
    """An object that is no module, and holds one in an attribute and one in a dict."""

    def __init__(self):
        self.net = torch.nn.BatchNorm1d(1)
        self.nets = {"other": torch.nn.BatchNorm1d(1)}

    def model(self, y):
        z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
        mean = self.net(z[:, None]) + self.nets["other"](z[:, None])
        pyro.sample("obs", dist.Normal(mean.sum(), 1.0), obs=y)


def test_search_is_no_training():
    holder = Holder()
    AutoIResNet(holder.model, 1, hidden_dims=[8])(torch.zeros(()))
    # The first run, in which Pyro looks at the sites.
    assert int(holder.net.num_batches_tracked) == 1
    assert int(holder.nets["other"].num_batches_tracked) == 1


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
def test_plain_after_laplace_fails(model):
    values = {"x": torch.tensor(1.0), "scale": torch.tensor(1.0)}
    options = {"init_loc_fn": init_to_value(values=values), "init_scale": 0.01}
    guide = AutoIResNet(model, 2, **options)
    guide()
    assert guide.transform.parts[-1].start_scale_tril.item() == pytest.approx(0.01)
    with pytest.raises(LaplaceError):
        AutoIResNet(model, 2, init="laplace", **options)()


def test_keeps_settings_and_buffers():
    norm = torch.nn.BatchNorm1d(1)

    def model():
        x = pyro.sample("x", dist.Normal(torch.zeros(4), 1.0).to_event(1))
        pyro.sample("obs", dist.Normal(norm(x[:, None]).sum(), 1.0), obs=torch.tensor(0.0))

    torch.distributions.Distribution.set_default_validate_args(False)
    try:
        guide = AutoIResNet(model, 1)
        guide._setup_prototype()
        # Pyro runs the model once for its prototype.
        assert int(norm.num_batches_tracked) <= 1
        assert norm.training
        assert torch.distributions.Distribution._validate_args is False
    finally:
        torch.distributions.Distribution.set_default_validate_args(True)


def test_keeps_eval_mode():
    guide = AutoIResNet(gaussian, 1)
    guide.eval()
    guide()
    assert not any(m.training for m in guide.transform.modules())


def test_log_joint():
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


LEARNED = ("shift", "log_scale", "weight")


def autoregressive():
    transform = LinearAutoregressive(3)
    transform.start_at(LOC, TRIL)
    for name in LEARNED:
        torch.nn.init.normal_(getattr(transform, name))
    return transform


def test_linear_autoregressive():
    transform, x = autoregressive(), torch.randn(2, 4, 3)
    y = transform(x)
    relative = []
    for i in range(3):
        shift = sum(transform.weight[i, j] * x[..., j] for j in range(i))
        change = sum(0.3 * transform.weight[j, i] * x[..., j] for j in range(i))
        inner = shift + torch.exp(torch.as_tensor(change)) * x[..., i]
        relative.append(transform.shift[i] + transform.log_scale[i].exp() * inner)
    torch.testing.assert_close(y, LOC + torch.stack(relative, -1) @ TRIL.mT)
    torch.testing.assert_close(transform.loc, transform(torch.zeros(3)))
    torch.testing.assert_close(transform.inv(y.clone()), x, atol=1e-8, rtol=1e-8)
    jacobians = torch.func.vmap(torch.func.jacrev(transform._call))(x.flatten(0, 1))
    expected = torch.linalg.slogdet(jacobians)[1].reshape(2, 4)
    torch.testing.assert_close(transform.log_abs_det_jacobian(x, y), expected)
    assert constraints.lower_cholesky.check(jacobians).all()
    transform(x).sum().backward()
    assert transform.start_loc.grad is None
    assert all(getattr(transform, name).grad is not None for name in LEARNED)
    assert transform.with_cache(0).with_cache(1).shift is transform.shift


def test_linear_autoregressive_gradients():
    transform, points = LinearAutoregressive(3), torch.randn(4, 3, requires_grad=True)

    def both_ways(points, *learned):
        # The parameters are those of the transform, which gradcheck changes in place.
        forward, inverse = transform.evaluate(points), transform.evaluate_inverse(points)
        return forward.y, forward.log_det(), inverse.x, inverse.log_det()

    learned = [getattr(transform, name) for name in LEARNED]
    for parameter in learned:
        torch.nn.init.normal_(parameter, std=0.3)
    assert torch.autograd.gradcheck(both_ways, (points, *learned))


def test_autoregressive_products_in_parts(monkeypatch):
    transform, x, w = autoregressive(), torch.randn(2, 4, 3), torch.randn(2, 4, 3)
    evaluation = transform.evaluation(x=x)
    whole = evaluation.inverse_vjp(w)
    torch.testing.assert_close(evaluation.vjp(whole), w)
    # Two matrices of nine entries at once.
    monkeypatch.setattr("pyro_iresnet.hosts.pyro.linear_autoregressive.ENTRIES", 20)
    torch.testing.assert_close(evaluation.inverse_vjp(w), whole)
    empty = transform.evaluation(x=x[:0]).inverse_vjp(w[:0])
    assert empty.shape == (0, 4, 3)


def test_autoregressive_of_one():
    transform, x = LinearAutoregressive(1), torch.randn(5, 1)
    with torch.no_grad():
        transform.shift.fill_(2.0)
        transform.log_scale.fill_(0.5)
    y = transform(x)
    torch.testing.assert_close(y, 2 + math.exp(0.5) * x)
    torch.testing.assert_close(transform.log_abs_det_jacobian(x, y), torch.full((5,), 0.5))
    torch.testing.assert_close(transform.inv(y.clone()), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autoregressive_scale_limit(dtype):
    """Multiply scales by no more than e^10, and stay invertible there."""
    transform = LinearAutoregressive(2).to(dtype)
    with torch.no_grad():
        transform.weight[0, 1] = 5.0 / 0.3
    x = torch.tensor([[1.0, 1.0], [4.0, 1.0], [-100.0, 1.0]], dtype=dtype)
    evaluation = transform.evaluation(x=x)
    limits = torch.tensor([5.0, 10.0, -10.0], dtype=dtype)
    torch.testing.assert_close(evaluation.log_det(), limits)
    torch.testing.assert_close(evaluation.y[:, 1], limits.exp())
    back = transform.evaluation(y=evaluation.y.detach().clone())
    torch.testing.assert_close(back.x, x)
    torch.testing.assert_close(back.log_det(), limits)
    matrix = torch.func.vmap(torch.func.jacrev(transform._call))(x)
    w = torch.randn(3, 2, dtype=dtype)
    product = (w[:, None] @ matrix)[:, 0]
    torch.testing.assert_close(evaluation.vjp(w), product)
    torch.testing.assert_close(evaluation.inverse_vjp(product), w)


@pytest.mark.parametrize(
    ("loc", "tril", "words"),
    [
        (torch.zeros(2), torch.eye(3), "shape"),
        (torch.zeros(3), -torch.eye(3), "positive diagonal"),
        (torch.zeros(3), torch.ones(3, 3), "lower triangular"),
        (torch.full((3,), torch.nan), torch.eye(3), "finite"),
    ],
)
def test_autoregressive_refuses_wrong_start(loc, tril, words):
    with pytest.raises(ArgumentError, match=words):
        LinearAutoregressive(3).start_at(loc, tril)
