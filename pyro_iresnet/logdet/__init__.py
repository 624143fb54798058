"""Estimators of ``log|det(I + J)|``: exact, truncated series, unbiased roulette."""

from .auto import auto_logdet
from .base import ByMode, LogDet
from .exact import Exact
from .reference import MeanJacobian, Reference, Zero
from .roulette import Roulette
from .series import ConvergedSeries, PowerSeries
from .truncation import Adaptive, Geometric, Poisson, Truncation

__all__ = [
    "Adaptive",
    "ByMode",
    "ConvergedSeries",
    "Exact",
    "Geometric",
    "LogDet",
    "MeanJacobian",
    "Poisson",
    "PowerSeries",
    "Reference",
    "Roulette",
    "Truncation",
    "Zero",
    "auto_logdet",
]
