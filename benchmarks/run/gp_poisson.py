"""Constants of reference for the posterior of a Gaussian process with Poisson counts."""

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
from pyro.infer import MCMC, NUTS
from pyro.infer.mcmc.util import initialize_model
from sklearn.mixture import GaussianMixture
from torch import Tensor

from ..harness.report import Fast, Threads, table
from ..targets.gp_poisson import COORDINATES, COUNTS, counts, log_joint, model


def check(z: Tensor) -> None:
    """Raise if ``log_joint`` is off Pyro's own potential by more than 1e-9.

    Arguments:
        z: points, shape ``(n, 13)``.
    """
    potential = initialize_model(model)[1]
    pyros = [-potential({"rho": p[0], "alpha": p[1], "f_tilde": p[2:]}) for p in z]
    error = float((log_joint(z) - torch.stack(pyros)).abs().max())
    if not error < 1e-9:
        raise RuntimeError(f"log_joint is {error:.1e} off Pyro's potential, more than 1e-9")


@dataclass(frozen=True)
class Estimate:
    """Estimate of the log evidence.

    Arguments:
        value: nats.
        error: the standard error, nats.
    """

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.4f} +- {self.error:.4f}"


@dataclass(frozen=True)
class Sampler:
    """Sampler by NUTS, one chain after another.

    Arguments:
        chains: the number of chains.
        warmup: the steps of warm-up of each chain.
        draws: the draws of each chain.
    """

    chains: int
    warmup: int
    draws: int

    def __call__(self) -> Tensor:
        """Draw unconstrained points, shape ``(chains, draws, 13)``."""
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
    """Summarise chains by ArviZ, a row for each coordinate.

    Arguments:
        chains: shape ``(chains, draws, 13)``.
    """
    data = arviz.from_dict(posterior={"z": chains.numpy()})
    return pd.DataFrame(arviz.summary(data, round_to="none")).set_axis(list(COORDINATES))


@dataclass(frozen=True)
class Bridge:
    """Bridge sampling at its optimum (Meng and Wong, 1996), one estimate for each chain.

    The proposal is a mixture of multivariate t, with the weights, means and covariances of a
    Gaussian mixture fitted to the first halves of all chains; the second halves are bridged.

    Arguments:
        components: the number of components of the proposal.
        degrees: the degrees of freedom of each component.
        proposals: the draws of the proposal for each chain.
        tolerance: the tolerance of the iteration, nats.
    """

    # One component leaves importance sampling a Pareto k of 0.6, four one of 0.4.
    components: int = 4
    degrees: float = 10.0
    proposals: int = 20_000
    tolerance: float = 1e-10

    def proposal(self, chains: Tensor) -> dist.MixtureSameFamily:
        """Fit the proposal to the first halves of the chains.

        Arguments:
            chains: shape ``(chains, draws, 13)``.
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
        """Solve the equation of the optimal bridge for the log evidence.

        Arguments:
            ours, theirs: ``log p - log q`` of draws from the posterior and from the proposal.
            effective: the effective number of draws from the posterior.
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
        """Return the mean over the chains with its standard error.

        Arguments:
            chains: shape ``(chains, draws, 13)``.
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
    """Estimate by importance sampling, to check the bridge.

    Returns:
        the estimate, the effective share of the draws, and the Pareto shape of the weights. The
        error can be trusted below a shape of 0.5.
    """
    z = proposal.sample((draws,))
    log_weights = log_joint(z) - proposal.log_prob(z)
    value = log_weights.logsumexp(0) - math.log(draws)
    weights = (log_weights - value).exp()
    estimate = Estimate(float(value), float(weights.std()) / math.sqrt(draws))
    k_hat = float(np.asarray(arviz.psislw(log_weights.numpy())[1]))
    return estimate, float(1 / (weights**2).mean()), k_hat


def listed(name: str, values: pd.Series) -> str:
    """Write a constant to paste."""
    figures = ", ".join(f"{v:.4f}" for v in values)
    return f"{name} = (\n{fill(figures, 100, initial_indent='    ', subsequent_indent='    ')}\n)"


def main(fast: Fast = False, threads: Threads = 1) -> None:
    """Compute the log evidence, and mean and standard deviation of each coordinate."""
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
