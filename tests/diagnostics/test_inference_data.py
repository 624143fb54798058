"""Draws of a guide as data for ArviZ."""

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
    AutoNormal,
    AutoNormalizingFlow,
)
from pyro.infer.reparam import LocScaleReparam

from pyro_iresnet import iresnet_stack
from pyro_iresnet.demo.eight_schools import EFFECTS
from pyro_iresnet.demo.eight_schools import model as eight_schools
from pyro_iresnet.diagnostics import guide_to_inference_data, psis

from .models import DERIVED, MEAN, SCALE, SHAPES, Y, gaussian, model, plated, wide

matplotlib.use("Agg")


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


@pytest.mark.usefixtures("quiet")
def test_reparametrised_sites():
    centred = poutine.reparam(eight_schools, {"theta": LocScaleReparam(0.0)})
    torch.set_default_dtype(torch.float32)
    guide = AutoNormal(centred, init_scale=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = guide_to_inference_data(guide, centred, num_samples=50)
    assert set(data.posterior) == {"mu", "tau", "theta_decentered", "theta"}
    assert data.posterior.theta.dims == ("chain", "draw", "school")


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

    def guide():
        pyro.sample("z", dist.Normal(torch.tensor(loc), scale))
        with pyro.plate("row", 3), poutine.mask(mask=~mask):
            pyro.sample("y_unobserved", dist.Normal(torch.tensor(loc), 1.2))

    covariance = torch.eye(2) + 1
    evidence = dist.MultivariateNormal(torch.zeros(2), covariance).log_prob(Y[mask].to(covariance))
    found = psis(guide, partly)
    assert abs(found.log_evidence - float(evidence)) < 5 * found.log_evidence_error
    data = guide_to_inference_data(guide, partly, num_samples=50)
    assert set(data.posterior) == {"z", "y_unobserved", "y"}
    assert set(data.observed_data) == {"y_observed"}
    assert torch.equal(torch.tensor(data.posterior.y.values[0, :, 0]), Y[0].expand(50))


@pytest.mark.usefixtures("quiet")
def test_no_groups_without_data():
    def prior():
        pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))

    data = guide_to_inference_data(lambda: gaussian(loc=0.0, scale=1.0), prior, num_samples=50)
    assert data.groups() == ["posterior", "sample_stats"]


@pytest.mark.usefixtures("quiet")
def test_reuses_result():
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
def test_posterior_predictive():
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
def test_arviz_reads_data(tmp_path):
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
