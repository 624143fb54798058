"""Coordinates in which ``g`` acts and its bound holds: linear scales, a nonlinear scale."""

from .asinh import Asinh
from .base import CoordinateMap, Coordinates, build
from .scale import DiagonalScale, TriangularScale

__all__ = ["Asinh", "CoordinateMap", "Coordinates", "DiagonalScale", "TriangularScale", "build"]
