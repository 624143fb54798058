"""Posteriors with a known evidence, and guides fitted to them with Pyro."""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoGuide
from pyro.optim import ClippedAdam
from torch import Tensor
from torch.distributions import biject_to
from tqdm import trange

from pyro_iresnet.demo.eight_schools import exact_posterior
from pyro_iresnet.demo.eight_schools import model as eight_schools
from pyro_iresnet.diagnostics import KHatWarning, psis

from . import gp_poisson

PARTICLES = 16
DRAWS = 20_000
# Goals of the median KL, nats.
GOALS = {
    "banana": 0.009,
    "funnel": 0.07,
    "eight schools": 0.10,
    "GP, Poisson counts": 0.026,
    "Gaussian, 1e6": 0.002,
}


def banana() -> None:
    """``x ~ N(0, 1)``, ``y ~ N(x^2, 0.3)``."""
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(x**2, 0.3))


def funnel() -> None:
    """Neal's funnel in ten dimensions: ``v ~ N(0, 3)``, nine ``x_i ~ N(0, exp(v / 2))``."""
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    with pyro.plate("coordinates", 9):
        pyro.sample("x", dist.Normal(0.0, (v / 2).exp()))


def _ill_conditioned(dim: int = 20, condition: float = 1e6) -> tuple[Tensor, Tensor]:
    """Make mean and covariance: random directions, variances evenly spread on a log scale."""
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    directions = torch.linalg.qr(random)[0]
    variances = torch.logspace(0, -torch.tensor(condition).log10(), dim, dtype=torch.float64)
    return torch.ones(dim, dtype=torch.float64), directions * variances @ directions.mT


MEAN, COVARIANCE = _ill_conditioned()


def gaussian() -> None:
    """Correlated normal distribution in 20 dimensions, whose covariance has condition 1e6."""
    pyro.sample("z", dist.MultivariateNormal(MEAN, COVARIANCE))


@dataclass(frozen=True)
class Posterior:
    """Posterior for a guide to fit.

    Arguments:
        name: the name in the report.
        model: a model of Pyro.
        log_evidence: nats.
        mean, sd: mean and standard deviation of each coordinate on Pyro's unconstrained scale, in
            the order of the sites.
    """

    name: str
    model: Callable[[], None]
    log_evidence: float
    mean: Tensor
    sd: Tensor


@dataclass(frozen=True)
class Fit:
    """Result of a guide, over 20,000 draws.

    Arguments:
        kl: KL divergence from the guide to the posterior, nats.
        k_hat: shape of Pareto-smoothed importance sampling.
        mean_error: the largest error of a coordinate's mean, in its standard deviations.
        sd_error: the largest relative error of a standard deviation.
        seconds: seconds of the processor, of training.
        parameters: number of parameters.
    """

    kl: float
    k_hat: float
    mean_error: float
    sd_error: float
    seconds: float
    parameters: int


def posteriors() -> dict[str, Posterior]:
    """Return the posteriors by name."""
    torch.manual_seed(0)
    evidence, exact = exact_posterior(200_000)
    parts = (exact["mu"][:, None], exact["tau"].log()[:, None], exact["theta"])
    schools = torch.cat(parts, dim=1)
    wide = torch.tensor(3.0**2 / 2).exp().sqrt().double()
    double = {"dtype": torch.float64}
    found = (
        Posterior(
            "banana",
            banana,
            0.0,
            torch.tensor([0.0, 1.0], **double),
            torch.tensor([1.0, 2.09**0.5], **double),
        ),
        Posterior(
            "funnel",
            funnel,
            0.0,
            torch.zeros(10, **double),
            torch.cat([torch.tensor([3.0], **double), wide.expand(9)]),
        ),
        Posterior("eight schools", eight_schools, evidence, schools.mean(0), schools.std(0)),
        Posterior(
            "GP, Poisson counts",
            gp_poisson.model,
            gp_poisson.LOG_EVIDENCE,
            torch.tensor(gp_poisson.MEAN, **double),
            torch.tensor(gp_poisson.SD, **double),
        ),
        Posterior("Gaussian, 1e6", gaussian, 0.0, MEAN, COVARIANCE.diagonal().sqrt()),
    )
    return {p.name: p for p in found}


def train(model: Callable[[], None], guide: AutoGuide, *, steps: int, name: str) -> None:
    """Train a guide with 16 particles and ClippedAdam from 1e-2 to 1e-4.

    Arguments:
        model, guide: the model, and its guide, which is trained.
        steps: the number of steps.
        name: the text of the progress bar.
    """
    optimizer = ClippedAdam({"lr": 1e-2, "lrd": 0.01 ** (1 / steps)})
    elbo = Trace_ELBO(num_particles=PARTICLES, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(model, guide, optimizer, elbo)
    for _ in trange(steps, desc=name, unit="step", mininterval=5):
        svi.step()


def fitted(
    posterior: Posterior,
    make: Callable[[Callable[[], None]], AutoGuide],
    *,
    steps: int,
    seed: int,
    name: str,
) -> Fit:
    """Fit a guide in float64 by :func:`train`.

    Arguments:
        posterior: the posterior to fit.
        make: makes the guide of a model.
        steps: the steps of training.
        seed: the seed of training.
        name: the text of the progress bar.
    """
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        pyro.clear_param_store()
        torch.manual_seed(seed)
        start = time.process_time()
        guide = make(posterior.model)
        guide()
        train(posterior.model, guide, steps=steps, name=name)
        seconds = time.process_time() - start
        torch.manual_seed(1000 + seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", KHatWarning)
            result = psis(guide, posterior.model, num_samples=DRAWS)
        draws = _unconstrained(guide, result.draws)
        return Fit(
            kl=posterior.log_evidence - result.elbo,
            k_hat=result.k_hat,
            mean_error=float(((draws.mean(0) - posterior.mean) / posterior.sd).abs().max()),
            sd_error=float((draws.std(0) / posterior.sd - 1).abs().max()),
            seconds=seconds,
            parameters=sum(p.numel() for p in guide.parameters()),
        )
    finally:
        torch.set_default_dtype(default)


def _unconstrained(guide: AutoGuide, draws: dict[str, Tensor]) -> Tensor:
    parts = []
    for name, site in guide.prototype_trace.iter_stochastic_nodes():
        value = biject_to(site["fn"].support).inv(draws[name])
        parts.append(value.reshape(len(value), -1))
    return torch.cat(parts, dim=1)
