"""Estimators of ``log|det dy/dx|``: exact, truncated series, unbiased roulette."""

from .auto import auto_logdet
from .base import ByMode, LogDet
from .control_variate import ControlVariate, MeanJacobian
from .exact import Exact
from .roulette import Roulette
from .series import LogOnePlus, Series
from .truncated import ConvergedSeries, PowerSeries
from .truncation import Adaptive, Geometric, Subsample, Truncation

__all__ = [
    "Adaptive",
    "ByMode",
    "ControlVariate",
    "ConvergedSeries",
    "Exact",
    "Geometric",
    "LogDet",
    "LogOnePlus",
    "MeanJacobian",
    "PowerSeries",
    "Roulette",
    "Series",
    "Subsample",
    "Truncation",
    "auto_logdet",
]
