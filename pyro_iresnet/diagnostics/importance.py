"""Pareto-smoothed importance sampling from a guide."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import arviz
import numpy as np
import torch
from torch import Tensor

from ..errors import ArgumentError, check_positive_int
from .particles import Particles

FEWEST_DRAWS = 25  # The generalised Pareto distribution is fitted to a fifth of them, at least 5.
GOOD, HIGHEST = 0.5, 0.7
SMALLEST_ESS = 10


class KHatWarning(UserWarning):
    """The guide is too far from the posterior for its importance weights to be trusted."""


@dataclass(frozen=True, eq=False, repr=False)
class PSIS:
    r"""The result of :func:`psis`; ``print`` shows it with a verdict.

    The guide gives S draws :math:`z_s`. Their raw weights are :math:`p(x, z_s) / q(z_s)`; their
    smoothed weights :math:`w_s` sum to 1 after normalisation.

    Arguments:
        k_hat: the shape of the tail of the weights: good below 0.5, usable up to 0.7. ``-inf`` if
            the largest weights are equal up to rounding, as with an exact guide; ``inf`` if the
            tail has fewer than five draws or no fit.
        ess: effective sample size :math:`1 / \sum_s w_s^2`, from 1 to S.
        log_evidence: the log of the mean of the smoothed weights, nats.
        log_evidence_error: the standard error of ``log_evidence`` by the delta method,
            :math:`\sqrt{(S / \mathrm{ess} - 1) / (S - 1)}`, nats. Right for ``k_hat`` below 0.5.
            Above 0.5 the weights have no variance and the error is too small, above 0.7 far too
            small.
        elbo: the mean of the raw log weights, nats; ``-inf`` if a raw log weight is.
        elbo_error: the standard error of ``elbo``, nats.
        log_joint, log_guide: log p(x, z) and log q(z) of each draw, nats, shape ``(S,)``.
        smoothed_log_weights: log w, normalised, shape ``(S,)``.
        draws: the draws from the guide, by latent site of the model, shape ``(S, *site)`` each.

    Raises:
        ArgumentError, ArgumentTypeError: by :meth:`resample` and :meth:`indices`: ``num_samples``
            is no integer of at least 1.

    Example:
        >>> import torch
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> from pyro_iresnet.diagnostics import psis
        >>> def model():
        ...     pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> def guide():
        ...     pyro.sample("z", dist.Normal(0.1, 1.2))
        >>> found = psis(guide, model, num_samples=1000)
        >>> found.draws["z"].shape, found.resample(10)["z"].shape
        (torch.Size([1000]), torch.Size([10]))
    """

    k_hat: float
    ess: float
    log_evidence: float
    log_evidence_error: float
    elbo: float
    elbo_error: float
    log_joint: Tensor
    log_guide: Tensor
    smoothed_log_weights: Tensor
    draws: dict[str, Tensor]

    @property
    def log_weights(self) -> Tensor:
        """Return ``log p(x, z) - log q(z)``, raw, nats, shape ``(S,)``, ``-inf`` where p is 0."""
        return self.log_joint - self.log_guide

    def resample(self, num_samples: int) -> dict[str, Tensor]:
        """Draw from the posterior by site, shape ``(num_samples, *site)``; see :meth:`indices`."""
        index = self.indices(num_samples)
        return {name: value[index.to(value.device)] for name, value in self.draws.items()}

    def indices(self, num_samples: int) -> Tensor:
        """Draw indices of draws that form a sample of the posterior, shape ``(num_samples,)``.

        Systematic resampling by the smoothed weights, in random order: draw s comes
        ``num_samples * w_s`` times, rounded up or down. Follows ``torch.manual_seed``. Raises
        :class:`ArgumentError` or :class:`ArgumentTypeError` if ``num_samples`` is no positive
        integer.
        """
        n = check_positive_int(num_samples, "num_samples")
        cumulative = self.smoothed_log_weights.exp().cumsum(0)
        places = (torch.arange(n, dtype=torch.float64) + torch.rand((), dtype=torch.float64)) / n
        # A search to the right of places below 1 never takes a draw of weight 0.
        places = places.clamp(max=1 - 2**-53) * cumulative[-1]
        index = torch.searchsorted(cumulative, places, right=True)
        return index[torch.randperm(n)]

    def __repr__(self) -> str:
        size, outside = len(self.log_joint), int(self.log_weights.isinf().sum())
        fails = self.k_hat > HIGHEST or self.ess < SMALLEST_ESS
        verdict = "fails" if fails else "good" if self.k_hat < GOOD else "usable"
        lines = [
            f"PSIS of {size} draws: {verdict}",
            f"  k-hat         {self.k_hat:.2f}   (good below {GOOD}, usable up to {HIGHEST})",
            f"  ESS           {self.ess:.1f}   ({self.ess / size:.1%} of the draws)",
            f"  log evidence  {self.log_evidence:.4f} +- {self.log_evidence_error:.4f}",
            f"  ELBO          {self.elbo:.4f} +- {self.elbo_error:.4f}",
        ]
        if outside:
            lines.append(f"  {outside} draws lie outside the support of the posterior")
        return "\n".join(lines)


def psis(
    guide: Callable[..., Any],
    model: Callable[..., Any],
    *args: Any,
    num_samples: int = 4000,
    max_plate_nesting: int | None = None,
    batch_size: int | None = None,
    **kwargs: Any,
) -> PSIS:
    r"""Judge a guide and correct its draws, by Pareto-smoothed importance sampling.

    .. math:: \log w_s = \log p(x, z_s) - \log q(z_s), \qquad z_s \sim q

    A generalised Pareto distribution is fitted to the largest weights, and its quantiles replace
    these weights; k-hat is the shape of the distribution. Any Pyro model and guide will do; they
    run in eval mode. Sums are in float64, whatever the dtype of the model. The draws are
    independent and run all at once, in a plate of their own.

    Arguments:
        guide: draws every latent site of the model.
        model: the model, with its data observed.
        *args, **kwargs: the arguments of both.
        num_samples: the number of draws, at least 25.
        max_plate_nesting: the number of batch dimensions of the plates; by default found in a run.
        batch_size: the number of draws at once; by default all. 1 runs model and guide once for
            each draw, without the plate: slow, but right for code that cannot run on many draws.

    Raises:
        ArgumentTypeError: model or guide cannot be called.
        ArgumentError: the sites of model and guide do not match or are masked differently, a plate
            subsamples or has another size in the guide, the guide has no density, weights are NaN
            or infinite, or the model does not run on many draws.

    Warns:
        KHatWarning: k-hat is above 0.7, or the effective sample size below 10.

    References:
        Pareto Smoothed Importance Sampling (Vehtari, Simpson, Gelman, Yao and Gabry, 2024).
        Yes, but Did It Work?: Evaluating Variational Inference (Yao et al., 2018).

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> def model(y):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(z, 1.0), obs=y)
        >>> def guide(y):
        ...     pyro.sample("z", dist.Normal(y / 2, 1.0))
        >>> result = psis(guide, model, torch.tensor(1.0))
        >>> result.k_hat < 0.5, result.resample(100)["z"].shape
        (True, torch.Size([100]))
    """
    pair = Particles(guide, model, args, kwargs, max_plate_nesting, batch_size)
    result = weigh(pair, num_samples)
    warn(result)
    return result


def weigh(pair: Particles, num_samples: int) -> PSIS:
    """Draw from the guide, weigh the draws by the model, and smooth the weights."""
    size = check_positive_int(num_samples, "num_samples")
    if size < FEWEST_DRAWS:
        raise ArgumentError(
            f"Expected num_samples to be at least {FEWEST_DRAWS}, for a tail to fit k-hat to; got "
            f"{size}. 1000 or more is usual."
        )
    of_model, of_guide, draws = pair.draw(size)
    log_joint, log_guide = of_model.value, of_guide.value
    log_weights = log_joint - log_guide
    _check_weights(log_weights, log_joint, log_guide)
    # Each term of a log-density carries a few roundings of its own.
    rounding = 8 * pair.eps * (1 + of_model.size + of_guide.size)
    smoothed, k_hat = _smooth(log_weights, rounding)
    total = torch.logsumexp(smoothed, 0)
    normalised = smoothed - total
    ess = min(float(torch.exp(-torch.logsumexp(2 * normalised, 0))), size)
    elbo = float(log_weights.mean())
    return PSIS(
        k_hat=k_hat,
        ess=ess,
        log_evidence=float(total) - math.log(size),
        log_evidence_error=math.sqrt((size / ess - 1) / (size - 1)),
        elbo=elbo,
        elbo_error=float(log_weights.std()) / size**0.5 if math.isfinite(elbo) else math.inf,
        log_joint=log_joint,
        log_guide=log_guide,
        smoothed_log_weights=normalised,
        draws=draws,
    )


def _smooth(log_weights: Tensor, rounding: Tensor) -> tuple[Tensor, float]:
    """Return smoothed log weights, not normalised, and k-hat."""
    size = len(log_weights)
    tail = math.ceil(min(size / 5, 3 * size**0.5))
    largest, places = log_weights.topk(tail + 1)
    if float(largest[0] - largest[-1]) <= float(rounding[places].max()):
        # No weight sticks out: the fit would be to rounding errors.
        return log_weights, -math.inf
    smoothed, k_hat = map(np.asarray, arviz.psislw(log_weights.numpy(), normalize=False))
    return torch.from_numpy(smoothed), math.inf if math.isnan(k_hat) else float(k_hat)


def _check_weights(log_weights: Tensor, log_joint: Tensor, log_guide: Tensor) -> None:
    """Raise unless the weights are finite numbers, not all zero."""
    size, nan = len(log_weights), int(log_weights.isnan().sum())
    infinite = int((log_weights == math.inf).sum())
    if nan or infinite:
        bad = [int((v.isnan() | (v == math.inf)).sum()) for v in (log_joint, log_guide)]
        none = int((log_guide == -math.inf).sum())
        raise ArgumentError(
            f"Expected log weights below infinity; of {size} draws {nan} have NaN and {infinite} "
            f"have +inf. log p(x, z) of the model is NaN or +inf in {bad[0]} draws, log q(z) of "
            f"the guide in {bad[1]}, and -inf in {none}. Look at the draws where it is; float64 "
            "helps where a density over- or underflows."
        )
    if bool((log_weights == -math.inf).all()):
        raise ArgumentError(
            f"Expected draws in the support of the posterior; all {size} have p(x, z) = 0. "
            "Constrain the guide's sites as the model's are."
        )


def warn(result: PSIS) -> None:
    """Warn of weights not to be trusted, at the line that called a public function."""
    size = len(result.log_joint)
    if result.k_hat > HIGHEST:
        seen = f"PSIS k-hat is {result.k_hat:.2f}, above {HIGHEST}"
    elif result.ess < SMALLEST_ESS:
        seen = f"The effective sample size is {result.ess:.1f} of {size} draws"
    else:
        return
    warnings.warn(
        f"{seen}: the guide is far from the posterior. Do not trust log_evidence, its error or "
        "resampled draws. Train for more steps or give the guide more capacity; if that does not "
        "help, run NUTS, with NeuTraReparam on this guide if it is one of flows.",
        KHatWarning,
        stacklevel=3,
    )
