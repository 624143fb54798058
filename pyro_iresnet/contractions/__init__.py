"""Contractive networks ``g`` with a proven Lipschitz bound."""

from .base import Contraction
from .composite import SequentialContraction, SumContraction
from .conv import ConvContraction
from .dense import DenseContraction
from .densenet import Append, DenseNetContraction
from .film import FiLM, Modulation
from .layers import Activate, Affine, Conv, Gate, Layer
from .sequential import LayeredContraction, Perceptron, RawWeight
from .together import materialize_together
from .wrap import Wrapped, wrap

__all__ = [
    "Activate",
    "Affine",
    "Append",
    "Contraction",
    "Conv",
    "ConvContraction",
    "DenseContraction",
    "DenseNetContraction",
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
