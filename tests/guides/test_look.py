"""Looks of the automatic guide at its model, at the first call and later."""

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
from torch import nn

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


@pytest.mark.parametrize("model", [masked, nested, handled])
def test_refuses_late_mask(model):
    mask = ~SEEN
    svi = svi_of(model, small(model, init="auto"))
    svi.step(torch.ones(4) > 0)
    svi.step(torch.ones(4) > 0)
    with pytest.raises(ArgumentError, match="'x_unobserved' is masked"):
        svi.step(mask)


def test_refuses_switched_off_latents():
    with pytest.raises(ArgumentError, match="'x_unobserved' is masked"):
        small(handled)(False)
    small(handled)(True)


def test_looks_again_at_masks():
    mask = torch.ones(4) > 0

    def model():
        handled(mask)

    guide = small(model)
    guide()
    guide()
    mask[1] = False
    for call in (guide, guide.median, guide.get_posterior):
        with pytest.raises(ArgumentError, match="'x_unobserved' is masked"):
            call()
    guide.get_transform()


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
    guide = small(local)
    guide(6)
    with pytest.raises(ArgumentError, match=r"which takes 3 of 6.*conditional_iresnet"):
        guide(6, 3)


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
CHANGES = {
    "plate": ((Y, 2), (Y, 4), "plate 'n' had 2 rows then, and has 4"),
    "shape": ((Y, 2), (Y, 2, False, 1.0, False), r"'s' of shape \(1,\).*got \(2,\)"),
    "new site": ((Y, 2), (Y, 2, True), "'extra' was observed or no site then, and is latent"),
    "lost site": ((Y, 2, True), (Y, 2), "'extra' was latent then, and is no site"),
    "data gone": ((Y,), (None,), r"'obs' was observed.*latent.*Predictive"),
    "data come": ((None,), (Y,), "'obs' was latent then, and is observed"),
    "support": ((Y,), (Y, 2, False, torch.tensor(2.0)), r"'b' with the support.*upper_bound=2"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("vectorize", [False, True])
def test_refuses_changed_model(change, vectorize):
    first, second, words = CHANGES[change]
    guide = small(regression)
    elbo = Trace_ELBO(num_particles=2, vectorize_particles=vectorize, max_plate_nesting=1)
    svi = svi_of(regression, guide, elbo)
    svi.step(*first)
    svi.step(*first)
    calls = (svi.step, guide, guide.median, guide.get_posterior, partial(guide.quantiles, [0.5]))
    for call in (*calls, partial(psis, guide, regression)):
        with pytest.raises(ArgumentError, match=words):
            call(*second)
    svi.step(*first)
    assert guide.median().keys() == guide.median(*first).keys()
    guide.get_transform()


def test_list_of_guides_looks():
    guide = AutoGuideList(regression)
    guide.append(small(poutine.block(regression, expose=["b", "z"])))
    guide.append(AutoNormal(poutine.block(regression, expose=["s"])))
    svi = svi_of(regression, guide)
    svi.step(Y, 2)
    svi.step(torch.ones(5), 2)
    with pytest.raises(ArgumentError, match="plate 'n' had 2 rows"):
        svi.step(Y, 3)
    with pytest.raises(ArgumentError, match="plate 'n' had 2 rows"):
        guide.median(Y, 3)


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
    with pytest.raises(ArgumentError, match="plate 'n' had 2 rows"):
        Predictive(regression, guide=guide, num_samples=5, parallel=parallel)(None, 3)
    with pytest.raises(ArgumentError, match="'obs' was observed"):
        guide(None)


def test_same_numbers_with_look():
    # Pyro seeds this generator too.
    legacy = np.random.mtrand._rand
    norm = nn.BatchNorm1d(1)

    def model(y, drawn):
        x = pyro.sample("x", dist.Normal(torch.zeros(4), 1.0).to_event(1))
        torch.randn(drawn), legacy.rand(drawn)
        pyro.sample("obs", dist.Normal(norm(x[:, None]).sum(), 1.0), obs=y)

    guide = small(model, init_loc_fn=init_to_sample)
    guide(torch.zeros(()), 1)
    counted, found = int(norm.num_batches_tracked), []
    for drawn in (1, 7):
        pyro.set_rng_seed(0)
        found.append(guide(torch.zeros(()), drawn)["x"])
        found.append(torch.tensor(legacy.rand(2)))
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[3])
    assert int(norm.num_batches_tracked) == counted
    assert norm.training


def test_runs_model_once_for_same_arguments():
    def model(y, weight):
        # The attribute of a function is no data of a model.
        model.runs += 1
        regression(y)

    model.runs = 0
    guide = small(model)
    guide(Y, 0.5)
    model.runs = 0
    for weight in (0.1, 0.2, 0.3):
        guide(torch.zeros_like(Y), weight)
    assert model.runs == 0
    guide(torch.zeros(5), 0.1)
    assert model.runs == 1


def test_copies_look():
    guide = small(regression)
    svi_of(regression, guide).step(Y)
    other = copy.deepcopy(guide)
    with pytest.raises(ArgumentError, match="plate 'n'"):
        other(Y, 3)
    other(Y)
    loaded = pickle.loads(pickle.dumps(guide))
    assert loaded(Y, 3)["b"].shape == (2,)
    guide.to(torch.float32)
    assert guide(torch.ones(5))["z"].dtype == torch.float32
    with pytest.raises(ArgumentError, match="plate 'n'"):
        guide(Y, 3)


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
