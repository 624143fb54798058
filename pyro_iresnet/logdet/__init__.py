"""Estimators of ``log|det(I + J)|``: exact, truncated series, unbiased roulette."""

from .auto import auto_logdet
from .base import ByMode, LogDet
from .exact import Exact
from .series import PowerSeries, Roulette
from .truncation import Adaptive, Truncation

__all__ = [
    "Adaptive",
    "ByMode",
    "Exact",
    "LogDet",
    "PowerSeries",
    "Roulette",
    "Truncation",
    "auto_logdet",
]
