"""The latent sites of a model: those that the guide takes, and calls with other arguments."""

import copy
import pickle
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import (
    SVI,
    JitTrace_ELBO,
    Predictive,
    Trace_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from pyro.infer.autoguide import AutoGuideList, AutoNormal, init_to_sample
from pyro.infer.reparam import NeuTraReparam
from pyro.nn import PyroModule

from pyro_iresnet import AutoIResNet
from pyro_iresnet.diagnostics import psis
from pyro_iresnet.errors import ArgumentError

SEEN = torch.tensor([True, True, False, True])
small = partial(AutoIResNet, num_blocks=1, hidden_dims=[8], init="plain")


def svi_of(model, guide, elbo=None):
    return SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), elbo or Trace_ELBO())


def missing(seen):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", 4):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=torch.ones(4), obs_mask=seen)


def masked(mask):
    with pyro.plate("rows", 4):
        pyro.sample("x_unobserved", dist.Normal(0.0, 1.0).mask(mask))


def nested(mask):
    fn = dist.Normal(torch.zeros(4, 2), 1.0).mask(mask[:, None]).to_event(1).mask(torch.ones(4) > 0)
    pyro.sample("x_unobserved", dist.TransformedDistribution(fn, []).to_event(1))


def handled(mask):
    with pyro.plate("rows", 4), poutine.mask(mask=mask):
        pyro.sample("x_unobserved", dist.Normal(0.0, 1.0))


@pytest.mark.parametrize("model", [missing, masked, nested, handled])
def test_refuses_masked_latents(model):
    mask = ~SEEN
    guide = small(model)
    for _ in range(2):
        with pytest.raises(ArgumentError, match=r"'x_unobserved' is masked.*missing entries"):
            guide(mask)


def test_refuses_switched_off_latents():
    with pytest.raises(ArgumentError, match="'x_unobserved' is masked"):
        small(handled)(False)
    small(handled)(True)


def flat():
    x = pyro.sample("x", dist.Normal(0.0, 1.0).expand([2]).to_event(1).mask(False))
    pyro.sample("obs", dist.Normal(x, 1.0).to_event(1), obs=torch.ones(2))


def test_fits_flat_prior():
    guide = AutoIResNet(flat, 1, hidden_dims=[8])
    guide()
    torch.testing.assert_close(guide.transform.parts[-1].loc, torch.ones(2))
    assert abs(psis(guide, flat, num_samples=500).log_evidence) < 0.1


def test_fits_model_of_neutra():
    flow = AutoIResNet(regression, 1, hidden_dims=[8])
    flow(torch.ones(3))
    flow.eval()
    model = NeuTraReparam(flow).reparam(regression)
    guide = small(model)
    assert svi_of(model, guide).step(torch.ones(3)) > 0


def local(n, size=None):
    with pyro.plate("rows", n, subsample_size=size) as index:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("obs", dist.Normal(z, 1.0), obs=torch.arange(float(n))[index])


def test_refuses_subsampled_latents():
    with pytest.raises(ArgumentError, match=r"'z' is in the plate 'rows', which takes 3 of 6"):
        small(local)(6, 3)
    svi = svi_of(local, small(local))
    svi.step(6)
    with pytest.raises(ValueError, match="Shape mismatch inside plate"):
        svi.step(6, 3)


def regression(y, n=2, flag=False, high=1.0, scalar=True):
    z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
    with pyro.plate("n", n):
        pyro.sample("b", dist.Uniform(0.0, high))
    if flag:
        pyro.sample("extra", dist.Normal(0.0, 1.0))
    pyro.sample("s", dist.LogNormal(0.0, 1.0).expand([1 if scalar else 2]).to_event(1))
    size = 3 if y is None else len(y)
    with pyro.plate("rows", size):
        pyro.sample("obs", dist.Normal(z, 1.0), obs=y)


Y = torch.ones(3)


@pytest.mark.parametrize(
    ("args", "words"), [((Y, 4), "'b'"), ((Y, 1), "'b'"), ((Y, 2, False, 1.0, False), "'s'")]
)
@pytest.mark.parametrize("vectorize", [False, True])
def test_elbo_refuses_other_shapes(args, words, vectorize):
    guide = small(regression)
    elbo = Trace_ELBO(num_particles=2, vectorize_particles=vectorize, max_plate_nesting=1)
    svi = svi_of(regression, guide, elbo)
    svi.step(Y, 2)
    with pytest.raises(ValueError, match=rf"disagree at site {words}"):
        svi.step(*args)


