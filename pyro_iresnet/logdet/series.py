r"""Power series of the log-determinant, truncated or with Russian roulette.

.. math:: \log\det(I + J) = \mathrm{tr}\log(I + J)
          = \sum_{k=1}^\infty \frac{(-1)^{k-1}}{k}\,\mathrm{tr}(J^k)

(seed report Eq. 18-21; Behrmann et al. 2019, Eq. 4), each trace as ``E[u^T J^k u]`` (Eq. 22-24).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import Function

from ..errors import (
    ContractionError,
    HigherOrderError,
    check_instance,
    check_positive_int,
)
from ..linearization import Linearization
from ..torch_modes import refuse_forward_mode, refuse_transforms
from .base import LogDet
from .probe import rademacher
from .truncation import Adaptive, Truncation

# A true contraction outlives -log(L) k = 100 with a chance below e^-98.
SURELY_ENDED = 100.0


@dataclass(frozen=True)
class PowerSeries(LogDet):
    r"""The series cut after a fixed number of terms, with fixed probes: deterministic, and biased.

    .. math:: \mathrm{tr} J + \sum_{k=2}^{n} \frac{(-1)^{k-1}}{k}\, u^\top J^k u

    The first trace is exact where the linearization knows it. The probes are the same for every
    sample and every call, drawn by a generator of their own, so the value is a smooth function of
    ``x`` and its gradient is the derivative of that value, as HMC needs. Memory grows with the
    terms. Seed report Eq. 21-24; the cut is off by at most :meth:`truncation_error`.

    Arguments:
        terms: ``n``, at least 1.
        probes: how many ``u`` to average over, at least 1.
        seed: of the generator that draws the probes.

    Example:
        >>> import torch
        >>> from pyro_iresnet import DenseContraction
        >>> g = DenseContraction(20)
        >>> PowerSeries(terms=8)(g.linearize(torch.zeros(5, 20)), lipschitz=g.lipschitz).shape
        torch.Size([5])
    """

    terms: int = 10
    probes: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        check_positive_int(self.terms, "terms")
        check_positive_int(self.probes, "probes")

    def __call__(self, linearization: Linearization, *, lipschitz: float) -> Tensor:
        refuse_transforms("PowerSeries", linearization.value)
        trace = linearization.trace()
        if trace is not None and self.terms == 1:
            return trace
        value = linearization.value
        generator = torch.Generator(device=value.device).manual_seed(self.seed)
        ones = (1,) * len(linearization.batch_shape)
        u = rademacher((self.probes, *ones, *linearization.event_shape), value, generator)
        total = value.new_zeros(()) if trace is None else trace
        v = u
        for k in range(1, self.terms + 1):
            v = linearization.vm(v)
            if k > 1 or trace is None:
                total = total - (-1) ** k / k * linearization.sum_event(u * v).mean(0)
        return total.expand(linearization.batch_shape)

    def truncation_error(self, lipschitz: float, event_size: int) -> float:
        r"""The bound :math:`D \sum_{k>n} L^k / k \le D L^{n+1} / ((n+1)(1-L))` of the cut, nats."""
        n = self.terms + 1
        return event_size * lipschitz**n / (n * (1 - lipschitz))


@dataclass(frozen=True)
class Roulette(LogDet):
    r"""The whole series, unbiased, by Russian roulette that each sample plays for itself.

    With :math:`v_k = (J^\top)^k u` and the weight :math:`w_k` that undoes the survival
    probabilities, the value is

    .. math:: \mathrm{tr} J + \sum_{k \ge 2} \frac{(-1)^{k-1}}{k}\, w_k\, u^\top v_k

    and its gradient that of

    .. math:: \mathrm{tr} J + \sum_{k \ge 1} (-1)^k\, w_k\, v_k^\top (J u)

    with ``w, v`` held fixed: each is an unbiased estimate, of the log-determinant and of its
    gradient :math:`\mathrm{tr}((I + J)^{-1} dJ)`. The gradient is not the derivative of the sampled
    value. Both come from the same products, and memory does not grow with the number of terms.
    Where the linearization does not know its trace, a probe gives it. First derivatives only.

    Arguments:
        truncation: how a sample decides to go on.
        probes: how many ``u`` to average over, at least 1.

    References:
        Residual Flows for Invertible Generative Modeling (Chen et al., 2019), Eq. 6-8, for roulette
        with one shared number of terms and the gradient series.

    Example:
        >>> import torch
        >>> from pyro_iresnet import DenseContraction
        >>> g = DenseContraction(20)
        >>> Roulette()(g.linearize(torch.zeros(5, 20)), lipschitz=g.lipschitz).shape
        torch.Size([5])
    """

    truncation: Truncation = Adaptive()  # noqa: RUF009  (frozen, so safe to share)
    probes: int = 1

    def __post_init__(self) -> None:
        check_instance(self.truncation, Truncation, "truncation", "Adaptive(threshold=0.3)")
        check_positive_int(self.probes, "probes")

    def __call__(self, linearization: Linearization, *, lipschitz: float) -> Tensor:
        refuse_transforms("Roulette", linearization.value)
        refuse_forward_mode("Roulette", linearization.value)
        trace = linearization.trace()
        u = rademacher((self.probes, *linearization.value.shape), linearization.value)
        with torch.no_grad():
            sampled, direction = self._sample(linearization, u, trace is not None, lipschitz)
        if torch.is_grad_enabled() and linearization.value.requires_grad:
            # The gradient of sum_k (-1)^k w_k v_k . (J u) asks for one differentiable product.
            product = linearization.sum_event(direction * linearization.mv(u))
            sampled = value_with_gradient_of(sampled, product)
        estimate = sampled.mean(0)
        return estimate if trace is None else estimate + trace

    def _sample(
        self, linearization: Linearization, u: Tensor, first_is_exact: bool, lipschitz: float
    ) -> tuple[Tensor, Tensor]:
        """The sampled series, ``(probes, *batch)``, and ``sum_k (-1)^k w_k v_k``, as ``u``.

        With the first trace exact, both leave it out.
        """
        batch, event = linearization.batch_shape.numel(), linearization.event_shape
        flat = u.reshape(self.probes * batch, *event)
        unit = math.sqrt(linearization.event_size)
        value = flat.new_zeros(len(flat))
        direction = torch.zeros_like(flat) if first_is_exact else flat.clone()
        rows = torch.arange(len(flat), device=flat.device)
        acting = linearization
        if linearization.batch_shape != rows.shape:
            # The probes of one sample lie a whole batch apart.
            acting = linearization.select(rows % batch if batch else rows)
        start, v, weight = flat, flat, torch.ones_like(value)
        limit = self.truncation.exact_terms + math.ceil(SURELY_ENDED / -math.log(lipschitz))
        for k in range(1, limit + 1):
            sign = -1.0 if k % 2 else 1.0
            v = acting.vm(v)
            if k > 1 or not first_is_exact:
                value.index_add_(0, rows, (-sign / k) * weight * acting.sum_event(start * v))
            scaled = v * weight.reshape(-1, *(1,) * len(event))
            direction.index_add_(0, rows, sign * scaled)
            if k < self.truncation.exact_terms:
                continue
            magnitude = acting.norm(scaled) / unit
            survival = self.truncation.survival(k, magnitude)
            # A value that is not finite dies here, and stays visible in what was added above.
            lives = (torch.rand_like(survival) < survival) & magnitude.isfinite()
            if not bool(lives.all()):
                kept = torch.nonzero(lives).reshape(-1)
                rows, start, v = rows[kept], start[kept], v[kept]
                weight, survival = weight[kept], survival[kept]
                acting = acting.select(kept)
            weight = weight / survival
            if len(rows) == 0:
                return value.reshape(u.shape[: u.dim() - len(event)]), direction.reshape(u.shape)
        raise ContractionError(
            f"Russian roulette did not end within {limit} terms for {len(rows)} of {len(flat)} "
            f"samples: the Jacobian of g has norm 1 or more there, where lipschitz {lipschitz} was "
            "promised. Correct the bound, or use a norm strategy that proves it, such as Gram()."
        )


def value_with_gradient_of(value: Tensor, surrogate: Tensor) -> Tensor:
    """``value``, with the first derivatives of ``surrogate``; a second derivative raises.

    Arguments:
        value: what is returned; receives no gradient.
        surrogate: what receives the gradient, of the same shape.

    Raises:
        HigherOrderError: when differentiated twice, since the surrogate's second derivative is not
            that of the log-determinant.
    """
    return _ValueWithGradientOf.apply(value, surrogate)


class _ValueWithGradientOf(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, surrogate: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor) -> tuple[None, Tensor]:
        (surrogate,) = ctx.saved_tensors
        return None, _FirstOrderOnly.apply(*grad_outputs, surrogate)


class _FirstOrderOnly(Function):
    """The identity of its first argument; depends on the second so that it always stands in the
    graph of a second derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad: Tensor, surrogate: Tensor) -> Tensor:
        return grad.clone()

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        pass

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:
        raise HigherOrderError(
            "Roulette gives first derivatives only: the derivative of its gradient estimate is no "
            "estimate of the second derivative. Use Exact(), or call eval() on a module whose "
            "logdet is ByMode(train=Roulette(), evaluate=Exact())."
        )
