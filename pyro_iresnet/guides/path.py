"""A flow whose entropy has gradients along the path of its draws only."""

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.score_parts import ScoreParts
from torch import Tensor
from torch.autograd import Function

from ..torch_modes import in_plain_autograd, undifferentiable


class PathDistribution(dist.TransformedDistribution):
    r"""A flow of one :class:`Stack`, whose ELBO has path gradients.

    The gradient of :math:`-\mathrm{E} \log q_\theta(z)` with :math:`z = f_\theta(u)` has a part
    along ``z`` and one through the density at ``z`` held fixed. The second is zero on average and
    noise in every draw; where :math:`q` is the posterior, the first has no noise at all. Here
    Pyro's ``entropy_term`` has the first only,

    .. math:: \nabla_z \log q_\theta(z) = \Big(\frac{dz}{du}\Big)^{-\top} \nabla_u
              \log q_\theta(f_\theta(u))

    with :math:`\theta` held fixed. Value and ``log_prob`` are those of the flow, and so are
    estimators that take the gradient of ``log_prob`` (Renyi's, wake-sleep): for them the second
    part is no noise. First derivatives only: a second one raises.

    References:
        Sticking the Landing (Roeder, Wu and Duvenaud, 2017). Path-Gradient Estimators for
        Continuous Normalizing Flows (Vaitl, Nicoli, Nakajima and Kessel, 2022).
    """

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        x = self.base_dist.rsample(sample_shape)
        if torch.is_grad_enabled():
            x.requires_grad_()
        for transform in self.transforms:
            x = transform(x)
        return x

    def score_parts(self, x: Tensor) -> ScoreParts:
        """The log-density, and the entropy term with its path gradient."""
        # Inside a trace the gradient, which is a number of this draw, would be frozen.
        if not in_plain_autograd() or not (x.requires_grad and torch.is_grad_enabled()):
            return super().score_parts(x)
        [stack] = self.transforms
        u, logdet, push = stack.retrace(x)
        zero: Any = 0
        log_prob = self.base_dist.log_prob(u) - logdet
        if not (u.requires_grad and u.is_leaf):
            return ScoreParts(log_prob, zero, log_prob)
        slope = push(torch.autograd.grad(log_prob.sum(), u, retain_graph=True)[0])
        return ScoreParts(log_prob, zero, log_prob.detach() + _Along.apply(x, slope))


class _Along(Function):
    """Zero, whose gradient in ``x`` is a slope."""

    @staticmethod
    def forward(x: Tensor, slope: Tensor) -> Tensor:
        return x.new_zeros(x.shape[:-1])

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        x, slope = ctx.saved_tensors
        value = grad_outputs[0][..., None] * slope
        if torch.is_grad_enabled():
            value = undifferentiable(
                value,
                x,
                "A path gradient is a number of this draw, whose derivative would be wrong. For "
                "second derivatives of an ELBO make the guide with path_gradients=False.",
            )
        return value, None
