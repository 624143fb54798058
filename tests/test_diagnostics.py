import math
import warnings
from functools import partial

import arviz
import matplotlib
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import (
    AutoDelta,
    AutoGuideList,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalizingFlow,
    AutoNormalMessenger,
)
from pyro.infer.reparam import LocScaleReparam
from torch import nn

from pyro_iresnet import ArgumentError, ArgumentTypeError, PowerSeries, iresnet_stack
from pyro_iresnet.demo.eight_schools import EFFECTS
from pyro_iresnet.demo.eight_schools import model as eight_schools
from pyro_iresnet.diagnostics import KHatWarning, guide_to_inference_data, psis

matplotlib.use("Agg")

Y = torch.tensor([0.5, 1.5, -0.3], dtype=torch.float64)
MEAN, SCALE = float(Y.sum()) / 4, 0.5
EVIDENCE = float(
    dist.MultivariateNormal(
        torch.zeros(3, dtype=torch.float64),
        torch.eye(3, dtype=torch.float64) + torch.ones(3, 3, dtype=torch.float64),
    ).log_prob(Y)
)


def model(y=Y):
    """``z ~ N(0, 1)``, ``y_i ~ N(z, 1)``: the posterior is ``N(sum y / 4, 1 / 4)``."""
    z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def gaussian(y=Y, loc=MEAN, scale=SCALE):
    pyro.sample("z", dist.Normal(torch.tensor(loc), scale))


wide = partial(gaussian, loc=MEAN + 0.2, scale=0.7)
narrow = partial(gaussian, loc=MEAN + 1.5, scale=0.1)


@pytest.fixture
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("error", KHatWarning)
        yield


# Numbers


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_an_exact_guide(dtype):
    torch.set_default_dtype(dtype)
    result = psis(gaussian, model, Y.to(dtype))
    assert result.k_hat == -math.inf
    precise = dtype == torch.float64
    assert result.ess == pytest.approx(4000, abs=1e-6 if precise else 1e-2)
    assert result.log_evidence == pytest.approx(EVIDENCE, abs=1e-10 if precise else 1e-5)
    assert result.elbo == pytest.approx(EVIDENCE, abs=1e-10 if precise else 1e-5)
    assert result.log_evidence_error < (1e-8 if precise else 1e-4)
    assert result.log_weights.dtype == result.smoothed_log_weights.dtype == torch.float64
    assert result.draws["z"].dtype == dtype
    assert "good" in str(result)


@pytest.mark.usefixtures("quiet")
def test_the_stated_errors_are_the_errors():
    evidence, elbo = [], []
    kl = math.log(SCALE / 0.7) + (0.7**2 + 0.2**2) / (2 * SCALE**2) - 0.5
    for _ in range(100):
        result = psis(wide, model, num_samples=500)
        evidence.append((result.log_evidence - EVIDENCE) / result.log_evidence_error)
        elbo.append((result.elbo - (EVIDENCE - kl)) / result.elbo_error)
    for errors in (evidence, elbo):
        rms = torch.tensor(errors).square().mean().sqrt()
        assert 0.8 < rms < 1.2


@pytest.mark.usefixtures("quiet")
def test_what_is_stated_is_what_is_defined():
    result = psis(wide, model, num_samples=1000)
    weights = result.smoothed_log_weights.exp()
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    assert result.ess == pytest.approx(float(1 / weights.square().sum()))
    joint = dist.Normal(0.0, 1.0).log_prob(result.draws["z"])
    joint = joint + dist.Normal(result.draws["z"][:, None], 1.0).log_prob(Y).sum(1)
    torch.testing.assert_close(result.log_joint, joint)
    guide = dist.Normal(MEAN + 0.2, 0.7).log_prob(result.draws["z"])
    torch.testing.assert_close(result.log_weights, joint - guide)
    _, k_hat = arviz.psislw(result.log_weights.numpy())
    assert result.k_hat == float(k_hat)


