"""Posterior of a Gaussian process with Poisson counts, and its evidence.

The model is ``gp_pois_regr`` of posteriordb, its counts drawn anew; ``python -m
benchmarks.run.gp_poisson`` gives the constants of reference.
"""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

SIZE = 11
TRUE_RHO, TRUE_ALPHA, SEED = 6.0, 2.0, 0
# ``counts()``, kept so that no version of torch draws others.
COUNTS = (20, 15, 4, 1, 0, 0, 0, 0, 0, 0, 0)
COORDINATES = ("rho", "alpha", *(f"f_tilde[{i}]" for i in range(SIZE)))
# Constants of reference by ``python -m benchmarks.run.gp_poisson``: nats, then figures of the
# coordinates above, the first two as logarithms. Importance sampling gave -16.1657 +- 0.0019.
# fmt: off
LOG_EVIDENCE = -16.1629
LOG_EVIDENCE_ERROR = 0.0018
MEAN = (
    1.8268, 0.9882, 1.1734, -0.3884, -1.1540, -0.7292, -0.5583, -0.4642, -0.3691, -0.2212, -0.1133,
    -0.0294, -0.0112
)
SD = (
    0.1802, 0.3160, 0.3876, 0.3949, 0.7324, 0.8816, 0.9206, 0.9205, 0.9354, 0.9868, 0.9945, 0.9966,
    1.0033
)
# fmt: on


def factor(rho: Tensor, alpha: Tensor) -> Tensor:
    """Return the Cholesky factor of ``alpha^2 exp(-(x - x')^2 / 2 rho^2) + 1e-8 I``.

    Arguments:
        rho, alpha: shape ``()``, or ``(P, 1)`` for P particles.

    Returns:
        shape ``(11, 11)`` or ``(P, 11, 11)``.
    """
    x = torch.linspace(-10.0, 10.0, SIZE, dtype=rho.dtype)
    rho, alpha = rho[..., None], alpha[..., None]
    kernel = alpha**2 * (-0.5 * ((x[:, None] - x) / rho) ** 2).exp()
    return torch.linalg.cholesky(kernel + 1e-8 * torch.eye(SIZE, dtype=rho.dtype))


def counts() -> tuple[int, ...]:
    """Draw counts from the likelihood at ``rho = 6``, ``alpha = 2``."""
    generator = torch.Generator().manual_seed(SEED)
    rho, alpha = torch.tensor([TRUE_RHO, TRUE_ALPHA], dtype=torch.float64)
    f = factor(rho, alpha) @ torch.randn(SIZE, generator=generator, dtype=torch.float64)
    return tuple(int(k) for k in torch.poisson(f.exp(), generator=generator))


def model() -> None:
    """``rho ~ Gamma(25, 4)``, ``alpha ~ HalfNormal(2)``, ``k ~ Poisson(exp(f))`` given counts.

    ``f = factor(rho, alpha) f_tilde`` with ``f_tilde ~ N(0, I)``.
    """
    rho = pyro.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = pyro.sample("alpha", dist.HalfNormal(torch.tensor(2.0)))
    with pyro.plate("inputs", SIZE):
        f_tilde = pyro.sample("f_tilde", dist.Normal(0.0, 1.0))
        f = (factor(rho, alpha) @ f_tilde[..., None]).squeeze(-1)
        k = torch.tensor(COUNTS, dtype=f.dtype)
        # dist.Poisson takes the logarithm of exp(f): NaN as soon as exp(f) is 0 or infinite.
        pyro.factor("k", k * f - f.exp() - (k + 1).lgamma())


def log_joint(z: Tensor) -> Tensor:
    """Return the joint log density of unconstrained coordinates, log-determinants included.

    Arguments:
        z: shape ``(n, 13)``: ``log rho``, ``log alpha``, ``f_tilde``.

    Returns:
        nats, shape ``(n,)``.
    """
    values = {"rho": z[:, :1].exp(), "alpha": z[:, 1:2].exp(), "f_tilde": z[:, 2:]}
    with pyro.plate("draws", len(z), dim=-2):
        trace = poutine.trace(poutine.condition(model, values)).get_trace()
    trace = prune_subsample_sites(trace)
    trace.compute_log_prob()
    terms = [trace.nodes[name]["log_prob"].sum(-1) for name in (*values, "k")]
    return torch.stack(terms).sum(0) + z[:, :2].sum(-1)
