"""When to end a random series: the survival probability of each term."""

import math
import warnings
from abc import ABC, abstractmethod
from dataclasses import Field, dataclass

import torch
from torch import Tensor

from ..errors import VarianceWarning, check_positive, check_positive_int, check_probability


class Truncation(ABC):
    """Russian roulette played by each sample after each term but the first ones.

    To write one, define :meth:`survival`. With the weight divided by the survival probability the
    series stays unbiased whatever the probabilities are; they only decide its cost and variance.
    Make it a frozen dataclass whose fields are numbers, so that a compiled graph can hold it.

    Attributes:
        exact_terms: terms that are always taken, at least 1.

    Example:
        >>> import torch
        >>> from dataclasses import dataclass
        >>> from pyro_iresnet import Roulette, Truncation
        >>> @dataclass(frozen=True)
        ... class Half(Truncation):
        ...     exact_terms: int = 4
        ...     def survival(self, term, magnitude):
        ...         return torch.full_like(magnitude, 0.5)
        >>> logdet = Roulette(truncation=Half())
    """

    exact_terms: int

    @abstractmethod
    def survival(self, term: int, magnitude: Tensor) -> Tensor:
        r"""The probability to go on after a term, in [0, 1].

        Arguments:
            term: the number of the term just taken, from 1; at least ``exact_terms``.
            magnitude: :math:`w_k \lVert v_k \rVert / \sqrt{D}` of each sample, with the weight
                :math:`w_k` and :math:`v_k = (J^\top)^k u`; shape ``(n,)``.

        Returns:
            shape ``(n,)``.
        """

    def warn(self, lipschitz: float) -> None:  # noqa: B027  (most have nothing to say)
        """Warn where the variance is infinite, or may be, for ``||J||_2`` up to ``lipschitz``."""

    def longest(self, lipschitz: float) -> int:
        """A number of terms that no sample of a true contraction exceeds but by a freak chance."""
        return self.exact_terms + math.ceil(SURELY_ENDED / -math.log(lipschitz))


# A true contraction outlives -log(L) k = 100 under Adaptive with a chance below e^-98.
SURELY_ENDED = 100.0


@dataclass(frozen=True)
class Adaptive(Truncation):
    r"""Survival that follows the term itself, as weight windows do in particle transport.

    .. math:: q_k = \min(1, m_k / \tau), \qquad m_k = w_k \lVert v_k \rVert / \sqrt{D}

    Terms above the threshold are all taken; below it, a survivor is lifted back to it. So no
    weighted term exceeds :math:`D \max(m_k, \tau) / k`, and the variance is finite for every
    contraction, where a fixed survival probability has infinite variance as soon as an eigenvalue
    of J exceeds its square root.

    Arguments:
        threshold: :math:`\tau`, above 0; smaller costs more terms and has less variance.
        exact_terms: terms that are always taken, at least 1.

    Raises:
        ArgumentError, ArgumentTypeError: an argument out of range or no number.

    Example:
        >>> Adaptive(0.5).survival(1, torch.tensor([0.1, 2.0]))
        tensor([0.2000, 1.0000])
    """

    threshold: float = 0.15
    exact_terms: int = 1

    def __post_init__(self) -> None:
        check_positive_int(self.exact_terms, "exact_terms")
        check_positive(self.threshold, "threshold")

    def survival(self, term: int, magnitude: Tensor) -> Tensor:
        return (magnitude / self.threshold).clamp_(max=1.0)

    def longest(self, lipschitz: float) -> int:
        # Above the threshold no term is left out.
        certain = max(0.0, math.log(self.threshold) / math.log(lipschitz))
        return super().longest(lipschitz) + math.ceil(certain)


