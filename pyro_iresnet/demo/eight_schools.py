"""Part 3: variational guides with Pyro, on the eight schools, centred."""

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import arviz
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoGuide, AutoMultivariateNormal, AutoNormal
from pyro.optim import ClippedAdam
from rich.progress import track
from torch import Tensor

from ..diagnostics import KHatWarning, guide_to_inference_data, psis
from ..hosts.pyro import AutoIResNet
from . import pictures

EFFECTS = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
PARTICLES = 16
DRAWS = 20_000


def model() -> None:
    """``mu ~ N(0, 5)``, ``tau ~ HalfCauchy(5)``, ``theta_i ~ N(mu, tau)``, effects given errors."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(torch.tensor(5.0)))
    with pyro.plate("school", len(EFFECTS)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("effect", dist.Normal(theta, ERRORS), obs=EFFECTS)


@dataclass(frozen=True)
class Recipe:
    """A guide and its training.

    Arguments:
        make: makes the guide.
        lr: the learning rate at the start; it falls to a hundredth by the end.
        share: the number of steps for each step of the flow guide. A step of a Gaussian guide takes
            less time, so Gaussian guides get more steps.
    """

    make: Callable[[], AutoGuide]
    lr: float
    share: int


OURS = "AutoIResNet"
RECIPES = {
    "AutoNormal": Recipe(partial(AutoNormal, model), lr=5e-2, share=3),
    "AutoMultivariateNormal": Recipe(partial(AutoMultivariateNormal, model), lr=5e-2, share=3),
    OURS: Recipe(partial(AutoIResNet, model), lr=2e-2, share=1),
}


def run(steps: int, output: Path) -> tuple[list[dict[str, Any]], list[Path], pd.DataFrame]:
    """Fit each guide; return rows (ELBO, KL to the posterior, k-hat), pictures, ArviZ summary."""
    log_evidence, exact = exact_posterior(4000)
    truth = torch.stack([exact["theta"][:, 0], exact["tau"]], dim=1)
    rows, fits, guides = [], {}, {}
    for name, recipe in RECIPES.items():
        pyro.clear_param_store()
        guide = guides[name] = recipe.make()
        seconds = _train(name, guide, recipe.lr, steps * recipe.share)
        with warnings.catch_warnings():
            # The table shows the k-hat of every guide, also of guides that fail.
            warnings.simplefilter("ignore", KHatWarning)
            fits[name] = psis(guide, model, num_samples=DRAWS)
        rows.append(
            {
                "part": "SVI guide, Pyro",
                "data": "eight schools",
                "model": name,
                "elbo": fits[name].elbo,
                "kl_to_posterior": log_evidence - fits[name].elbo,
                "psis_k_hat": fits[name].k_hat,
                "parameters": sum(p.numel() for p in guide.parameters()),
                "seconds": seconds,
            }
        )
    draws = {
        name: torch.stack([fit.draws["theta"][:, 0], fit.draws["tau"]], dim=1)
        for name, fit in fits.items()
    }
    path = output / "eight_schools.png"
    pictures.tau_against_theta(truth, draws, path)
    inference = guide_to_inference_data(
        guides[OURS], model, result=fits[OURS], log_likelihood=False
    )
    summary = arviz.summary(inference, group="posterior", kind="stats")
    return rows, [path], pd.DataFrame(summary)


def _train(name: str, guide: AutoGuide, lr: float, steps: int) -> float:
    decay = 0.01 ** (1 / steps)
    elbo = Trace_ELBO(num_particles=PARTICLES, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(model, guide, ClippedAdam({"lr": lr, "lrd": decay}), elbo)
    start = time.perf_counter()
    for _ in track(range(steps), f"eight schools: {name}"):
        svi.step()
    return time.perf_counter() - start


def exact_posterior(n: int) -> tuple[float, dict[str, Tensor]]:
    r"""Return the log-evidence, and ``n`` exact draws by site, in float64.

    Given ``mu`` and ``tau`` the effects are normal with variance :math:`\sigma_i^2 + \tau^2`. The
    rest is a quadrature over a plane, on a grid in ``mu`` and ``log tau``.
    """
    mu = torch.linspace(-40, 40, 801, dtype=torch.float64)[:, None]
    log_tau = torch.linspace(math.log(1e-4), math.log(1e4), 1601, dtype=torch.float64)[None]
    tau = log_tau.exp()
    scale = (ERRORS.double()[:, None, None] ** 2 + tau**2).sqrt()
    log_joint = dist.Normal(mu, scale).log_prob(EFFECTS.double()[:, None, None]).sum(0)
    log_joint = log_joint + dist.Normal(0.0, 5.0).log_prob(mu)
    log_joint = log_joint + dist.HalfCauchy(5.0).log_prob(tau) + log_tau
    cell = float(mu[1, 0] - mu[0, 0]) * float(log_tau[0, 1] - log_tau[0, 0])
    log_evidence = float(torch.logsumexp(log_joint.flatten(), 0)) + math.log(cell)
    index = torch.multinomial(log_joint.flatten().softmax(0), n, replacement=True)
    mu_drawn, tau_drawn = mu[index // tau.shape[1], 0], tau[0, index % tau.shape[1]]
    prior, errors = 1 / tau_drawn[:, None] ** 2, 1 / ERRORS.double() ** 2
    mean = (mu_drawn[:, None] * prior + EFFECTS.double() * errors) / (prior + errors)
    theta = mean + torch.randn(n, len(EFFECTS), dtype=torch.float64) / (prior + errors).sqrt()
    return log_evidence, {"mu": mu_drawn, "tau": tau_drawn, "theta": theta}
