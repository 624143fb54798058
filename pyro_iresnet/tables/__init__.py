"""Density estimation of tables, in the units of the table: needs the extra ``train``."""

from .columns import Category, Column, HeavyTailed, Integer, Real
from .estimator import DensityEstimator

__all__ = ["Category", "Column", "DensityEstimator", "HeavyTailed", "Integer", "Real"]
