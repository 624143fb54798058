"""Truncations of a random series: the survival probability of each term."""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import (
    ContractionError,
    VarianceWarning,
    check_positive,
    check_positive_int,
    check_probability,
    store_checked,
)


class Truncation(ABC):
    """Base class of Russian roulette, played by each sample after each term but the first ones.

    To write one, define :meth:`survival` in a frozen dataclass whose fields are numbers, so that a
    compiled graph can hold it. The weight of a term is divided by the survival probability, so the
    series is unbiased for every choice of probabilities. The probabilities decide only the cost
    and the variance.

    Attributes:
        exact_terms: the number of terms that are always taken, at least 1.

    Example:
        >>> import torch
        >>> from dataclasses import dataclass
        >>> from pyro_iresnet import Roulette
        >>> from pyro_iresnet.logdet import Truncation
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
        r"""Return the probability to go on after a term, in [0, 1], shape ``(n,)``.

        Arguments:
            term: the number of the term just taken, from 1; at least ``exact_terms``.
            magnitude: :math:`w_k \lVert v_k \rVert / \sqrt{D}` of each sample, with the weight
                :math:`w_k` and :math:`v_k = (J^\top)^k u`; shape ``(n,)``.
        """

    def play(self, term: int, magnitude: Tensor) -> tuple[Tensor, Tensor | float] | None:
        """Draw the samples that go on after a term; return their positions, and weight factors.

        Arguments are those of :meth:`survival`. The positions increase; a number is the factor of
        all. None if all go on with their weights. A sample whose magnitude is not finite ends.
        """
        survival = self.survival(term, magnitude).clamp(max=1.0).expand_as(magnitude)
        lives = (torch.rand_like(survival) < survival) & (magnitude < math.inf)
        kept = lives.nonzero().reshape(-1)
        return kept, 1 / survival[kept]

    def warn(self, lipschitz: float) -> None:  # noqa: B027  (most have nothing to say)
        """Warn if the variance is infinite, or may be, for ``||J||_2`` up to ``lipschitz``."""

    def terms(self, lipschitz: float) -> Iterator[int]:
        """Count the terms from 1 to :meth:`max_terms`, which is worked out for long series only."""
        few = self._usual_terms(lipschitz)
        yield from range(1, few + 1)
        yield from range(few + 1, self.max_terms(lipschitz) + 1)

    def max_terms(self, lipschitz: float) -> int:
        r"""Return a number of terms that a true contraction exceeds only by a freak chance.

        The chance is that of a sample with the largest magnitudes, where
        :math:`\lVert v_k \rVert = L^k \sqrt{D}`.
        """
        usual = self._usual_terms(lipschitz)
        log_chance, weight, most = 0.0, 1.0, 10 * usual + 10_000
        for term in range(self.exact_terms, most):
            magnitude = torch.tensor([weight * lipschitz**term], dtype=torch.float64)
            survival = min(1.0, self.survival(term, magnitude).item())
            log_chance += math.log(survival) if survival > 0 else -math.inf
            if log_chance < -SURELY_ENDED:
                return max(term, usual)
            weight /= survival
        return most

    def _usual_terms(self, lipschitz: float) -> int:
        return self.exact_terms + math.ceil(SURELY_ENDED / -math.log(lipschitz))


# A chance below e^-100 is none.
SURELY_ENDED = 100.0


@dataclass(frozen=True)
class Adaptive(Truncation):
    r"""A survival probability that follows the term, as weight windows do in particle transport.

    .. math:: q_k = \min(1, m_k / \tau), \qquad m_k = w_k \lVert v_k \rVert / \sqrt{D}

    Every term above the threshold is taken. Below the threshold, the weight lifts a surviving term
    back to the threshold. So no weighted term exceeds :math:`D \max(m_k, \tau) / k`, and the
    variance is finite for every contraction. A fixed survival probability has infinite variance
    once an eigenvalue of J exceeds its square root.

    Arguments:
        threshold: :math:`\tau`, above 0; a smaller one takes more terms and has less variance.
        exact_terms: the number of terms that are always taken, at least 1. Another value of either
            raises :class:`ArgumentError` or :class:`ArgumentTypeError`.

    Raises:
        ArgumentError, ArgumentTypeError: an argument out of range or no number.

    Example:
        >>> Adaptive(0.5).survival(1, torch.tensor([0.1, 2.0]))
        tensor([0.2000, 1.0000])
    """

    threshold: float = 0.15
    exact_terms: int = 1

    def __post_init__(self) -> None:
        store_checked(self, check_positive_int, "exact_terms")
        store_checked(self, check_positive, "threshold")

    def survival(self, term: int, magnitude: Tensor) -> Tensor:
        return (magnitude / self.threshold).clamp_(max=1.0)


# A smaller cut of a batch would cost more than the products that it saves.
HALF = 0.5


@dataclass(frozen=True)
class Subsample(Adaptive):
    r"""A random part of the batch goes on, as large as the batch's largest weighted term asks.

    .. math:: q_k = \min\big(1, \max_i m_{k,i} / \tau\big), \qquad
              m_k = w_k \lVert v_k \rVert / \sqrt{D}

    With :math:`q_k \le 1/2`, :math:`\lceil q_k n \rceil` of ``n`` samples go on after term k, drawn
    at random without replacement, with the weight of the samples that end. With a larger share all
    go on. With :math:`q_k n < 1` one sample goes on, with probability :math:`q_k n`. As under
    :class:`Adaptive`, no weighted term exceeds :math:`D \max(m_k, \tau) / k`, so the variance is
    finite for every contraction. The samples of one call are not independent, so the spread over a
    batch is no measure of the error.

    Arguments:
        threshold: :math:`\tau`, as in :class:`Adaptive`.
        exact_terms: as in :class:`Adaptive`, with the same errors.

    Raises:
        ArgumentError, ArgumentTypeError: an argument out of range or no number.

    Example:
        >>> kept, factor = Subsample(0.5).play(1, torch.tensor([0.1, 0.2, 0.25, 0.2]))
        >>> len(kept), factor
        (2, 2.0)
    """

    threshold: float = 0.5

    def play(self, term: int, magnitude: Tensor) -> tuple[Tensor, Tensor | float] | None:
        largest = magnitude.max().item() if len(magnitude) else 0.0
        share = largest / self.threshold
        if HALF < share < math.inf:
            return None
        alive = (magnitude < math.inf).nonzero().reshape(-1)
        n = len(alive)
        if n < len(magnitude):
            share = magnitude[alive].max().item() / self.threshold if n else 0.0
        if share > HALF:
            return alive, 1.0
        size = math.ceil(share * n)
        factor = n / max(size, 1)
        if share * n < 1:
            size = int(torch.rand((), dtype=torch.float64).item() < share * n)
            factor = 1 / max(share, torch.finfo(magnitude.dtype).tiny)
        kept = torch.randperm(n, device=alive.device)[:size].sort().values
        return alive[kept], factor


@dataclass(frozen=True)
class Geometric(Truncation):
    r"""A geometric number of terms, as in the published residual flows, for comparison.

    Each sample goes on with probability :math:`q = 1 - p`. The variance is infinite once an
    eigenvalue of J has :math:`|\lambda|^2 \ge q`, so :math:`L^2 \ge q` gives a warning.
    :class:`Adaptive` has finite variance for every contraction.

    Arguments:
        p: the probability to end after each further term, in (0, 1).
        exact_terms: as in :class:`Adaptive`, with the same errors.

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
        store_checked(self, check_positive_int, "exact_terms")
        store_checked(self, check_probability, "p")

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


def endless(truncation: Truncation, alive: int, samples: int, lipschitz: float) -> ContractionError:
    """Make the error of a series that did not end within the most terms of a true contraction."""
    return ContractionError(
        f"Russian roulette did not end within {truncation.max_terms(lipschitz)} terms for {alive} "
        f"of {samples} samples: there the norm of the Jacobian of g is above lipschitz = "
        f"{lipschitz}, which was promised. Correct the bound, or use a norm strategy that proves "
        "it, such as Gram()."
    )
