"""The posterior of a Gaussian process with Poisson counts, and its evidence.

The model is ``gp_pois_regr`` of posteriordb, its counts drawn anew; ``python -m
benchmarks.gp_poisson`` gives the constants of reference.
"""

import math
import time
from dataclasses import dataclass
from textwrap import fill

import arviz
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
import typer
from pyro import poutine
from pyro.infer import MCMC, NUTS
from pyro.infer.mcmc.util import initialize_model
from pyro.poutine.util import prune_subsample_sites
from sklearn.mixture import GaussianMixture
from torch import Tensor

from .report import Fast, Threads, table

SIZE = 11
TRUE_RHO, TRUE_ALPHA, SEED = 6.0, 2.0, 0
# ``counts()``, kept so that no version of torch draws others.
COUNTS = (20, 15, 4, 1, 0, 0, 0, 0, 0, 0, 0)
COORDINATES = ("rho", "alpha", *(f"f_tilde[{i}]" for i in range(SIZE)))
# What ``python -m benchmarks.gp_poisson`` gave: nats, then figures of the coordinates above, of
# which the first two are logarithms. Importance sampling gave -16.1657 +- 0.0019.
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
    """The Cholesky factor of ``alpha^2 exp(-(x - x')^2 / 2 rho^2) + 1e-8 I``.

    Arguments:
        rho, alpha: of shape ``()``, or ``(P, 1)`` for as many particles.

    Returns:
        of shape ``(11, 11)`` or ``(P, 11, 11)``.
    """
    x = torch.linspace(-10.0, 10.0, SIZE, dtype=rho.dtype)
    rho, alpha = rho[..., None], alpha[..., None]
    kernel = alpha**2 * (-0.5 * ((x[:, None] - x) / rho) ** 2).exp()
    return torch.linalg.cholesky(kernel + 1e-8 * torch.eye(SIZE, dtype=rho.dtype))


def counts() -> tuple[int, ...]:
    """Drawn from the likelihood at ``rho = 6``, ``alpha = 2``."""
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
        # dist.Poisson takes the logarithm of exp(f): NaN as soon as that is 0 or infinite.
        pyro.factor("k", k * f - f.exp() - (k + 1).lgamma())


def log_joint(z: Tensor) -> Tensor:
    """The joint log density, nats, of unconstrained coordinates, log-determinants included.

    Arguments:
        z: of shape ``(n, 13)``: ``log rho``, ``log alpha``, ``f_tilde``.

    Returns:
        of shape ``(n,)``.
    """
    values = {"rho": z[:, :1].exp(), "alpha": z[:, 1:2].exp(), "f_tilde": z[:, 2:]}
    with pyro.plate("draws", len(z), dim=-2):
        trace = poutine.trace(poutine.condition(model, values)).get_trace()
    trace = prune_subsample_sites(trace)
    trace.compute_log_prob()
    terms = [trace.nodes[name]["log_prob"].sum(-1) for name in (*values, "k")]
    return torch.stack(terms).sum(0) + z[:, :2].sum(-1)


def check(z: Tensor) -> None:
    """Raise where ``log_joint`` is off Pyro's own potential by more than 1e-9.

    Arguments:
        z: points, of shape ``(n, 13)``.
    """
    potential = initialize_model(model)[1]
    pyros = [-potential({"rho": p[0], "alpha": p[1], "f_tilde": p[2:]}) for p in z]
    error = float((log_joint(z) - torch.stack(pyros)).abs().max())
    if not error < 1e-9:
        raise RuntimeError(f"log_joint is {error:.1e} off Pyro's potential, more than 1e-9")


@dataclass(frozen=True)
class Estimate:
    """Of the log evidence.

    Arguments:
        value, error: nats, the error a standard one.
    """

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.4f} +- {self.error:.4f}"


@dataclass(frozen=True)
class Sampler:
    """NUTS, one chain after another.

    Arguments:
        chains, warmup, draws: their number, the last two for each chain.
    """

    chains: int
    warmup: int
    draws: int

    def __call__(self) -> Tensor:
        """Unconstrained draws, of shape ``(chains, draws, 13)``."""
        jit, chains = {"jit_compile": True, "ignore_jit_warnings": True}, []
        for seed in range(self.chains):
            pyro.set_rng_seed(seed)
            start = time.perf_counter()
            kernel = NUTS(model, target_accept_prob=0.9, full_mass=True, **jit)
            mcmc = MCMC(kernel, self.draws, warmup_steps=self.warmup, disable_progbar=True)
            mcmc.run()
            seconds = time.perf_counter() - start
            divergences = len(mcmc.diagnostics()["divergences"]["chain 0"])
            print(f"chain {seed}: {seconds:.0f} s, {divergences} divergences", flush=True)
            found = mcmc.get_samples()
            scales = torch.stack([found["rho"], found["alpha"]], -1)
            chains.append(torch.cat([scales.log(), found["f_tilde"]], -1))
        return torch.stack(chains)


def summary(chains: Tensor) -> pd.DataFrame:
    """Of ArviZ: a row for each coordinate.

    Arguments:
        chains: of shape ``(chains, draws, 13)``.
    """
    data = arviz.from_dict(posterior={"z": chains.numpy()})
    return pd.DataFrame(arviz.summary(data, round_to="none")).set_axis(list(COORDINATES))


