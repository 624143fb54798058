"""Activations with a proven bound of their slope."""

from .base import Activation, Factors, make_activations
from .elementwise import ELU, Tanh
from .sine import Sine, auto_activation
from .swish import LipSwish

__all__ = [
    "ELU",
    "Activation",
    "Factors",
    "LipSwish",
    "Sine",
    "Tanh",
    "auto_activation",
    "make_activations",
]
