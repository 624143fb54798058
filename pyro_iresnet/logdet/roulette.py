"""The whole power series, unbiased, by Russian roulette."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ContractionError, check_instance, check_positive_int
from ..linear_maps import LinearMap, unpack
from ..linearization import Linearization
from ..torch_modes import disable_compiler, is_compiling, refuse_forward_mode, refuse_transforms
from .base import LogDet
from .probe import rademacher
from .surrogate import value_with_gradient_of
from .truncation import Adaptive, Truncation, pack, unpack_truncation


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
        if not is_compiling():
            self.truncation.warn(lipschitz)
        series = Series(self.truncation, self.probes, trace is not None, lipschitz)
        with torch.no_grad():
            u, sampled, direction = series.sample(linearization)
        if torch.is_grad_enabled() and linearization.value.requires_grad:
            # The gradient of sum_k (-1)^k w_k v_k . (J u) asks for one differentiable product.
            product = linearization.sum_event(direction * linearization.mv(u))
            sampled = value_with_gradient_of(sampled, product)
        estimate = sampled.mean(0) if self.probes > 1 else sampled[0]
        return estimate if trace is None else estimate + trace


@dataclass(frozen=True)
class Series:
    """The sampling of the series, without gradients.

    Arguments:
        truncation: how a sample decides to go on.
        probes: how many ``u`` for each sample.
        first_is_exact: whether the first term is known, and left out of value and direction.
        lipschitz: the bound of ``||J||_2`` that the contraction promises.
    """

    truncation: Truncation
    probes: int
    first_is_exact: bool
    lipschitz: float

    def sample(self, linearization: Linearization) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`run`; in a compiled graph as one opaque operation, since its length varies."""
        j, like, event_dim = linearization.jacobian, linearization.value, linearization.event_dim
        packed = j.packed() if is_compiling() else None
        if packed is None:
            return self.run(j, like, event_dim)
        kinds, tensors = packed
        return _opaque_series(
            tensors,
            ",".join(kinds),
            like,
            event_dim,
            *pack(self.truncation),
            self.probes,
            self.first_is_exact,
            self.lipschitz,
        )

    @disable_compiler("its number of terms depends on the draws")
    def run(
        self, jacobian: LinearMap, like: Tensor, event_dim: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The probes ``u``, the sampled series, and ``sum_k (-1)^k w_k v_k``.

        Arguments:
            jacobian: one for each sample.
            like: has the shape ``(*batch, *event)`` of one probe for each sample.
            event_dim: how many trailing dimensions form one event.

        Returns:
            shapes ``(probes, *batch, *event)``, ``(probes, *batch)`` and as the first.
        """
        shape = (self.probes, *like.shape)
        u = rademacher(shape, like)
        batch = like.shape[: like.dim() - event_dim]
        event = like.shape[like.dim() - event_dim :]
        count = batch.numel()
        flat = u.reshape(-1, *event)
        rows = torch.arange(len(flat), device=flat.device)
        if batch != rows.shape:
            # The probes of one sample lie a whole batch apart.
            jacobian = jacobian.select(rows % count if count else rows)
        value, direction = self._play(jacobian, flat, rows, event_dim)
        return u, value.reshape(shape[: len(shape) - event_dim]), direction.reshape(shape)

    def _play(
        self, jacobian: LinearMap, u: Tensor, rows: Tensor, event_dim: int
    ) -> tuple[Tensor, Tensor]:
        unit = math.sqrt(u.shape[1:].numel())
        column = (-1, *(1,) * event_dim)
        v = jacobian.vm(u)
        direction = -v if self.first_is_exact else u - v
        value = torch.zeros_like(u[:, 0]) if self.first_is_exact else _dot(u, v)
        start, weight = u, torch.ones_like(value)
        limit = self.truncation.longest(self.lipschitz)
        for k in range(1, limit + 1):
            if k > 1:
                sign = -1.0 if k % 2 else 1.0
                v = jacobian.vm(v)
                value.index_add_(0, rows, weight * _dot(start, v), alpha=-sign / k)
                direction.index_add_(0, rows, v * weight.reshape(column), alpha=sign)
            if k < self.truncation.exact_terms:
                continue
            magnitude = torch.linalg.vector_norm(v.flatten(1), dim=1).mul_(weight).div_(unit)
            survival = self.truncation.survival(k, magnitude)
            # A value that is not finite dies here, and stays visible in what was added above.
            lives = (torch.rand_like(survival) < survival) & (magnitude < math.inf)
            kept = torch.nonzero(lives).reshape(-1)
            if len(kept) == 0:
                return value, direction
            if len(kept) < len(rows):
                rows, start, v = rows[kept], start[kept], v[kept]
                weight, survival = weight[kept], survival[kept]
                jacobian = jacobian.select(kept)
            weight = weight / survival
        raise ContractionError(
            f"Russian roulette did not end within {limit} terms for {len(rows)} of {len(u)} "
            f"samples: the Jacobian of g has norm 1 or more there, where lipschitz "
            f"{self.lipschitz} was promised. Correct the bound, or use a norm strategy that proves "
            "it, such as Gram()."
        )


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)


@torch.library.custom_op("pyro_iresnet::roulette_series", mutates_args=())
def _opaque_series(
    tensors: list[Tensor],
    kinds: str,
    like: Tensor,
    event_dim: int,
    truncation: str,
    settings: list[float],
    probes: int,
    first_is_exact: bool,
    lipschitz: float,
) -> tuple[Tensor, Tensor, Tensor]:
    series = Series(unpack_truncation(truncation, settings), probes, first_is_exact, lipschitz)
    return series.run(unpack(kinds.split(","), tensors), like, event_dim)


@_opaque_series.register_fake
def _(
    tensors: list[Tensor],
    kinds: str,
    like: Tensor,
    event_dim: int,
    truncation: str,
    settings: list[float],
    probes: int,
    first_is_exact: bool,
    lipschitz: float,
) -> tuple[Tensor, Tensor, Tensor]:
    del tensors, kinds, truncation, settings, first_is_exact, lipschitz
    u = like.new_empty((probes, *like.shape))
    return u, like.new_empty(u.shape[: u.dim() - event_dim]), torch.empty_like(u)
