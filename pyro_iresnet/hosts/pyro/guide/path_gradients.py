"""A flow whose entropy has only path gradients."""

from typing import Any, cast

import pyro.distributions as dist
import torch
from pyro.distributions.score_parts import ScoreParts
from torch import Tensor
from torch.autograd import Function

from ...._torch import in_plain_autograd, undifferentiable


class PathDistribution(dist.TransformedDistribution):
    r"""A flow of one :class:`Stack`, whose ELBO has path gradients.

    The gradient of :math:`-\mathrm{E} \log q_\theta(z)` with :math:`z = f_\theta(u)` has two parts:
    one along ``z``, and one through the density with ``z`` held fixed. The second part is zero on
    average and adds noise to every draw. The first part has no noise at all if :math:`q` is the
    posterior. This class gives Pyro's ``entropy_term`` only the first part,

    .. math:: \nabla_z \log q_\theta(z) = \Big(\frac{dz}{du}\Big)^{-\top} \nabla_u
              \log q_\theta(f_\theta(u))

    with :math:`\theta` held fixed. The value and ``log_prob`` are those of the flow. So estimators
    that take the gradient of ``log_prob`` (Renyi's, wake-sleep) are right too: for them the second
    part is no noise. First derivatives only: a second derivative raises.

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
        """Return the log-density, and the entropy term with its path gradient."""
        # A trace would freeze the gradient, which is a number of this draw.
        if not in_plain_autograd() or not (x.requires_grad and torch.is_grad_enabled()):
            return super().score_parts(x)
        [stack] = self.transforms
        evaluation = stack.evaluation(y=x)
        u, zero = evaluation.x, cast(Any, 0)
        log_prob = self.base_dist.log_prob(u) - evaluation.log_det()
        if not (u.requires_grad and u.is_leaf):
            return ScoreParts(log_prob, zero, log_prob)
        gradient = torch.autograd.grad(log_prob.sum(), u, retain_graph=True)[0]
        slope = evaluation.inverse_vjp(gradient)
        return ScoreParts(log_prob, zero, log_prob.detach() + _Along.apply(x, slope))


class _Along(Function):
    """Zero, with a given slope as its gradient in ``x``."""

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
                "A path gradient is a number of this draw, whose derivative would be wrong. For "
                "second derivatives of an ELBO make the guide with path_gradients=False.",
                x,
            )
        return value, None
