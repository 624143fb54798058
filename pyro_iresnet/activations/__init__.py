"""Activations with a proven bound of their slope."""

from .base import Activation, Elementwise, Factors, make_activations
from .elementwise import ELU, LeakyReLU, Tanh
from .sine import Sine, auto_activation
from .sorting import GroupSort
from .swish import LipSwish

__all__ = [
    "ELU",
    "Activation",
    "Elementwise",
    "Factors",
    "GroupSort",
    "LeakyReLU",
    "LipSwish",
    "Sine",
    "Tanh",
    "auto_activation",
    "make_activations",
]