@pytest.mark.usefixtures("quiet")
def test_resampled_draws_are_of_the_posterior():
    result = psis(wide, model)
    draws = result.resample(20_000)["z"]
    assert float(draws.mean()) == pytest.approx(MEAN, abs=0.03)
    assert float(draws.std()) == pytest.approx(SCALE, abs=0.03)
    # Not sorted, as systematic resampling alone would leave them.
    assert abs(float(torch.corrcoef(torch.stack([draws[1:], draws[:-1]]))[0, 1])) < 0.05
    counts = torch.bincount(result.indices(5000), minlength=4000)
    assert ((counts - 5000 * result.smoothed_log_weights.exp()).abs() <= 1 + 1e-9).all()
    assert result.resample(1)["z"].shape == (1,)
    with pytest.raises(ArgumentError, match="num_samples to be at least 1; got 0"):
        result.resample(0)


def test_a_hopeless_guide_is_reported():
    with pytest.warns(KHatWarning) as caught:
        result = psis(narrow, model)
    assert result.k_hat > 0.7
    (warning,) = caught
    assert f"k-hat is {result.k_hat:.2f}, above 0.7" in str(warning.message)
    assert "Train for more steps" in str(warning.message)
    assert warning.filename == __file__
    assert "fails" in str(result)


def test_few_draws_that_count_are_reported():
    # The weights are bounded, so their tail is short; but in ten dimensions few draws are likely.
    def many():
        pyro.sample("z", dist.Normal(torch.zeros(10), 1.0).to_event(1))

    def guide():
        pyro.sample("z", dist.Normal(torch.zeros(10), 1.5).to_event(1))

    with pytest.warns(KHatWarning, match=r"effective sample size is \d\.\d of 30 draws"):
        result = psis(guide, many, num_samples=30)
    assert result.k_hat <= 0.7


@pytest.mark.usefixtures("quiet")
def test_draws_outside_the_support_have_no_weight():
    def positive():
        z = pyro.sample("z", dist.HalfNormal(torch.ones(()), validate_args=False))
        pyro.factor("unused", torch.zeros_like(z))

    result = psis(partial(gaussian, loc=0.0, scale=1.0), positive, num_samples=1000)
    outside = int((result.draws["z"] < 0).sum())
    assert 0 < outside == int(result.log_weights.isinf().sum())
    assert f"{outside} draws lie outside" in str(result)
    assert (result.resample(1000)["z"] >= 0).all()
    assert result.log_evidence == pytest.approx(0.0, abs=0.1)
    assert result.elbo == -math.inf
    assert result.elbo_error == math.inf


@pytest.mark.usefixtures("quiet")
def test_discrete_sites():
    def coin():
        z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.5)), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(z, 1.0), obs=torch.tensor(0.2))

    result = psis(lambda: pyro.sample("z", dist.Bernoulli(torch.tensor(0.4))), coin)
    density = dist.Normal(torch.tensor([0.0, 1.0]), 1.0).log_prob(torch.tensor(0.2))
    exact = float(torch.logsumexp(density, 0)) - math.log(2)
    assert result.log_evidence == pytest.approx(exact, abs=4 * result.log_evidence_error)
    assert result.k_hat < 0.5


# Shapes


