"""What an estimator of ``log|det(I + J)|`` is, and the choice of one."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..errors import check_instance
from ..linearization import Linearization


@dataclass(frozen=True)
class LogDet(ABC):
    """An estimator of ``log|det(I + J)|``, or its exact value.

    To write one, define :meth:`__call__`. It holds settings and no network, so it is a frozen
    dataclass. What it returns is an estimate of the log-determinant itself, not only something
    with the right gradient. One that draws at random in each call says so by ``draws = True``.

    Example:
        >>> import torch
        >>> from dataclasses import dataclass
        >>> from pyro_iresnet import LogDet, iresnet
        >>> @dataclass(frozen=True)
        ... class FirstTerm(LogDet):
        ...     def __call__(self, linearization, *, lipschitz):
        ...         return linearization.as_matrix().diagonal(dim1=-2, dim2=-1).sum(-1)
        >>> transform = iresnet(3, logdet=FirstTerm())
        >>> x = torch.zeros(5, 3)
        >>> transform.log_abs_det_jacobian(x, transform(x)).shape
        torch.Size([5])
    """

    draws: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, linearization: Linearization, *, lipschitz: float) -> Tensor:
        """The log-determinant of each sample.

        Arguments:
            linearization: ``g`` at ``x``.
            lipschitz: the bound of ``||J||_2`` that the contraction promises.

        Returns:
            shape ``(*batch,)``.
        """

    def for_mode(self, training: bool) -> "LogDet":
        """The estimator that acts in train or in eval mode: this one in both."""
        return self

    def with_seed(self, seed: int) -> "LogDet":
        """The same estimator with other fixed probes, where it has such; else itself."""
        return self


@dataclass(frozen=True)
class ByMode(LogDet):
    """One estimator in train mode, another in eval mode of the block that holds it.

    Training wants an unbiased estimate that is cheap; evaluation, MCMC and importance weights want
    a deterministic value.

    Arguments:
        train: the estimator in train mode.
        evaluate: the estimator in eval mode.

    Raises:
        ArgumentTypeError: ``train`` or ``evaluate`` is no :class:`LogDet`.

    Example:
        >>> from pyro_iresnet import ByMode, Exact, Roulette
        >>> logdet = ByMode(train=Roulette(), evaluate=Exact())
    """

    train: LogDet
    evaluate: LogDet

    def __post_init__(self) -> None:
        check_instance(self.train, LogDet, "train", "Roulette()")
        check_instance(self.evaluate, LogDet, "evaluate", "Exact()")

    def __call__(self, linearization: Linearization, *, lipschitz: float) -> Tensor:
        return self.evaluate(linearization, lipschitz=lipschitz)

    def for_mode(self, training: bool) -> LogDet:
        return (self.train if training else self.evaluate).for_mode(training)

    def with_seed(self, seed: int) -> "ByMode":
        return ByMode(self.train.with_seed(seed), self.evaluate.with_seed(seed))
