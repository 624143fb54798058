"""Base class of the estimators of ``log|det dy/dx|``, and the choice by mode."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, NoReturn

from torch import Tensor

from ..errors import ArgumentError, check_instance
from ..operators import Linearization
from .series import LogOnePlus, Series


@dataclass(frozen=True)
class LogDet(ABC):
    """Base class of estimators of ``log|det(I + J)|``, or of its exact value.

    To write one, define :meth:`__call__` in a frozen dataclass of settings, without a network. It
    returns an estimate of the log-determinant itself, not only a number with the right gradient.
    Set ``stochastic = True`` if each call draws at random.

    Example:
        >>> import torch
        >>> from dataclasses import dataclass
        >>> from pyro_iresnet import iresnet
        >>> from pyro_iresnet.logdet import LogDet
        >>> @dataclass(frozen=True)
        ... class FirstTerm(LogDet):
        ...     def __call__(self, linearization, *, lipschitz, series):
        ...         trace = linearization.as_matrix().diagonal(dim1=-2, dim2=-1).sum(-1)
        ...         return series.coefficient(1) * trace
        >>> transform = iresnet(3, logdet=FirstTerm())
        >>> x = torch.zeros(5, 3)
        >>> transform.log_abs_det_jacobian(x, transform(x)).shape
        torch.Size([5])
    """

    stochastic: ClassVar[bool] = False

    @abstractmethod
    def __call__(
        self,
        linearization: Linearization,
        *,
        lipschitz: float,
        series: Series = LogOnePlus(),  # noqa: B008  (frozen, so safe to share)
    ) -> Tensor:
        """Estimate the log-determinant of each sample, shape ``(*batch,)``.

        Arguments:
            linearization: ``g`` at a point.
            lipschitz: the bound of ``||J||_2`` that the contraction promises.
            series: the log-determinant as a function of ``J``; by default that of ``x + g(x)``.
        """

    def for_mode(self, training: bool) -> "LogDet":
        """Return the estimator that acts in train mode, or in eval mode: by default itself."""
        return self

    def for_likelihood(self) -> "LogDet":
        """Return an estimator of the same number with independent samples: by default itself."""
        return self

    def with_seed(self, seed: int) -> "LogDet":
        """Return the estimator with other fixed probes; itself if it has none."""
        return self


@dataclass(frozen=True)
class ByMode(LogDet):
    """One estimator in train mode, another in eval mode of the block that holds it.

    Training needs a cheap unbiased estimate. Evaluation, MCMC and importance weights need a
    deterministic value. The pair itself takes no call: :meth:`for_mode` returns one estimator.

    Arguments:
        train, evaluate: the :class:`LogDet` of each mode.

    Raises:
        ArgumentTypeError: ``train`` or ``evaluate`` is no :class:`LogDet`.

    Example:
        >>> from pyro_iresnet import ByMode, Exact, Roulette
        >>> logdet = ByMode(train=Roulette(), evaluate=Exact())
    """

    train: LogDet
    evaluate: LogDet

    def __post_init__(self) -> None:
        train = check_instance(self.train, LogDet, "train", "Roulette()")
        evaluate = check_instance(self.evaluate, LogDet, "evaluate", "Exact()")
        # Of a pair of estimators within the pair, one alone can act.
        object.__setattr__(self, "train", train.for_mode(True))
        object.__setattr__(self, "evaluate", evaluate.for_mode(False))

    def __call__(
        self,
        linearization: Linearization,
        *,
        lipschitz: float,
        series: Series = LogOnePlus(),  # noqa: B008
    ) -> NoReturn:
        raise ArgumentError(
            f"Expected logdet to be the estimator of one mode; got {type(self).__name__}, of two "
            "modes. Call logdet.for_mode(True) or logdet.for_mode(False)."
        )

    def for_mode(self, training: bool) -> LogDet:
        return self.train if training else self.evaluate

    def for_likelihood(self) -> "ByMode":
        train, evaluate = self.train.for_likelihood(), self.evaluate.for_likelihood()
        return replace(self, train=train, evaluate=evaluate)

    def with_seed(self, seed: int) -> "ByMode":
        train, evaluate = self.train.with_seed(seed), self.evaluate.with_seed(seed)
        return replace(self, train=train, evaluate=evaluate)


# The end of advice where an estimator cannot run.
USE_EXACT = ", or use Exact() for the log-determinant"


def refuse_call(linearization: object, series: object) -> None:
    """Raise unless an estimator was called with a linearization and a series."""
    example = "contraction.linearize(x)"
    check_instance(linearization, Linearization, "linearization", example)
    check_instance(series, Series, "series", "LogOnePlus()")