@dataclass(frozen=True)
class Geometric(Truncation):
    r"""A geometric number of terms: the choice of the published residual flows, for comparison.

    Each sample goes on with probability :math:`q = 1 - p`. The variance is infinite as soon as an
    eigenvalue of J has :math:`|\lambda|^2 \ge q`, so a warning says so where :math:`L^2 \ge q`.
    :class:`Adaptive` has finite variance for every contraction.

    Arguments:
        p: the probability to end after each further term, in (0, 1).
        exact_terms: terms that are always taken, at least 1.

    Raises:
        ArgumentError, ArgumentTypeError: an argument out of range or no number.

    References:
        Residual Flows for Invertible Generative Modeling (Chen et al., 2019), Section 3.1.

    Example:
        >>> Geometric(p=0.25).survival(3, torch.tensor([0.1, 2.0]))
        tensor([0.7500, 0.7500])
    """

    p: float = 0.5
    exact_terms: int = 2

    def __post_init__(self) -> None:
        check_positive_int(self.exact_terms, "exact_terms")
        check_probability(self.p, "p")

    def survival(self, term: int, magnitude: Tensor) -> Tensor:
        return torch.full_like(magnitude, 1 - self.p)

    def warn(self, lipschitz: float) -> None:
        if lipschitz**2 >= 1 - self.p:
            warnings.warn(
                f"Geometric(p={self.p}) has infinite variance where an eigenvalue of J reaches "
                f"{math.sqrt(1 - self.p):.3f}, and lipschitz {lipschitz} allows that: "
                f"{lipschitz}^2 = {lipschitz**2:.3f} is at least the survival probability "
                f"{1 - self.p:.3f}. Use Adaptive(), or p below {1 - lipschitz**2:.3f}.",
                VarianceWarning,
                stacklevel=2,
            )

    def longest(self, lipschitz: float) -> int:
        return self.exact_terms + math.ceil(SURELY_ENDED / -math.log1p(-self.p))


@dataclass(frozen=True)
class Poisson(Truncation):
    r"""A Poisson number of further terms, as also published: infinite variance, always.

    The chance to reach term k falls like :math:`r^k / k!`, faster than any power of an eigenvalue
    of J, so the variance is infinite for every J that is not nilpotent; a warning says so.
    :class:`Adaptive` has finite variance for every contraction.

    Arguments:
        rate: the mean number of further terms, above 0.
        exact_terms: terms that are always taken, at least 1.

    Raises:
        ArgumentError, ArgumentTypeError: an argument out of range or no number.

    References:
        Residual Flows for Invertible Generative Modeling (Chen et al., 2019), Appendix.

    Example:
        >>> Poisson(rate=2.0, exact_terms=1).survival(1, torch.tensor([1.0]))
        tensor([0.8647])
    """

    rate: float = 2.0
    exact_terms: int = 2

    def __post_init__(self) -> None:
        check_positive_int(self.exact_terms, "exact_terms")
        check_positive(self.rate, "rate")

    def survival(self, term: int, magnitude: Tensor) -> Tensor:
        # P(N > n | N >= n) = 1 - 1 / h with h = P(N >= n) / P(N = n), summed from its tail.
        taken = term - self.exact_terms
        tail = 0.0
        for i in range(taken + 1 + math.ceil(self.rate) + 40, taken, -1):
            tail = (1 + tail) * self.rate / i
        # The tail overflows at rates of some hundreds, where the chance to go on is 1.
        return torch.full_like(magnitude, tail / (1 + tail) if tail < 1 else 1 / (1 + 1 / tail))

    def warn(self, lipschitz: float) -> None:
        warnings.warn(
            f"Poisson(rate={self.rate}) has infinite variance for every J that is not nilpotent, "
            f"here with ||J|| up to {lipschitz}: the chance to reach term k falls like "
            f"{self.rate}^k / k!, faster than any power of an eigenvalue. Use Adaptive().",
            VarianceWarning,
            stacklevel=2,
        )

    def longest(self, lipschitz: float) -> int:
        # P(N >= n) <= (e r / n)^n, which is below e^-100 from here on.
        return self.exact_terms + math.ceil(math.e**2 * self.rate + SURELY_ENDED)


def pack(truncation: Truncation) -> tuple[str, list[float]] | None:
    """A truncation as the name of its class and its fields, as :func:`unpack_truncation` takes
    them; None if it is no dataclass of numbers."""
    values = [getattr(truncation, f.name) for f in _fields(type(truncation))]
    if not values or not all(isinstance(value, int | float) for value in values):
        return None
    return _name(type(truncation)), [float(value) for value in values]


def unpack_truncation(name: str, settings: list[float]) -> Truncation:
    """The truncation that :func:`pack` took apart."""
    kinds, found = [Truncation], {}
    while kinds:
        for kind in kinds.pop().__subclasses__():
            kinds.append(kind)
            found[_name(kind)] = kind
    whole = [f.type in (int, "int") for f in _fields(found[name])]
    values = [int(v) if w else v for v, w in zip(settings, whole, strict=True)]
    return found[name](*values)


def _name(kind: type[Truncation]) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _fields(kind: type[Truncation]) -> list[Field]:
    return list(getattr(kind, "__dataclass_fields__", {}).values())
