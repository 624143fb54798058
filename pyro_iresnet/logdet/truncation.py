"""When to end a random series: the survival probability of each term."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from ..errors import check_positive, check_positive_int


@dataclass(frozen=True)
class Truncation(ABC):
    """Russian roulette played by each sample after each term but the first ones.

    To write one, define :meth:`survival`. With the weight divided by the survival probability the
    series stays unbiased whatever the probabilities are; they only decide its cost and variance.

    Attributes:
        exact_terms: terms that are always taken.
    """

    exact_terms: int = 1

    def __post_init__(self) -> None:
        check_positive_int(self.exact_terms, "exact_terms")

    @abstractmethod
    def survival(self, term: int, magnitude: Tensor) -> Tensor:
        r"""The probability to go on after a term, in [0, 1].

        Arguments:
            term: the number of the term just taken, from 1.
            magnitude: :math:`w_k \lVert v_k \rVert / \sqrt{D}` of each sample, with the weight
                :math:`w_k` and :math:`v_k = (J^\top)^k u`; shape ``(n,)``.
        """


@dataclass(frozen=True)
class Adaptive(Truncation):
    r"""Survival that follows the term itself, as weight windows do in particle transport.

    .. math:: q_k = \min(1, m_k / \tau), \qquad m_k = w_k \lVert v_k \rVert / \sqrt{D}

    Terms above the threshold are all taken; below it, a survivor is lifted back to it. So no
    weighted term exceeds :math:`D \max(m_k, \tau) / k`, and the variance is finite for every
    contraction, where a fixed survival probability has infinite variance as soon as an eigenvalue
    of J exceeds its square root.

    Arguments:
        exact_terms: terms that are always taken, at least 1.
        threshold: :math:`\tau`, above 0; smaller costs more terms and has less variance.
    """

    threshold: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self.threshold, "threshold")

    def survival(self, term: int, magnitude: Tensor) -> Tensor:
        return (magnitude / self.threshold).clamp(max=1.0)