def test_elbo_warns_of_other_sites():
    guide = small(regression)
    svi = svi_of(regression, guide)
    svi.step(Y, 2)
    with pytest.warns(UserWarning, match="vars in model but not guide.*extra"):
        svi.step(Y, 2, True)


def test_list_of_guides():
    guide = AutoGuideList(regression)
    guide.append(small(poutine.block(regression, expose=["b", "z"])))
    guide.append(AutoNormal(poutine.block(regression, expose=["s"])))
    svi = svi_of(regression, guide)
    svi.step(Y, 2)
    svi.step(torch.ones(5), 2)
    assert guide.median(Y, 2).keys() == {"z", "b", "s"}


ELBOS = [
    Trace_ELBO(),
    Trace_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=1),
    Trace_ELBO(num_particles=2, vectorize_particles=True),
    TraceMeanField_ELBO(),
    TraceGraph_ELBO(),
]


@pytest.mark.parametrize("elbo", ELBOS, ids=lambda e: type(e).__name__)
def test_other_data(elbo):
    guide = small(regression)
    svi = svi_of(regression, guide, elbo)
    for size in (3, 5, 3, 8):
        assert np.isfinite(svi.step(torch.ones(size)))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_traced_elbo():
    # A trace is of one size of the data.
    for size in (3, 5):
        svi = svi_of(regression, small(regression), JitTrace_ELBO())
        assert all(np.isfinite(svi.step(torch.ones(size))) for _ in range(3))


@pytest.mark.parametrize("parallel", [False, True])
def test_predicts_other_rows(parallel):
    guide = small(regression)
    svi_of(regression, guide).step(Y)
    for args, rows in (((None,), 3), ((torch.ones(6),), 6)):
        predict = Predictive(regression, guide=guide, num_samples=5, parallel=parallel)
        assert predict(*args)["obs"].shape == (5, rows)


class Counting(PyroModule):
    """A model that counts its calls, under a decorator of its own arguments."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x, y=None):
        self.calls += 1
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("obs", dist.Normal(z * x, 1.0), obs=y)


def test_runs_model_once_in_a_step():
    model = Counting()
    guide = small(model, init_scale=0.1)
    svi = svi_of(model, guide)
    svi.step(torch.ones(3), Y)
    before = model.calls
    for size in (3, 5, 3):
        svi.step(torch.ones(size), torch.ones(size))
    assert model.calls == before + 3


def test_draws_without_the_data():
    x, model = torch.ones(3), Counting()
    guide = small(model)
    svi_of(model, guide).step(x, Y)
    for call in (guide, guide.median, guide.sample_latent, partial(guide.quantiles, [0.5])):
        for args in ((), (x,), (x, Y), (torch.ones(7),)):
            call(*args)
    trace = poutine.trace(guide).get_trace(x)
    poutine.replay(model, trace)(x)
    assert Predictive(guide, num_samples=3)()["z"].shape == (3,)
    assert Predictive(model, guide=guide, num_samples=3)(x)["obs"].shape == (3, 3)


def test_copies_run():
    guide = small(regression)
    svi_of(regression, guide).step(Y)
    for other in (copy.deepcopy(guide), pickle.loads(pickle.dumps(guide))):
        assert other(Y)["b"].shape == (2,)
    guide.to(torch.float32)
    assert guide(torch.ones(5))["z"].dtype == torch.float32


def test_trains_after_a_look_in_inference_mode():
    guide = small(regression)
    with torch.inference_mode():
        guide(Y)
    assert np.isfinite(svi_of(regression, guide).step(Y))


def test_begins_anew_after_error():
    guide = small(local)
    with pytest.raises(ArgumentError, match="which takes 3 of 6"):
        guide(6, 3)
    assert guide(6)["z"].shape == (6,)


def chained(y):
    a = pyro.sample("a", dist.Uniform(0.0, 1.0))
    pyro.sample("b", dist.Uniform(0.0, a))
    with pyro.plate("rows", len(y)):
        pyro.sample("obs", dist.Normal(a, 1.0), obs=y)


def test_support_at_first_values():
    guide = small(chained, init_loc_fn=init_to_sample)
    guide(Y)
    for size in range(1, 6):
        found = guide(torch.ones(size))
        assert 0 < found["b"] < found["a"] < 1
