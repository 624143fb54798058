"""The whole power series, unbiased, by Russian roulette."""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from .._torch import (
    disable_compiler,
    in_plain_autograd,
    is_compiling,
    refuse_forward_mode,
    refuse_transforms,
)
from ..errors import (
    check_instance,
    check_lipschitz,
    check_positive_int,
    store_checked,
)
from ..operators import Chain, Linearization, LinearMap, unpack
from ..operators.convolutional import ConvolutionalJacobian
from ..operators.perceptron import PerceptronJacobian
from .base import USE_EXACT, LogDet, refuse_call
from .control_variate import ControlVariate, Expansion, MeanJacobian
from .factored import FactoredDraws
from .packing import pack, qualified_name, subclass_named, unpack_truncation
from .powers import Powers
from .probe import rademacher
from .series import LogOnePlus, Series
from .surrogate import value_with_gradient_of
from .truncation import Adaptive, Subsample, Truncation, endless


@dataclass(frozen=True)
class Roulette(LogDet):
    r"""The whole series, unbiased, by Russian roulette that each sample plays for itself.

    The log-determinant :math:`\mathrm{tr} f(J)` is expanded at the matrix :math:`\bar J` of a
    control variate, the same for the whole batch:

    .. math:: \mathrm{tr} f(J) = \mathrm{tr} f(\bar J)
              + \mathrm{tr}\big(f'(\bar J)\, (J - \bar J)\big) + \text{rest}

    All but the rest is exact. With :math:`f(z) = \sum_k c_k z^k`, probes ``u``,
    :math:`v_k = (J^\top)^k u`, :math:`\bar v_k = (\bar J^\top)^k u`, :math:`z_k = \bar J^k u` and
    the weight :math:`w_k` that undoes the survival probabilities, the value of the rest is

    .. math:: \sum_{k \ge 2} c_k\, w_k
              \big(u^\top (v_k - \bar v_k) - k\, (v_1 - \bar v_1)^\top z_{k-1}\big)

    and its gradient is the gradient of

    .. math:: \sum_{k \ge 1} (k + 1)\, c_{k+1}\, w_k\, (v_k - \bar v_k)^\top (J u)

    with ``w, v`` held fixed. Each is an unbiased estimate: one of the log-determinant, one of its
    gradient :math:`\mathrm{tr}(f'(J)\, dJ)`. A residual block has :math:`f(z) = \log(1 + z)`. With
    :math:`\bar J = 0` the series is plain, with an exact first trace. The gradient is not the
    derivative of the sampled value. Both come from the same products, and memory does not grow with
    the number of terms. A linearization that does not know its trace takes the trace by a probe.
    First derivatives only.

    The default is for likelihoods: each sample plays for itself, with little variance. For training
    ``Roulette(Subsample(), control_variate=None)`` costs less, see :func:`auto_logdet`.

    Arguments:
        truncation: the probability that a sample goes on.
        probes: the number of probes ``u`` to average over, at least 1.
        control_variate: makes the matrix to expand at; None for 0.

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

    stochastic: ClassVar[bool] = True

    truncation: Truncation = Adaptive()  # noqa: RUF009  (frozen, so safe to share)
    probes: int = 1
    control_variate: ControlVariate | None = MeanJacobian()  # noqa: RUF009

    def __post_init__(self) -> None:
        check_instance(self.truncation, Truncation, "truncation", "Adaptive(threshold=0.15)")
        if self.control_variate is not None:
            check_instance(
                self.control_variate, ControlVariate, "control_variate", "MeanJacobian()"
            )
        store_checked(self, check_positive_int, "probes")

    def for_likelihood(self) -> "Roulette":
        if not isinstance(self.truncation, Subsample):
            return self
        return replace(self, truncation=Adaptive(), control_variate=MeanJacobian())

    def __call__(
        self,
        linearization: Linearization,
        *,
        lipschitz: float,
        series: Series = LogOnePlus(),  # noqa: B008  (frozen, so safe to share)
    ) -> Tensor:
        if not (isinstance(linearization, Linearization) and isinstance(series, Series)):
            refuse_call(linearization, series)
        refuse_transforms("Roulette", linearization.value, USE_EXACT)
        refuse_forward_mode("Roulette", linearization.value, USE_EXACT)
        check_lipschitz(lipschitz)
        if self.probes == 1 and self.control_variate is None and in_plain_autograd():
            a = linearization.jacobian
            maps = a.maps if isinstance(a, Chain) else ()
            j = PerceptronJacobian.of(maps) or ConvolutionalJacobian.of(maps)
            if j is not None:
                draws = FactoredDraws(self.truncation, lipschitz, series)
                return draws(j).reshape(linearization.batch_shape)
        expansion = Expansion.of(linearization, self.control_variate, series)
        exact = expansion.exact
        sampler = Sampler(self.truncation, self.probes, exact is not None, lipschitz, series)
        with torch.no_grad():
            u, sampled, direction = sampler.sample(linearization, expansion.matrix)
        if torch.is_grad_enabled() and linearization.value.requires_grad:
            # The gradient of the direction times J u takes one differentiable product.
            sampled = value_with_gradient_of(sampled, linearization.bilinear(direction, u))
        estimate = sampled.mean(0) if self.probes > 1 else sampled[0]
        return estimate if exact is None else estimate + exact


@dataclass(frozen=True)
class Sampler:
    """The sampling of a series, without gradients; other arguments as in :class:`Roulette`.

    ``first_is_exact`` is True if the first term is known, and left out of value and direction.
    ``lipschitz`` is the bound of ``||J||_2`` that the contraction promises.
    """

    truncation: Truncation
    probes: int
    first_is_exact: bool
    lipschitz: float
    series: Series

    def sample(
        self, linearization: Linearization, matrix: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sample as :meth:`run`; in a compiled graph as one opaque operation of varying length."""
        j, like, event_dim = linearization.jacobian, linearization.value, linearization.event_dim
        packed = j.packed() if is_compiling() else None
        truncation = pack(self.truncation) if is_compiling() else None
        if packed is None or truncation is None:
            return self.run(j, like, event_dim, matrix)
        kinds, tensors = packed
        return _opaque_series(
            tensors,
            ",".join(kinds),
            like,
            event_dim,
            matrix,
            *truncation,
            self.probes,
            self.first_is_exact,
            self.lipschitz,
            qualified_name(type(self.series)),
        )

    @disable_compiler("its number of terms depends on the draws")
    def run(
        self, jacobian: LinearMap, like: Tensor, event_dim: int, matrix: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        r"""Draw the probes, the sampled rest and its direction.

        The direction is :math:`\sum_k (k + 1)\, c_{k+1}\, w_k\, (v_k - \bar v_k)`. Shapes are
        ``(probes, *batch, *event)`` of probes and direction, ``(probes, *batch)`` of the rest, with
        ``(*batch, *event)`` the shape of ``like``. ``matrix`` is the matrix to expand at, or None
        for 0.
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
        value, direction = self._play(jacobian, flat, rows, matrix)
        return u, value.reshape(shape[: len(shape) - event_dim]), direction.reshape(shape)

    def _play(
        self, jacobian: LinearMap, u: Tensor, rows: Tensor, matrix: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        unit = math.sqrt(u.shape[1:].numel())
        column = (-1, *(1,) * (u.dim() - 1))
        series = self.series
        alive = Powers.start(jacobian, u, matrix)
        direction = series.slope_coefficient(1) * alive.apart
        value = u.new_zeros(len(u))
        if not self.first_is_exact:
            direction = direction + series.coefficient(1) * u
            value = series.coefficient(1) * (u * alive.v).flatten(1).sum(1)
        weight = torch.ones_like(value)
        for k in self.truncation.terms(self.lipschitz):
            if k > 1:
                term = alive.step(k)
                value.index_add_(0, rows, weight * term, alpha=series.coefficient(k))
                apart = alive.apart * weight.reshape(column)
                direction.index_add_(0, rows, apart, alpha=series.slope_coefficient(k))
            if k < self.truncation.exact_terms:
                continue
            magnitude = alive.size().mul_(weight).div_(unit)
            played = self.truncation.play(k, magnitude)
            if played is None:
                continue
            kept, factor = played
            if len(kept) == 0:
                return value, direction
            if len(kept) < len(rows):
                rows, weight = rows[kept], weight[kept]
                alive.keep(kept)
            weight = weight * factor
        raise endless(self.truncation, len(rows), len(u), self.lipschitz)


# Older releases of torch read no schema from annotations such as list[Tensor].
SCHEMA = (
    "(Tensor[] tensors, str kinds, Tensor like, int event_dim, Tensor? matrix, str truncation, "
    "float[] settings, int probes, bool first_is_exact, float lipschitz, str series) "
    "-> (Tensor, Tensor, Tensor)"
)


@torch.library.custom_op("pyro_iresnet::roulette_series", mutates_args=(), schema=SCHEMA)
def _opaque_series(
    tensors: list[Tensor],
    kinds: str,
    like: Tensor,
    event_dim: int,
    matrix: Tensor | None,
    truncation: str,
    settings: list[float],
    probes: int,
    first_is_exact: bool,
    lipschitz: float,
    series: str,
) -> tuple[Tensor, Tensor, Tensor]:
    sampler = Sampler(
        truncation=unpack_truncation(truncation, settings),
        probes=probes,
        first_is_exact=first_is_exact,
        lipschitz=lipschitz,
        series=subclass_named(Series, series)(),
    )
    return sampler.run(unpack(kinds.split(","), tensors), like, event_dim, matrix)


@_opaque_series.register_fake
def _(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    _, _, like, event_dim, _, _, _, probes, *_ = arguments
    u = like.new_empty((probes, *like.shape))
    return u, like.new_empty(u.shape[: u.dim() - event_dim]), torch.empty_like(u)