def plated(scale, *, offset):
    """Scalars, a plate, nested plates, a gap between plates, events, and what depends on them."""
    a = pyro.sample("a", dist.Normal(torch.tensor(offset), scale))
    v = pyro.sample("v", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    outer = pyro.plate("outer", 4, dim=-1)
    inner = pyro.plate("inner", 2, dim=-3)
    with outer:
        b = pyro.sample("b", dist.Normal(a, 1.0))
        pyro.deterministic("b2", 2 * b)
        c = pyro.sample("c", dist.Dirichlet(torch.ones(5)))
    with inner, outer:
        pyro.sample("d", dist.Normal(b + v.sum(-1), 1.0))
    with inner:
        e = pyro.sample("e", dist.MultivariateNormal(torch.zeros(2), torch.eye(2)))
        pyro.deterministic("e2", e.exp(), event_dim=1)
    with outer:
        pyro.sample("y", dist.Normal(b + c[..., 0], 1.0), obs=torch.zeros(4))
        pyro.sample("w", dist.Normal(c, 1.0).to_event(1), obs=torch.zeros(5))
    pyro.deterministic("constant", torch.arange(3.0))
    pyro.factor("factor", -a.abs())


SHAPES = {
    "a": (),
    "v": (3,),
    "b": (4,),
    "c": (4, 5),
    "d": (2, 1, 4),
    "e": (2, 1, 1, 2),
}
DERIVED = {"b2": (4,), "e2": (2, 1, 1, 2), "constant": (3,)}
GUIDES = {
    "AutoNormal": AutoNormal,
    "AutoMultivariateNormal": AutoMultivariateNormal,
    "messenger": AutoNormalMessenger,
    "flow": lambda m: AutoNormalizingFlow(m, partial(iresnet_stack, num_blocks=1, hidden_dims=[8])),
}


@pytest.mark.filterwarnings("ignore::pyro_iresnet.diagnostics.KHatWarning")
@pytest.mark.parametrize("batch_size", [None, 20, 1])
@pytest.mark.parametrize("name", GUIDES)
def test_shapes_are_those_of_one_run(name, batch_size):
    guide = GUIDES[name](plated)
    result = psis(guide, plated, 1.5, offset=0.2, num_samples=50, batch_size=batch_size)
    assert {k: tuple(v.shape) for k, v in result.draws.items()} == {
        k: (50, *shape) for k, shape in SHAPES.items()
    }
    for s in (0, 49):
        data = {k: v[s] for k, v in result.draws.items()}
        trace = poutine.trace(poutine.condition(plated, data)).get_trace(1.5, offset=0.2)
        assert float(result.log_joint[s]) == pytest.approx(float(trace.log_prob_sum()))


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("name", GUIDES)
def test_every_kind_of_guide_tells_the_same_evidence(name):
    options = {} if name == "flow" else {"init_scale": 0.8}
    result = psis(GUIDES[name](model, **options), model, max_plate_nesting=3)
    assert result.draws["z"].shape == (4000,)
    assert result.log_evidence_error < 0.05
    assert result.log_evidence == pytest.approx(EVIDENCE, abs=4 * result.log_evidence_error)


@pytest.mark.filterwarnings("ignore::pyro_iresnet.diagnostics.KHatWarning")
@pytest.mark.parametrize("batch_size", [None, 20, 1])
def test_groups_and_dimensions(batch_size):
    guide = AutoNormal(plated)
    data = guide_to_inference_data(
        guide,
        plated,
        1.5,
        offset=0.2,
        num_samples=50,
        batch_size=batch_size,
        coords={"outer": list("pqrs")},
        dims={"v": ["axis"]},
    )
    assert data.groups() == [
        "posterior",
        "posterior_predictive",
        "log_likelihood",
        "sample_stats",
        "observed_data",
    ]
    posterior = data.posterior
    for k, shape in {**SHAPES, **DERIVED}.items():
        assert posterior[k].shape == (1, 50, *shape), k
    assert posterior.b.dims == posterior.b2.dims == ("chain", "draw", "outer")
    assert posterior.v.dims[2:] == ("axis",)
    assert posterior.c.dims[2:] == ("outer", "c_dim_1")
    assert posterior.d.dims[2:] == ("inner", "d_dim_1", "outer")
    assert posterior.e2.dims[2] == "inner"
    assert list(posterior.outer.values) == list("pqrs")
    assert abs(posterior.b2 - 2 * posterior.b).max() == 0
    assert set(data.sample_stats) == {"log_weight", "lp", "log_q"}
    stats = data.sample_stats
    assert abs(stats.lp - stats.log_q - stats.log_weight).max() < 1e-12
    assert data.log_likelihood.y.dims == data.log_likelihood.w.dims == ("chain", "draw", "outer")
    expected = dist.Normal(torch.tensor((posterior.b + posterior.c[..., 0]).values), 1.0).log_prob(
        torch.zeros(())
    )
    torch.testing.assert_close(torch.tensor(data.log_likelihood.y.values), expected)
    assert data.posterior_predictive.w.shape == (1, 50, 4, 5)
    assert data.observed_data.w.dims == ("outer", "w_dim_1")
    assert data.observed_data.y.dims == ("outer",)
    assert data.posterior.attrs["inference_library"] == "pyro"
    assert isinstance(data.posterior.attrs["k_hat"], float)


# What is left as it was


class Noisy(nn.Module):
    """A guide whose part draws in train mode, as a stochastic log-determinant does."""

    def __init__(self):
        super().__init__()
        self.loc, self.noise = nn.Parameter(torch.tensor(MEAN)), nn.Dropout(0.5)
        self.frozen = nn.Dropout(0.5).eval()

    def forward(self, y=Y):
        pyro.module("guide", self)
        pyro.sample("z", dist.Normal(self.noise(self.loc), SCALE))


@pytest.mark.parametrize("training", [True, False])
def test_guide_and_model_run_in_eval_mode_and_get_their_own_back(training):
    guide = Noisy()
    guide.train(training)
    guide.frozen.eval()
    before = {k: v.clone() for k, v in guide.state_dict().items()}
    assert psis(guide, model).k_hat == -math.inf
    assert guide.training == guide.noise.training == training
    assert not guide.frozen.training
    for k, v in guide.state_dict().items():
        assert torch.equal(v, before[k])
    assert guide.loc.grad is None

    class Broken(nn.Module):
        def forward(self):
            raise RuntimeError("broken")

    broken = Broken()
    with pytest.raises(RuntimeError, match="broken"):
        psis(broken, model)
    assert broken.training


def test_a_stochastic_log_determinant_is_taken_in_eval_mode():
    make = partial(iresnet_stack, num_blocks=2, hidden_dims=[8], logdet=PowerSeries(20))
    guide = AutoNormalizingFlow(model, make)
    guide(Y)
    store = {k: v.clone() for k, v in pyro.get_param_store().items()}
    modes = {k: m.training for k, m in guide.named_modules()}
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        results.append(psis(guide, model, Y, num_samples=200))
    assert torch.equal(results[0].log_weights, results[1].log_weights)
    assert modes == {k: m.training for k, m in guide.named_modules()}
    assert store.keys() == pyro.get_param_store().keys()
    for k, v in pyro.get_param_store().items():
        assert torch.equal(v, store[k])


@pytest.mark.usefixtures("quiet")
def test_all_that_is_random_follows_the_seed():
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        result = psis(wide, model, num_samples=300)
        data = guide_to_inference_data(wide, model, num_samples=30, resample=True)
        found.append((result, result.resample(50)["z"], data))
    assert torch.equal(found[0][0].draws["z"], found[1][0].draws["z"])
    assert torch.equal(found[0][1], found[1][1])
    assert found[0][2].posterior.equals(found[1][2].posterior)
    assert found[0][2].posterior_predictive.equals(found[1][2].posterior_predictive)
    assert not torch.equal(found[0][0].draws["z"], found[2][0].draws["z"])


# Models of other kinds


@pytest.mark.usefixtures("quiet")
def test_a_reparametrised_model_has_its_own_sites_in_the_posterior():
    centred = poutine.reparam(eight_schools, {"theta": LocScaleReparam(0.0)})
    torch.set_default_dtype(torch.float32)
    guide = AutoNormal(centred, init_scale=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = guide_to_inference_data(guide, centred, num_samples=50)
    assert set(data.posterior) == {"mu", "tau", "theta_decentered", "theta"}
    assert data.posterior.theta.dims == ("chain", "draw", "school")


@pytest.mark.usefixtures("quiet")
def test_guides_for_parts():
    def two():
        pyro.sample("a", dist.Normal(torch.zeros(()), 1.0))
        with pyro.plate("rows", 2):
            pyro.sample("b", dist.Normal(torch.zeros(()), 1.0))

    guide = AutoGuideList(two)
    guide.append(AutoNormal(poutine.block(two, expose=["a"]), init_scale=1.0))
    guide.append(AutoNormal(poutine.block(two, expose=["b"]), init_scale=1.0))
    result = psis(guide, two, num_samples=2000)
    assert result.draws["b"].shape == (2000, 2)
    assert result.log_evidence == pytest.approx(0.0, abs=0.5)


@pytest.mark.usefixtures("quiet")
def test_missing_observations():
    mask = torch.tensor([True, False, True])

    def masked():
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        with pyro.plate("row", 3), poutine.mask(mask=mask):
            pyro.sample("y", dist.Normal(z, 1.0), obs=Y)

    loc, scale = float(Y[mask].sum()) / 3, 3**-0.5
    assert psis(lambda: gaussian(loc=loc, scale=scale), masked).k_hat == -math.inf

    def partly():
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        with pyro.plate("row", 3):
            pyro.sample("y", dist.Normal(z, 1.0), obs=Y, obs_mask=mask)

    guide = AutoNormal(partly, init_scale=0.7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", KHatWarning)
        data = guide_to_inference_data(guide, partly, num_samples=50)
    assert set(data.posterior) == {"z", "y_unobserved", "y"}
    assert set(data.observed_data) == {"y_observed"}
    assert torch.equal(torch.tensor(data.posterior.y.values[0, :, 0]), Y[0].expand(50))


@pytest.mark.usefixtures("quiet")
def test_a_model_without_data_has_no_data_groups():
    def prior():
        pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))

    data = guide_to_inference_data(lambda: gaussian(loc=0.0, scale=1.0), prior, num_samples=50)
    assert data.groups() == ["posterior", "sample_stats"]


# A model that cannot run on many draws


def indexed():
    v = pyro.sample("v", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(v[0], 1.0), obs=torch.tensor(0.5))


def branching():
    z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
    loc = 1.0 if z > 0 else -1.0
    pyro.sample("y", dist.Normal(loc, 1.0), obs=torch.tensor(0.5))


def summing():
    z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
    pyro.deterministic("total", z.sum())


def mixing():
    z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
    pyro.sample("y", dist.Normal(z.max(), 1.0), obs=torch.tensor(0.5))


@pytest.mark.parametrize("which", [indexed, branching, mixing], ids=lambda f: f.__name__)
def test_a_model_for_one_draw_is_refused_or_run_one_by_one(which):
    guide = AutoNormal(which, init_scale=1.0)
    with pytest.raises(ArgumentError, match=r"many draws at once.*batch_size=1"):
        psis(guide, which, num_samples=50)
    with pytest.raises(ArgumentError, match="many draws at once"):
        psis(guide, which, num_samples=50, batch_size=49)
    result = psis(guide, which, num_samples=50, batch_size=1)
    data = {k: v[7] for k, v in result.draws.items()}
    trace = poutine.trace(poutine.condition(which, data)).get_trace()
    assert float(result.log_joint[7]) == pytest.approx(float(trace.log_prob_sum()))


def test_a_deterministic_site_for_one_draw_is_refused_or_run_one_by_one():
    guide = AutoNormal(summing, init_scale=1.0)
    assert psis(guide, summing, num_samples=50).draws["z"].shape == (50,)
    with pytest.raises(ArgumentError, match="deterministic site 'total'"):
        guide_to_inference_data(guide, summing, num_samples=50)
    data = guide_to_inference_data(guide, summing, num_samples=50, batch_size=1)
    assert abs(data.posterior.total - data.posterior.z).max() == 0


# Refusals


def two_sites():
    z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
    pyro.sample("tau", dist.HalfNormal(torch.ones(())))
    pyro.sample("y", dist.Normal(z, 1.0), obs=torch.tensor(0.5))


def gaussian_and_more():
    gaussian()
    pyro.sample("u", dist.Normal(torch.zeros(()), 1.0))


def subsampled():
    z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
    with pyro.plate("row", 3, subsample_size=2) as rows:
        pyro.sample("y", dist.Normal(z, 1.0), obs=Y[rows])


def undefined():
    z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
    pyro.sample("y", dist.Normal(z.log(), 1.0, validate_args=False), obs=torch.tensor(0.5))


def unbounded():
    z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
    pyro.factor("infinite", torch.where(z > 0, math.inf, 0.0))


def nowhere():
    z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
    pyro.factor("nothing", torch.full_like(z, -math.inf))


def observed_only():
    pyro.sample("y", dist.Normal(torch.zeros(()), 1.0), obs=torch.tensor(0.5))


def sometimes():
    z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
    if z > 0:
        pyro.sample("more", dist.Normal(z, 1.0))


REFUSED = {
    "no draws": (gaussian, model, {"num_samples": 0}, "num_samples to be at least 1; got 0"),
    "few draws": (gaussian, model, {"num_samples": 10}, "at least 25.*got 10"),
    "no batch": (gaussian, model, {"batch_size": 0}, "batch_size to be at least 1; got 0"),
    "nesting": (gaussian, model, {"max_plate_nesting": 0}, "at least 1, the depth.*got 0"),
    "swapped": (model, gaussian, {}, "observes nothing; got 'y'. Are guide and model swapped"),
    "a site missing": (lambda: gaussian(), two_sites, {}, "it lacks 'tau'. Add it to the guide"),
    "a site more": (lambda: gaussian_and_more(), lambda: model(), {}, "also draws 'u'"),
    "subsampling": (lambda: gaussian(), subsampled, {}, "'row' takes 2 of 3"),
    "a point": (lambda: pyro.sample("z", dist.Delta(torch.ones(()))), lambda: model(), {}, "equal"),
    "nan": (lambda: gaussian(), undefined, {}, r"of 4000 draws \d+ have NaN and 0 have \+inf"),
    "infinite": (lambda: gaussian(), unbounded, {}, r"0 have NaN and \d+ have \+inf"),
    "no support": (lambda: gaussian(), nowhere, {}, "all 4000 have"),
    "no sites": (lambda: None, observed_only, {}, "latent sites; it has none"),
    "changing sites": (lambda: sometimes(), sometimes, {"batch_size": 1}, "same latent sites"),
}


@pytest.mark.filterwarnings("ignore:Encountered")
@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused_in_words(name):
    guide, which, options, words = REFUSED[name]
    with pytest.raises(ArgumentError, match=words):
        psis(guide, which, **options)
    if "num_samples" not in options:
        with pytest.raises(ArgumentError, match=words):
            guide_to_inference_data(guide, which, num_samples=4000, **options)


def test_swapped_autoguides_are_recognised():
    guide = AutoNormal(summing)
    with pytest.raises(ArgumentError, match="swapped"):
        psis(summing, guide)
    with pytest.raises(ArgumentError, match="swapped"):
        psis(eight_schools, AutoNormal(eight_schools))


def test_points_are_refused():
    with pytest.raises(ArgumentError, match="draws of 'z' are equal, as from AutoDelta"):
        psis(AutoDelta(model), model)


def test_what_cannot_be_called_is_refused():
    with pytest.raises(ArgumentTypeError, match=r"guide to be a function.*got dict"):
        psis({}, model)
    with pytest.raises(ArgumentTypeError, match=r"model to be a function.*got Tensor"):
        psis(gaussian, Y)
    with pytest.raises(ArgumentTypeError, match="num_samples to be an integer"):
        psis(gaussian, model, num_samples=100.0)


@pytest.mark.usefixtures("quiet")
def test_a_result_of_another_model_is_refused():
    result = psis(wide, model, num_samples=100)
    with pytest.raises(ArgumentError, match="latent sites of the model, 'tau', 'z'; got 'z'"):
        guide_to_inference_data(AutoNormal(two_sites), two_sites, result=result)
    with pytest.raises(ArgumentError, match="num_samples=50 only with resample=True"):
        guide_to_inference_data(wide, model, result=result, num_samples=50)
    with pytest.raises(ArgumentError, match="at least 1; got 0"):
        guide_to_inference_data(wide, model, result=result, num_samples=0, resample=True)


# ArviZ


@pytest.mark.usefixtures("quiet")
def test_a_result_can_be_handed_on():
    result = psis(wide, model, num_samples=1000)
    data = guide_to_inference_data(wide, model, result=result)
    assert torch.equal(torch.tensor(data.posterior.z.values[0]), result.draws["z"])
    assert data.posterior.attrs["k_hat"] == result.k_hat
    resampled = guide_to_inference_data(
        wide, model, Y, result=result, num_samples=4000, resample=True
    )
    z = torch.tensor(resampled.posterior.z.values)
    assert z.shape == (1, 4000)
    assert float(z.mean()) == pytest.approx(MEAN, abs=0.05)
    assert float(z.std()) == pytest.approx(SCALE, abs=0.05)
    assert torch.isin(z, result.draws["z"]).all()
    stats = resampled.sample_stats
    joint = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(z[..., None], 1.0).log_prob(Y).sum(-1)
    torch.testing.assert_close(torch.tensor(stats.lp.values), joint)


@pytest.mark.usefixtures("quiet")
def test_the_posterior_predictive_is_that_of_the_posterior():
    data = guide_to_inference_data(gaussian, model, num_samples=20_000)
    y = data.posterior_predictive.y
    assert y.dims == ("chain", "draw", "row")
    assert abs(y.mean(("chain", "draw")) - MEAN).max() < 0.04
    assert abs(y.std(("chain", "draw")) - (1 + SCALE**2) ** 0.5).max() < 0.03
    assert torch.equal(torch.tensor(data.observed_data.y.values), Y)
    without = guide_to_inference_data(
        gaussian, model, num_samples=50, posterior_predictive=False, log_likelihood=False
    )
    assert without.groups() == ["posterior", "sample_stats", "observed_data"]


@pytest.mark.filterwarnings("ignore::pyro_iresnet.diagnostics.KHatWarning")
def test_arviz_reads_it(tmp_path):
    torch.set_default_dtype(torch.float32)
    make = partial(iresnet_stack, num_blocks=1, hidden_dims=[8])
    guide = AutoNormalizingFlow(eight_schools, make)
    data = guide_to_inference_data(guide, eight_schools, num_samples=200)
    assert data.posterior.theta.sizes["school"] == len(EFFECTS)
    assert "theta[7]" in arviz.summary(data).index
    assert math.isfinite(arviz.loo(data, var_name="effect").elpd_loo)
    arviz.plot_pair(data, var_names=["mu", "tau"])
    arviz.plot_ppc(data, num_pp_samples=5)
    arviz.plot_forest(data)
    matplotlib.pyplot.close("all")
    arviz.to_netcdf(data, tmp_path / "data.nc")
    assert arviz.from_netcdf(tmp_path / "data.nc").posterior.equals(data.posterior)


# ---------------------------------------------------------------------------- what eyes have found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_far_draw_is_no_rounding(dtype):
    torch.set_default_dtype(dtype)

    def model():
        pyro.sample("a", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("b", dist.Normal(torch.zeros(()), 1.0))

    def guide():
        pyro.sample("a", dist.Cauchy(torch.zeros(()), 1.0))
        pyro.sample("b", dist.Normal(torch.zeros(()), 0.3))

    torch.manual_seed(0)
    with pytest.warns(KHatWarning):
        assert psis(guide, model).k_hat > 0.7


def test_many_data_are_no_rounding():
    torch.set_default_dtype(torch.float32)
    data = 3 + 0.02 * torch.randn(2000)

    def model():
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 10.0))
        with pyro.plate("rows", 2000):
            pyro.sample("y", dist.Normal(z, 0.02), obs=data)

    def guide():
        pyro.sample("z", dist.Normal(data.mean(), 0.35 * 0.02 / 2000**0.5))

    torch.manual_seed(0)
    with pytest.warns(KHatWarning):
        assert psis(guide, model).k_hat > 0.5


