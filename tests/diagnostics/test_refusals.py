"""Refused models, guides and results."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoMultivariateNormal,
    AutoNormal,
)

from pyro_iresnet.demo.eight_schools import model as eight_schools
from pyro_iresnet.diagnostics import guide_to_inference_data, psis
from pyro_iresnet.errors import ArgumentError, ArgumentTypeError

from .models import Y, gaussian, model, wide


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
def test_batch_size_of_scalar_model(which):
    guide = AutoNormal(which, init_scale=1.0)
    with pytest.raises(ArgumentError, match=r"many draws at once.*batch_size=1"):
        psis(guide, which, num_samples=50)
    with pytest.raises(ArgumentError, match="many draws at once"):
        psis(guide, which, num_samples=50, batch_size=49)
    result = psis(guide, which, num_samples=50, batch_size=1)
    data = {k: v[7] for k, v in result.draws.items()}
    trace = poutine.trace(poutine.condition(which, data)).get_trace()
    assert float(result.log_joint[7]) == pytest.approx(float(trace.log_prob_sum()))


def test_batch_size_of_deterministic():
    guide = AutoNormal(summing, init_scale=1.0)
    assert psis(guide, summing, num_samples=50).draws["z"].shape == (50,)
    with pytest.raises(ArgumentError, match="deterministic site 'total'"):
        guide_to_inference_data(guide, summing, num_samples=50)
    data = guide_to_inference_data(guide, summing, num_samples=50, batch_size=1)
    assert abs(data.posterior.total - data.posterior.z).max() == 0


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
def test_refuses_bad_input(name):
    guide, which, options, words = REFUSED[name]
    with pytest.raises(ArgumentError, match=words):
        psis(guide, which, **options)
    if "num_samples" not in options:
        with pytest.raises(ArgumentError, match=words):
            guide_to_inference_data(guide, which, num_samples=4000, **options)


def test_refuses_swapped_autoguides():
    guide = AutoNormal(summing)
    with pytest.raises(ArgumentError, match="swapped"):
        psis(summing, guide)
    with pytest.raises(ArgumentError, match="swapped"):
        psis(eight_schools, AutoNormal(eight_schools))


def test_refuses_points():
    with pytest.raises(ArgumentError, match="draws of 'z' are equal, as from AutoDelta"):
        psis(AutoDelta(model), model)


def test_refuses_uncallable():
    with pytest.raises(ArgumentTypeError, match=r"guide to be a function.*got dict"):
        psis({}, model)
    with pytest.raises(ArgumentTypeError, match=r"model to be a function.*got Tensor"):
        psis(gaussian, Y)
    with pytest.raises(ArgumentTypeError, match="num_samples to be an integer"):
        psis(gaussian, model, num_samples=100.0)


@pytest.mark.usefixtures("quiet")
def test_refuses_foreign_result():
    result = psis(wide, model, num_samples=100)
    with pytest.raises(ArgumentError, match="latent sites of the model, 'tau', 'z'; got 'z'"):
        guide_to_inference_data(AutoNormal(two_sites), two_sites, result=result)
    with pytest.raises(ArgumentError, match="num_samples=50 only with resample=True"):
        guide_to_inference_data(wide, model, result=result, num_samples=50)
    with pytest.raises(ArgumentError, match="at least 1; got 0"):
        guide_to_inference_data(wide, model, result=result, num_samples=0, resample=True)


def test_refuses_scaled_guide():
    def model():
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=torch.tensor(1.0))

    def guide():
        pyro.sample("z", dist.Normal(torch.tensor(1.5), 0.1))

    with pytest.raises(ArgumentError, match=r"'z' of the guide is scaled by 0\.01"):
        psis(poutine.scale(guide, 0.01), poutine.scale(model, 0.01))


def test_refuses_unfit_results():
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


SEEN = torch.tensor([True, True, False, True])


def incomplete():
    mu = pyro.sample("mu", dist.Normal(torch.zeros(()), 1.0))
    with pyro.plate("rows", 4):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=torch.ones(4), obs_mask=SEEN)


@pytest.mark.parametrize("kind", [AutoNormal, AutoDiagonalNormal, AutoMultivariateNormal])
def test_refuses_mask_of_model(kind):
    words = r"same mask for 'x_unobserved'.*the model masks 3 of its 4 entries and the guide 0"
    for options in ({}, {"batch_size": 1}):
        with pytest.raises(ArgumentError, match=words):
            psis(kind(incomplete), incomplete, num_samples=50, **options)
    with pytest.raises(ArgumentError, match=words):
        guide_to_inference_data(kind(incomplete), incomplete, num_samples=50)


def rows(mask=None, fn_mask=True, loc=0.0):
    with pyro.plate("rows", 4), poutine.mask(mask=True if mask is None else mask):
        pyro.sample("z", dist.Normal(torch.as_tensor(loc), 1.0).mask(fn_mask))


def test_masks_alike():
    result = psis(partial(rows, SEEN, loc=0.1), partial(rows, True, SEEN), num_samples=100)
    z = result.draws["z"]
    terms = dist.Normal(0.0, 1.0).log_prob(z) - dist.Normal(0.1, 1.0).log_prob(z)
    torch.testing.assert_close(result.log_weights, (terms * SEEN).sum(1).double())
    for guide, which in ((rows, partial(rows, SEEN)), (partial(rows, False), rows)):
        with pytest.raises(ArgumentError, match="same mask for 'z'"):
            psis(guide, which, num_samples=100)


def sized(n):
    with pyro.plate("n", n):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
    pyro.sample("y", dist.Normal(z.mean(-1), 1.0), obs=torch.tensor(1.0))


@pytest.mark.parametrize("kind", [AutoNormal, AutoDiagonalNormal])
def test_refuses_resized_plate(kind):
    guide = kind(sized)
    guide(5)
    with pytest.raises(ArgumentError, match="'n' of 'z' has 7 rows in the model and 5"):
        psis(guide, sized, 7, num_samples=50)
