"""Coordinates in which ``g`` acts and its bound holds: a linear metric, a nonlinear chart."""

from .base import Coordinates
from .build import coordinates
from .chart import Asinh, Chart
from .metric import Diagonal, Identity, Metric, Triangular

__all__ = [
    "Asinh",
    "Chart",
    "Coordinates",
    "Diagonal",
    "Identity",
    "Metric",
    "Triangular",
    "coordinates",
]
