"""Invertible blocks: bijections made of contractions."""

from .base import Block, Evaluation
from .cayley import CayleyBlock, CayleySeries
from .residual import ResidualBlock

__all__ = ["Block", "CayleyBlock", "CayleySeries", "Evaluation", "ResidualBlock"]
