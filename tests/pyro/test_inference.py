"""Training by Pyro, and guides of Pyro around a transform."""

import copy
import io
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.transforms import iterated
from pyro.infer import HMC, MCMC, SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormalizingFlow
from pyro.ops.integrator import potential_grad

from pyro_iresnet import (
    Exact,
    Roulette,
    iresnet,
    iresnet_stack,
)
from pyro_iresnet.errors import InversionError
from pyro_iresnet.solvers import FixedPoint

from ..truth import normal


def test_trains_on_full_batch():
    stack, data = iresnet_stack(2, 2), torch.randn(64, 2)

    def density():
        pyro.module("stack", stack)
        with pyro.plate("data", 64):
            flow = dist.TransformedDistribution(normal(2), [stack.inv])
            pyro.sample("x", flow, obs=data)

    svi = SVI(density, lambda: None, pyro.optim.ClippedAdam({"lr": 1e-2}), Trace_ELBO())
    losses = [svi.step() for _ in range(30)]
    assert losses[-1] < losses[0]


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
def test_guide_fits(init):
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
def test_every_particle_mode(elbo):
    with pyro.validation_enabled():
        losses = fitted(AutoNormalizingFlow(model, INITS["stack"]), 3, elbo)
    assert torch.tensor(losses).isfinite().all()


@pytest.mark.parametrize("init", INITS)
def test_copies_trained_guide(init):
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


def test_loads_guide_state():
    guide = AutoNormalizingFlow(model, INITS["stack"])
    fitted(guide, 3)
    fresh = AutoNormalizingFlow(model, INITS["stack"])
    fresh(DATA)
    fresh.load_state_dict(guide.state_dict())
    x = torch.randn(4, 2)
    assert torch.equal(fresh.transform(x), guide.transform(x))


@pytest.mark.parametrize("estimator", [Exact(), Roulette()])
def test_follows_pyro_seed(estimator):
    def run():
        pyro.clear_param_store()
        pyro.set_rng_seed(7)
        guide = AutoNormalizingFlow(model, partial(iterated, 2, partial(iresnet, logdet=estimator)))
        return fitted(guide, 5)

    assert run() == run()


@pytest.mark.parametrize("step_size", [50.0, 1e30])
def test_rejects_trajectory_to_infinity(step_size):
    # 40 steps of such a size end at 1e100 or beyond.
    flow = dist.TransformedDistribution(normal(2), [iresnet_stack(2, 2, [8]).eval()])
    kernel = HMC(
        lambda: pyro.sample("z", flow), step_size=step_size, num_steps=40, adapt_step_size=False
    )
    chain = MCMC(kernel, 3, warmup_steps=0, disable_progbar=True)
    chain.run()
    z = chain.get_samples()["z"]
    assert z.isfinite().all()
    assert (z == z[0]).all()


def test_missed_tolerance_stops_chain():
    # A missed tolerance is no property of the point, and a chain must not hide the miss.
    transform = iresnet(2, solver=FixedPoint(max_steps=1)).eval()
    flow = dist.TransformedDistribution(normal(2), [transform])
    with pytest.raises(InversionError, match="tolerance"):
        potential_grad(lambda z: -flow.log_prob(z["z"]), {"z": torch.ones(2)})
