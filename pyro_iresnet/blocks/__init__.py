"""Invertible blocks: bijections made of contractions."""

from .base import Block, Evaluation
from .cayley import CayleyBlock, CayleySeries
from .packed import pack_blocks
from .residual import ResidualBlock

__all__ = ["Block", "CayleyBlock", "CayleySeries", "Evaluation", "ResidualBlock", "pack_blocks"]
