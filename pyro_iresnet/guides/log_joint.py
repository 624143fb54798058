"""The log-density of a Pyro model as a function of a guide's latent vector."""

from collections.abc import Callable
from typing import Any

import pyro
from pyro import poutine
from pyro.distributions.util import sum_rightmost
from pyro.infer.autoguide import AutoContinuous
from torch import Tensor
from torch.distributions import biject_to


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
        # A search may come to where a distribution has no parameters: NaN, and no error.
        with poutine.block(), pyro.validation_enabled(False):
            conditioned = poutine.condition(self.model, data=values)
            trace = poutine.trace(conditioned).get_trace(*self.args, **self.kwargs)
            return total + trace.log_prob_sum()

    @property
    def is_deterministic(self) -> bool:
        """Whether two calls give the same: no data are subsampled."""
        with poutine.block():
            trace = poutine.trace(self.guide.model).get_trace(*self.args, **self.kwargs)
        nodes: Any = trace.nodes
        return not any(
            frame.full_size is not None and frame.full_size != frame.size
            for site in nodes.values()
            if site["type"] == "sample"
            for frame in site["cond_indep_stack"]
        )
