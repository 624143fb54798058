"""Kinds of columns: the values that a column may hold, and a function onto the real line."""

import math
import numbers
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.transforms import (
    ExpTransform,
    SigmoidTransform,
    Transform,
    identity_transform,
)

from ..errors import ArgumentError, ArgumentTypeError, check_instance, check_int

Values = NDArray[np.float64]

LARGEST = float(np.finfo(np.float64).max)


class AsinhTransform(Transform):
    """The elementwise asinh: linear near 0, and a logarithm with a sign far out."""

    domain = constraints.real
    codomain = constraints.real
    bijective = True

    def _call(self, x: Tensor) -> Tensor:
        return x.asinh()

    def _inverse(self, y: Tensor) -> Tensor:
        return y.sinh()

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        # The slope is 1 / cosh y; cosh itself would overflow.
        return math.log(2) - y.abs() - (-2 * y.abs()).exp().log1p()


LOGARITHM, LOGIT, ASINH = ExpTransform().inv, SigmoidTransform().inv, AsinhTransform()


class Column(ABC):
    """Kind of a column.

    A value x becomes ``f((x - a) / b)``, with f of :meth:`curve`, and a and b of :meth:`origin`.
    """

    # True if x stands for the interval [x, x + 1).
    is_integer: ClassVar[bool] = False

    @abstractmethod
    def curve(self) -> Transform:
        """Return f, which is monotonic and maps onto the real line."""

    @abstractmethod
    def origin(self, values: Values) -> tuple[float, float]:
        """Return a and b, by the values of the training rows if need be."""

    def range(self) -> tuple[float, float]:
        """Return the smallest and the largest value."""
        return -LARGEST, LARGEST

    def allowed(self, values: Values) -> NDArray[np.bool_]:
        """Return True for each value that the column may hold."""
        least, most = self.range()
        inside = (values >= least) & (values <= most)
        return inside & (values == np.floor(values)) if self.is_integer else inside


def _finite(value: float, name: str) -> float:
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    try:
        number = float(value) if is_number else math.nan
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ArgumentError(f"Expected {name} to be a finite number or None; got {value!r:.40}.")
    return number


@dataclass(frozen=True)
class _Limited(Column):
    """Numbers with a lower limit, an upper limit, both or none."""

    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        check = check_int if self.is_integer else _finite
        for name in ("low", "high"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, check(value, name))
        if self.low is not None and self.high is not None:
            if not self.low < self.high:
                raise ArgumentError(f"Expected low below high; got {self.low} and {self.high}.")
            if not math.isfinite(self.high - self.low):
                raise ArgumentError(
                    f"Expected limits whose distance a double holds; got {self.low} and "
                    f"{self.high}."
                )

    def curve(self) -> Transform:
        match self.low, self.high:
            case None, None:
                return identity_transform
            case _, None:
                return LOGARITHM
            case None, _:
                return LOGARITHM
            case _:
                return LOGIT

    def origin(self, values: Values) -> tuple[float, float]:
        # The interval of the largest integer ends at the next one.
        end = None if self.high is None else self.high + self.is_integer
        match self.low, end:
            case None, None:
                return (math.floor(np.median(values)) if self.is_integer else 0.0), 1.0
            case low, None:
                return low, 1.0
            case None, end:
                return end, -1.0
            case low, end:
                return low, end - low


@dataclass(frozen=True)
class Real(_Limited):
    """Real numbers, above ``low`` and below ``high`` where these are given.

    With one limit the logarithm of the distance to the limit is modelled, with two limits the logit
    of the share between them. A sample never lies outside.

    Arguments:
        low, high: the limits, which no value reaches; None for no limit.

    Raises:
        ArgumentError, ArgumentTypeError: a limit is no finite number, or ``low`` is not below
            ``high``.

    Example:
        >>> from pyro_iresnet.tables import Real
        >>> height, share = Real(low=0.0), Real(low=0.0, high=1.0)
    """

    def range(self) -> tuple[float, float]:
        least = -LARGEST if self.low is None else math.nextafter(self.low, math.inf)
        most = LARGEST if self.high is None else math.nextafter(self.high, -math.inf)
        return least, most


