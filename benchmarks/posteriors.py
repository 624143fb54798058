"""Posteriors with a known evidence, and guides fitted to them with Pyro."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormalizingFlow
from pyro.infer.importance import vectorized_importance_weights
from pyro.optim import ClippedAdam
from torch.distributions import Transform
from tqdm import trange

from pyro_iresnet import cached
from pyro_iresnet.demo.eight_schools import exact_posterior
from pyro_iresnet.demo.eight_schools import model as eight_schools

PARTICLES = 16
DRAWS = 20_000


def banana() -> None:
    """``x ~ N(0, 1)``, ``y ~ N(x^2, 0.3)``."""
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(x**2, 0.3))


def funnel() -> None:
    """Neal's funnel in ten dimensions: ``v ~ N(0, 3)``, nine ``x_i ~ N(0, exp(v / 2))``."""
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    with pyro.plate("coordinates", 9):
        pyro.sample("x", dist.Normal(0.0, (v / 2).exp()))


@dataclass(frozen=True)
class Posterior:
    """What a guide is to fit.

    Arguments:
        name: for the report.
        model: of Pyro.
        log_evidence: nats.
    """

    name: str
    model: Callable[[], None]
    log_evidence: float


@dataclass(frozen=True)
class Fit:
    """What a guide came to.

    Arguments:
        kl: from the guide to the posterior, nats, over 20,000 draws.
        seconds: of the processor, of training.
        parameters: their number.
    """

    kl: float
    seconds: float
    parameters: int


def posteriors() -> dict[str, Posterior]:
    """By name."""
    torch.manual_seed(0)
    evidence = exact_posterior(2)[0]
    found = (
        Posterior("banana", banana, 0.0),
        Posterior("funnel", funnel, 0.0),
        Posterior("eight schools", eight_schools, evidence),
    )
    return {p.name: p for p in found}


def fitted(
    posterior: Posterior, transform: Callable[[int], Transform], *, steps: int, seed: int, name: str
) -> Fit:
    """The fit of a guide: 16 particles, ClippedAdam from 1e-2 to 1e-4, float64.

    Arguments:
        posterior: to fit.
        transform: makes the flow of the guide, from the number of its coordinates.
        steps, seed: of training.
        name: for the progress bar.
    """
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        pyro.clear_param_store()
        torch.manual_seed(seed)
        guide = AutoNormalizingFlow(posterior.model, transform)
        guide()
        optimizer = ClippedAdam({"lr": 1e-2, "lrd": 0.01 ** (1 / steps)})
        elbo = Trace_ELBO(num_particles=PARTICLES, vectorize_particles=True, max_plate_nesting=1)
        svi = SVI(posterior.model, guide, optimizer, elbo)
        start = time.process_time()
        for _ in trange(steps, desc=name, unit="step", mininterval=5):
            with cached(guide):
                svi.step()
        seconds = time.process_time() - start
        guide.eval()
        torch.manual_seed(1000 + seed)
        with torch.no_grad():
            weights = vectorized_importance_weights(
                posterior.model, guide, num_samples=DRAWS, max_plate_nesting=1, normalized=False
            )[0]
        kl = posterior.log_evidence - float(np.asarray(weights).mean())
        return Fit(kl, seconds, sum(p.numel() for p in guide.parameters()))
    finally:
        torch.set_default_dtype(default)
