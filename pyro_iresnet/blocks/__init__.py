"""Invertible blocks: bijections made of contractions."""

from .base import Block, Evaluation
from .cayley import CayleyBlock, CayleySeries
from .in_turn import evaluate_in_turn
from .residual import ResidualBlock

__all__ = [
    "Block",
    "CayleyBlock",
    "CayleySeries",
    "Evaluation",
    "ResidualBlock",
    "evaluate_in_turn",
]