@dataclass(frozen=True)
class Integer(_Limited):
    r"""Integers, from ``low`` to ``high`` where these are given, such as counts and ratings.

    An integer x becomes x + u with u uniform in [0, 1), fresh for each batch, and the floor takes u
    away from a sample (Theis, van den Oord and Bethge, 2016). The probability of x is the integral
    of a density over [x, x + 1). The limits act as those of :class:`Real` do.

    Arguments:
        low, high: the smallest and the largest value; None for no limit.

    Raises:
        ArgumentError, ArgumentTypeError: a limit is no integer, or ``low`` is not below ``high``.

    Example:
        >>> from pyro_iresnet.tables import Integer
        >>> visits, rating = Integer(low=0), Integer(low=1, high=5)
    """

    is_integer: ClassVar[bool] = True
    low: int | None = None
    high: int | None = None

    def range(self) -> tuple[float, float]:
        return (
            -LARGEST if self.low is None else self.low,
            LARGEST if self.high is None else self.high,
        )


@dataclass(frozen=True)
class HeavyTailed(Column):
    r"""Real numbers with some far out on either side, such as returns and residuals.

    The column models :math:`\operatorname{asinh}((x - a) / b)`, with a the median of the training
    rows and b half the distance of the quartiles.

    Example:
        >>> from pyro_iresnet.tables import DensityEstimator, HeavyTailed
        >>> estimator = DensityEstimator(columns={"returns": HeavyTailed()})
    """

    def curve(self) -> Transform:
        return ASINH

    def origin(self, values: Values) -> tuple[float, float]:
        low, middle, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
        spread = 0.5 * (high - low)
        return middle, spread if spread > 0 else float(np.std(values))


@dataclass(frozen=True)
class Category(Column):
    """Labels without an order, such as text and True or False.

    The labels are those of the training rows. A label is modelled as its number, as an
    :class:`Integer` between two limits is.

    Arguments:
        labels: the labels in the order of their numbers; None for those of the training rows,
            sorted.

    Raises:
        ArgumentError, ArgumentTypeError: fewer than two labels, one of them twice, or no labels.

    Example:
        >>> from pyro_iresnet.tables import Category, DensityEstimator
        >>> estimator = DensityEstimator(columns={"species": Category()})
    """

    is_integer: ClassVar[bool] = True
    labels: tuple[Any, ...] | None = None

    def __post_init__(self) -> None:
        if self.labels is None:
            return
        kinds = str | bool | int | float | np.generic
        if not isinstance(self.labels, list | tuple) or not all(
            isinstance(label, kinds) for label in self.labels
        ):
            raise ArgumentTypeError(
                "Expected labels to be a tuple of text, numbers or True and False; got "
                f"{self.labels!r}."
            )
        # Scalars of NumPy are subclasses of float and str, and a file holds plain types only.
        plain = [v.item() if isinstance(v, np.generic) else v for v in self.labels]
        object.__setattr__(self, "labels", tuple(plain))
        if len(set(self.labels)) < max(2, len(self.labels)):
            raise ArgumentError(
                f"Expected labels to be two different ones or more; got {self.labels}."
            )

    def curve(self) -> Transform:
        return LOGIT

    def origin(self, values: Values) -> tuple[float, float]:
        return 0.0, float(len(self.labels or ()))

    def range(self) -> tuple[float, float]:
        return 0.0, len(self.labels or ()) - 1.0


def check_mapping(value: object, name: str, example: str) -> None:
    """Raise unless ``value`` is a dict or None; ``example`` shows a right one."""
    if value is not None and not isinstance(value, Mapping):
        raise ArgumentTypeError(f"Expected {name} to be a dict, such as {example}; got {value!r}.")


def check_columns(columns: Mapping[str, Column] | None) -> None:
    """Raise unless ``columns`` is a dict of kinds or None."""
    check_mapping(columns, "columns", "{'age': Integer(low=0)}")
    for name, kind in (columns or {}).items():
        check_instance(kind, Column, f"columns[{name!r}]", "Real(low=0.0)")
