"""Contractive networks ``g`` with a proven Lipschitz bound."""

from .base import Contraction
from .composite import SequentialContraction, SumContraction
from .conv import ConvContraction
from .dense import DenseContraction
from .film import FiLM, Modulation
from .layers import Activate, Affine, Conv, Gate, Layer
from .sequential import LayeredContraction, Perceptron, RawWeight
from .together import materialize_together
from .wrap import Wrapped, wrap

__all__ = [
    "Activate",
    "Affine",
    "Contraction",
    "Conv",
    "ConvContraction",
    "DenseContraction",
    "FiLM",
    "Gate",
    "Layer",
    "LayeredContraction",
    "Modulation",
    "Perceptron",
    "RawWeight",
    "SequentialContraction",
    "SumContraction",
    "Wrapped",
    "materialize_together",
    "wrap",
]