class Amortised(torch.nn.Module):
    """A guide that is a method, right in eval mode only."""

    def __init__(self):
        super().__init__()
        self.dropout = torch.nn.Dropout(0.5)

    def model(self, x):
        with pyro.plate("rows", 5):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("rows", 5):
            pyro.sample("z", dist.Normal(self.dropout(torch.ones(())) * x / 2, 0.5**0.5))


@pytest.mark.parametrize(
    "behind",
    [
        lambda v: v.guide,
        lambda v: lambda x: v.guide(x),
        lambda v: partial(v.guide),
        lambda v: poutine.block(v.guide, hide=[]),
    ],
    ids=["method", "closure", "partial", "poutine"],
)
def test_modules_behind_a_callable_are_in_eval_mode(behind):
    amortised = Amortised()
    x = torch.tensor([0.5, 1.0, 1.5, 4.0, 4.2])
    assert psis(behind(amortised), amortised.model, x).k_hat == -math.inf
    assert amortised.dropout.training


def test_a_scaled_guide_is_refused():
    def model():
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=torch.tensor(1.0))

    def guide():
        pyro.sample("z", dist.Normal(torch.tensor(1.5), 0.1))

    with pytest.raises(ArgumentError, match=r"'z' of the guide is scaled by 0\.01"):
        psis(poutine.scale(guide, 0.01), poutine.scale(model, 0.01))


def test_sites_and_results_that_do_not_fit_are_named():
    def model():
        pyro.sample("draw", dist.Normal(torch.zeros(()), 1.0))

    with pytest.raises(ArgumentError, match="'draw'"):
        guide_to_inference_data(model, model)

    def other(n):
        with pyro.plate("rows", n):
            pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))

    with pytest.raises(TypeError, match="result"):
        guide_to_inference_data(other, other, 3, result=3)
    with pytest.raises(ArgumentError, match=r"'z' of shape \(3,\); got \(4,\)"):
        guide_to_inference_data(other, other, 3, result=psis(other, other, 4))
