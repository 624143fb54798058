"""Check of an estimator of the log-determinant."""

import math

import torch
from torch import Tensor

from ..logdet import LogDet
from ..operators import Linearization
from .promises import ROUNDING, require

# Calls that are averaged, and the most standard errors.
CALLS, MOST = 50, 4.5


@torch.no_grad()
def check_logdet(
    estimator: LogDet,
    linearization: Linearization,
    *,
    lipschitz: float,
    draws: int = 2000,
    tolerance: float = MOST * ROUNDING,
) -> None:
    """Check that the mean of an estimator is the log-determinant, within its standard error.

    The standard error is that of the means of 50 calls, since the samples of one call may depend on
    each other. The limit for each sample is the tolerance and 4.5 standard errors (Student's t with
    49 degrees of freedom), so pass few samples: 10 samples fail by chance in one of 2,000 runs.

    Arguments:
        estimator: the estimator to check.
        linearization: the linearization of a contraction, in float64, shape ``(n, *event)``.
        lipschitz: the bound of the contraction.
        draws: the number of estimates to average, in calls of equal size.
        tolerance: the error that a deterministic estimator may have, nats.

    Raises:
        AssertionError: a promise is broken; the message names it, with the numbers.

    Example:
        >>> import torch
        >>> from pyro_iresnet import DenseContraction, Roulette, testing
        >>> _ = torch.manual_seed(0)
        >>> g = DenseContraction(3).double()
        >>> linearization = g.linearize(torch.randn(4, 3, dtype=torch.float64))
        >>> testing.check_logdet(Roulette(), linearization, lipschitz=g.lipschitz)
    """
    size = linearization.event_size
    jacobian = linearization.as_matrix()
    identity = torch.eye(size, dtype=jacobian.dtype, device=jacobian.device)
    exact = torch.linalg.slogdet(identity + jacobian).logabsdet
    samples = torch.arange(len(exact), device=exact.device).repeat(max(1, draws // CALLS))
    means: list[Tensor] = []
    for _ in range(CALLS):
        estimates = estimator(linearization.select(samples), lipschitz=lipschitz)
        require(
            estimates.shape == samples.shape,
            f"expected the batch shape {tuple(samples.shape)}, got {tuple(estimates.shape)}",
        )
        means.append(estimates.reshape(-1, len(exact)).mean(0))
    of_calls = torch.stack(means)
    error = of_calls.std(0) / math.sqrt(CALLS)
    require(
        estimator.stochastic or float(error.max()) <= ROUNDING,
        "calls differ, but stochastic is False: set stochastic = True in the class",
    )
    off = (of_calls.mean(0) - exact).abs()
    worst = int((off - MOST * error).argmax())
    require(
        float(off[worst]) <= MOST * float(error[worst]) + tolerance,
        f"the mean is off by {float(off[worst]):.2g} nats, with a standard error of "
        f"{float(error[worst]):.2g} and a tolerance of {tolerance:.2g}",
    )
