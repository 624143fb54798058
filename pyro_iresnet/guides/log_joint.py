"""The log-density of a Pyro model as a function of a guide's latent vector."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import sum_rightmost
from pyro.infer.autoguide import AutoContinuous
from torch import Tensor
from torch.distributions import biject_to

from ..anatomy import evaluating, modules_behind


class LogJoint:
    r"""``z -> log p(x, z)`` on the unconstrained scale, where a guide lives.

    The constrained value of each site and the log-determinant of its map are included, as in the
    ELBO: :math:`\log p(x, T(z)) + \log\lvert\det T'(z)\rvert`.

    Arguments:
        guide: whose sites and packing are taken; it has seen the model.
        model: the model, without the guide's own initialisation.
        args, kwargs: of the model.
    """

    def __init__(
        self,
        guide: AutoContinuous,
        model: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self.guide, self.model, self.args, self.kwargs = guide, model, args, kwargs
        # A search is no training: a BatchNorm counts nothing of it, a dropout draws nothing.
        self.modules = modules_behind(model)

    def __call__(self, z: Tensor) -> Tensor:
        """A scalar; ``z`` of shape ``(D,)``."""
        values, total = {}, z.new_zeros(())
        pairs: Any = self.guide._unpack_latent(z)
        for site, unconstrained in pairs:
            transform = biject_to(site["fn"].support)
            value = transform(unconstrained)
            logdet: Any = transform.log_abs_det_jacobian(unconstrained, value)
            logdet = sum_rightmost(logdet, logdet.dim() - value.dim() + site["fn"].event_dim)
            values[site["name"]] = value
            total = total + logdet.sum()
        with poutine.block(), _without_validation(), evaluating(self.modules):
            conditioned = poutine.condition(self.model, data=values)
            trace = poutine.trace(conditioned).get_trace(*self.args, **self.kwargs)
            return total + trace.log_prob_sum()

    @torch.no_grad()
    def is_deterministic(self, z: Tensor) -> bool:
        """Whether a few calls near ``z`` give the same.

        They do not where the model draws what the guide does not know (data in a subsampling
        plate, hidden sites), nor where it fails.
        """
        # At a symmetric point what is drawn may make no difference.
        z = z + 0.01 * torch.randn_like(z)
        try:
            first, *others = (self(z) for _ in range(5))
        except (RuntimeError, ValueError, ArithmeticError):
            return False
        return all(torch.equal(first.nan_to_num(), other.nan_to_num()) for other in others)


@contextmanager
def _without_validation() -> Iterator[None]:
    """A search may come to where a distribution has no parameters: NaN then, and no error."""
    of_torch = torch.distributions.Distribution._validate_args
    try:
        with pyro.validation_enabled(False):
            yield
    finally:
        # Pyro puts back its own flag only, and torch's after it.
        torch.distributions.Distribution.set_default_validate_args(of_torch)