@dataclass(frozen=True)
class Bridge:
    """Optimal bridge sampling (Meng and Wong, 1996), one estimate for each chain.

    The proposal is a mixture of multivariate t, with the weights, means and covariances of a
    Gaussian mixture fitted to the first halves of all chains; the second halves are bridged.

    Arguments:
        components: of the proposal.
        degrees: of freedom of each.
        proposals: draws of it for each chain.
        tolerance: of the iteration, nats.
    """

    # One component leaves importance sampling a Pareto k of 0.6, four one of 0.4.
    components: int = 4
    degrees: float = 10.0
    proposals: int = 20_000
    tolerance: float = 1e-10

    def proposal(self, chains: Tensor) -> dist.MixtureSameFamily:
        """Fitted to the first halves.

        Arguments:
            chains: of shape ``(chains, draws, 13)``.
        """
        first = chains.tensor_split(2, dim=1)[0].flatten(0, 1)
        found = GaussianMixture(self.components, random_state=0).fit(first.numpy())
        weights, means, covariances = (
            torch.from_numpy(a) for a in (found.weights_, found.means_, found.covariances_)
        )
        tril = torch.linalg.cholesky(covariances * (self.degrees - 2) / self.degrees)
        parts = dist.MultivariateStudentT(torch.tensor(self.degrees), means, tril)
        return dist.MixtureSameFamily(dist.Categorical(weights), parts)

    def log_ratio(self, ours: Tensor, theirs: Tensor, effective: float) -> float:
        """The log evidence that solves the equation of the optimal bridge.

        Arguments:
            ours, theirs: ``log p - log q`` of draws from the posterior and from the proposal.
            effective: what the draws from the posterior are worth of independent ones.
        """
        share = effective / (effective + len(theirs))
        ahead, behind = math.log(share), math.log1p(-share)
        value, change = ours.median(), math.inf
        while change > self.tolerance:
            above = theirs - torch.logaddexp(ahead + theirs, behind + value)
            below = -torch.logaddexp(ahead + ours, behind + value)
            found = above.logsumexp(0) - below.logsumexp(0)
            found = found + math.log(len(ours) / len(theirs))
            value, change = found, float((found - value).abs())
        return float(value)

    def __call__(self, chains: Tensor) -> Estimate:
        """Mean and standard error over the chains.

        Arguments:
            chains: of shape ``(chains, draws, 13)``.
        """
        proposal, second = self.proposal(chains), chains.tensor_split(2, dim=1)[1]
        effective = float(summary(second)["ess_bulk"].mean()) / len(chains)

        def estimate(draws: Tensor) -> float:
            # Draws of its own for every chain, or the estimates would share their error.
            others = proposal.sample((self.proposals,))
            ours, theirs = (log_joint(z) - proposal.log_prob(z) for z in (draws, others))
            return self.log_ratio(ours, theirs, effective)

        found = torch.tensor([estimate(draws) for draws in second])
        return Estimate(float(found.mean()), float(found.std()) / math.sqrt(len(found)))


def importance(proposal: dist.MixtureSameFamily, draws: int) -> tuple[Estimate, float, float]:
    """Importance sampling, the check of the bridge.

    Returns:
        the estimate, what share of the draws is effective, and the Pareto shape of the weights:
        below 0.5 the error can be trusted.
    """
    z = proposal.sample((draws,))
    log_weights = log_joint(z) - proposal.log_prob(z)
    value = log_weights.logsumexp(0) - math.log(draws)
    weights = (log_weights - value).exp()
    estimate = Estimate(float(value), float(weights.std()) / math.sqrt(draws))
    k_hat = float(np.asarray(arviz.psislw(log_weights.numpy())[1]))
    return estimate, float(1 / (weights**2).mean()), k_hat


def listed(name: str, values: pd.Series) -> str:
    """A constant to paste."""
    figures = ", ".join(f"{v:.4f}" for v in values)
    return f"{name} = (\n{fill(figures, 100, initial_indent='    ', subsequent_indent='    ')}\n)"


def main(fast: Fast = False, threads: Threads = 1) -> None:
    """The log evidence, and mean and standard deviation of the unconstrained coordinates."""
    torch.set_num_threads(threads)
    torch.set_default_dtype(torch.float64)
    pyro.set_rng_seed(0)
    check(torch.randn(20, len(COORDINATES)))
    if counts() != COUNTS:
        raise RuntimeError(f"this torch draws the counts {counts()}, not {COUNTS}")
    # Two short chains are too few for the errors to mean anything.
    sampler = Sampler(2, 100, 100) if fast else Sampler(4, 1000, 5000)
    chains = sampler()
    bridge, found = Bridge(), summary(chains)
    off = found["mcse_mean"] / found["sd"]
    pyro.set_rng_seed(1000)
    evidence = bridge(chains)
    other, share, k_hat = importance(bridge.proposal(chains), 20_000 if fast else 200_000)
    rows = [
        ["log evidence, bridge sampling", str(evidence)],
        ["log evidence, importance sampling", str(other)],
        ["effective share of its draws", f"{share:.2f}"],
        ["Pareto k of its weights", f"{k_hat:.2f}"],
        ["largest r-hat", f"{found['r_hat'].max():.4f}"],
        ["least bulk ESS", f"{found['ess_bulk'].min():.0f}"],
        ["least tail ESS", f"{found['ess_tail'].min():.0f}"],
        ["largest error of a mean, over its SD", f"{off.max():.4f}"],
    ]
    print(table(["", f"{sampler.chains} chains of {sampler.draws:,} draws"], rows))
    print(f"\nLOG_EVIDENCE = {evidence.value:.4f}\nLOG_EVIDENCE_ERROR = {evidence.error:.4f}")
    print(listed("MEAN", found["mean"]), listed("SD", found["sd"]), sep="\n")


if __name__ == "__main__":
    typer.run(main)
