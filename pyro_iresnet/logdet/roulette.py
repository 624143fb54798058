"""The whole power series, unbiased, by Russian roulette."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import ContractionError, check_instance, check_lipschitz, check_positive_int
from ..linear_maps import LinearMap, unpack
from ..linearization import Linearization
from ..torch_modes import disable_compiler, is_compiling, refuse_forward_mode, refuse_transforms
from .base import LogDet
from .probe import rademacher
from .reference import Expansion, MeanJacobian, Reference
from .surrogate import value_with_gradient_of
from .truncation import Adaptive, Truncation, pack, unpack_truncation


@dataclass(frozen=True)
class Roulette(LogDet):
    r"""The whole series, unbiased, by Russian roulette that each sample plays for itself.

    The log-determinant is expanded at a reference :math:`\bar J`, the same for the whole batch:

    .. math:: \log\det(I + J) = \log\det(I + \bar J)
              + \mathrm{tr}\big((I + \bar J)^{-1} (J - \bar J)\big) + \text{rest}

    where all but the rest is exact. With probes ``u``, :math:`v_k = (J^\top)^k u`,
    :math:`\bar v_k = (\bar J^\top)^k u`, :math:`z_k = \bar J^k u` and the weight :math:`w_k` that
    undoes the survival probabilities, the value of the rest is

    .. math:: \sum_{k \ge 2} \frac{(-1)^{k-1}}{k}\, w_k
              \big(u^\top (v_k - \bar v_k) - k\, (v_1 - \bar v_1)^\top z_{k-1}\big)

    and its gradient that of

    .. math:: \sum_{k \ge 1} (-1)^k\, w_k\, (v_k - \bar v_k)^\top (J u)

    with ``w, v`` held fixed: each is an unbiased estimate, of the log-determinant and of its
    gradient :math:`\mathrm{tr}((I + J)^{-1} dJ)`. With :math:`\bar J = 0` it is the plain series
    with an exact first trace. The gradient is not the derivative of the sampled value. Both come
    from the same products, and memory does not grow with the number of terms. Where the
    linearization does not know its trace, a probe gives it. First derivatives only.

    Arguments:
        truncation: how a sample decides to go on.
        probes: how many ``u`` to average over, at least 1.
        reference: what to expand at.

    Raises:
        ArgumentError, ArgumentTypeError: an argument out of range or of the wrong type.

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

    draws: ClassVar[bool] = True

    truncation: Truncation = Adaptive()  # noqa: RUF009  (frozen, so safe to share)
    probes: int = 1
    reference: Reference = MeanJacobian()  # noqa: RUF009

    def __post_init__(self) -> None:
        check_instance(self.truncation, Truncation, "truncation", "Adaptive(threshold=0.15)")
        check_instance(self.reference, Reference, "reference", "MeanJacobian()")
        check_positive_int(self.probes, "probes")

    def __call__(self, linearization: Linearization, *, lipschitz: float) -> Tensor:
        refuse_transforms("Roulette", linearization.value)
        refuse_forward_mode("Roulette", linearization.value)
        check_lipschitz(lipschitz)
        expansion = Expansion.of(linearization, self.reference)
        exact = expansion.exact
        series = Series(self.truncation, self.probes, exact is not None, lipschitz)
        with torch.no_grad():
            u, sampled, direction = series.sample(linearization, expansion.reference)
        if torch.is_grad_enabled() and linearization.value.requires_grad:
            # The gradient of sum_k (-1)^k w_k v_k . (J u) asks for one differentiable product.
            sampled = value_with_gradient_of(sampled, linearization.bilinear(direction, u))
        estimate = sampled.mean(0) if self.probes > 1 else sampled[0]
        return estimate if exact is None else estimate + exact


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

    def sample(
        self, linearization: Linearization, reference: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`run`; in a compiled graph as one opaque operation, since its length varies."""
        j, like, event_dim = linearization.jacobian, linearization.value, linearization.event_dim
        packed = j.packed() if is_compiling() else None
        truncation = pack(self.truncation) if is_compiling() else None
        if packed is None or truncation is None:
            return self.run(j, like, event_dim, reference)
        kinds, tensors = packed
        return _opaque_series(
            tensors,
            ",".join(kinds),
            like,
            event_dim,
            reference,
            *truncation,
            self.probes,
            self.first_is_exact,
            self.lipschitz,
        )

    @disable_compiler("its number of terms depends on the draws")
    def run(
        self, jacobian: LinearMap, like: Tensor, event_dim: int, reference: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The probes ``u``, the sampled rest, and the direction ``sum_k (-1)^k w_k (v_k - ...)``.

        Arguments:
            jacobian: one for each sample.
            like: has the shape ``(*batch, *event)`` of one probe for each sample.
            event_dim: how many trailing dimensions form one event.
            reference: the matrix expanded at, or None for 0.

        Returns:
            shapes ``(probes, *batch, *event)``, ``(probes, *batch)`` and as the first.
        """
        self.truncation.warn(self.lipschitz)
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
        value, direction = self._play(jacobian, flat, rows, reference)
        return u, value.reshape(shape[: len(shape) - event_dim]), direction.reshape(shape)

    def _play(
        self, jacobian: LinearMap, u: Tensor, rows: Tensor, reference: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        unit = math.sqrt(u.shape[1:].numel())
        column = (-1, *(1,) * (u.dim() - 1))
        alive = _Chains.start(jacobian, u, reference)
        direction = -alive.apart if self.first_is_exact else u - alive.apart
        value = u.new_zeros(len(u)) if self.first_is_exact else _dot(u, alive.v)
        weight = torch.ones_like(value)
        limit = self.truncation.longest(self.lipschitz)
        for k in range(1, limit + 1):
            if k > 1:
                sign = -1.0 if k % 2 else 1.0
                term = alive.step(k)
                value.index_add_(0, rows, weight * term, alpha=-sign / k)
                direction.index_add_(0, rows, alive.apart * weight.reshape(column), alpha=sign)
            if k < self.truncation.exact_terms:
                continue
            magnitude = alive.size().mul_(weight).div_(unit)
            survival = self.truncation.survival(k, magnitude).clamp(max=1.0)
            # A value that is not finite dies here, and stays visible in what was added above.
            lives = (torch.rand_like(survival) < survival) & (magnitude < math.inf)
            kept = torch.nonzero(lives).reshape(-1)
            if len(kept) == 0:
                return value, direction
            if len(kept) < len(rows):
                rows, weight, survival = rows[kept], weight[kept], survival[kept]
                alive.keep(kept)
            weight = weight / survival
        raise ContractionError(
            f"Russian roulette did not end within {limit} terms for {len(rows)} of {len(u)} "
            f"samples: the Jacobian of g has norm 1 or more there, where lipschitz "
            f"{self.lipschitz} was promised. Correct the bound, or use a norm strategy that proves "
            "it, such as Gram()."
        )


@dataclass
class _Chains:
    """The powers of J, and of the reference, on the probes of the samples that are alive.

    Arguments:
        jacobian: J of these samples.
        reference: the matrix expanded at and its transpose, shape ``(2, D, D)``, or None for 0.
        u: the probes.
        v: ``(J^T)^k u``.
        apart: what the gradient needs of term k: how far the two powers are apart. Not kept: it
            is made anew at every step.
        first: ``(J - reference)^T u``; None without a reference, as the next.
        back_forth: ``(reference^T)^k u`` and ``reference^k u``, shape ``(2, n, D)``.
    """

    jacobian: LinearMap
    reference: Tensor | None
    u: Tensor
    v: Tensor
    apart: Tensor
    first: Tensor | None = None
    back_forth: Tensor | None = None

    @classmethod
    def start(cls, jacobian: LinearMap, u: Tensor, reference: Tensor | None) -> "_Chains":
        """At k = 1."""
        v = jacobian.vm(u)
        if reference is None:
            return cls(jacobian, None, u, v, v)
        both = torch.stack([reference, reference.mT])
        back_forth = u @ both
        apart = v - back_forth[0]
        return cls(jacobian, both, u, v, apart, apart, back_forth)

    def step(self, k: int) -> Tensor:
        """On to k: the sampled term, without its sign, weight and ``1 / k``."""
        self.v = self.jacobian.vm(self.v)
        if self.reference is None or self.back_forth is None or self.first is None:
            self.apart = self.v
            return _dot(self.u, self.v)
        tangent = self.first * self.back_forth[1]
        self.back_forth = self.back_forth @ self.reference
        self.apart = self.v - self.back_forth[0]
        return torch.addcmul(tangent.mul_(-k), self.u, self.apart).sum(1)

    def size(self) -> Tensor:
        """A scale of the terms to come: they are 0 where it is."""
        if self.back_forth is None:
            return _norm(self.v)
        others = torch.linalg.vector_norm(self.back_forth, dim=2).amax(0)
        return torch.maximum(_norm(self.apart), others)

    def keep(self, index: Tensor) -> None:
        """Only these samples from here on."""
        self.jacobian = self.jacobian.select(index)
        self.u, self.v = self.u[index], self.v[index]
        if self.first is not None and self.back_forth is not None:
            self.first, self.back_forth = self.first[index], self.back_forth[:, index]


def _norm(a: Tensor) -> Tensor:
    return torch.linalg.vector_norm(a.flatten(1), dim=1)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)


@torch.library.custom_op("pyro_iresnet::roulette_series", mutates_args=())
def _opaque_series(
    tensors: list[Tensor],
    kinds: str,
    like: Tensor,
    event_dim: int,
    reference: Tensor | None,
    truncation: str,
    settings: list[float],
    probes: int,
    first_is_exact: bool,
    lipschitz: float,
) -> tuple[Tensor, Tensor, Tensor]:
    series = Series(unpack_truncation(truncation, settings), probes, first_is_exact, lipschitz)
    return series.run(unpack(kinds.split(","), tensors), like, event_dim, reference)


@_opaque_series.register_fake
def _(
    tensors: list[Tensor],
    kinds: str,
    like: Tensor,
    event_dim: int,
    reference: Tensor | None,
    truncation: str,
    settings: list[float],
    probes: int,
    first_is_exact: bool,
    lipschitz: float,
) -> tuple[Tensor, Tensor, Tensor]:
    del tensors, kinds, reference, truncation, settings, first_is_exact, lipschitz
    u = like.new_empty((probes, *like.shape))
    return u, like.new_empty(u.shape[: u.dim() - event_dim]), torch.empty_like(u)
