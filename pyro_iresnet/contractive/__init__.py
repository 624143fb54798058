"""Contractive networks ``g`` with a proven Lipschitz bound, and the norms that prove it."""

from .activations import ELU, Activation, LipSwish, Sine, Softplus, Tanh
from .base import Contraction
from .constrained import ConstrainedContraction, acting_together
from .gram import Gram
from .mlp import DenseContraction
from .norms import Frobenius, Norm, PowerIteration, SingularValue
from .wrapped import wrap

__all__ = [
    "ELU",
    "Activation",
    "ConstrainedContraction",
    "Contraction",
    "DenseContraction",
    "Frobenius",
    "Gram",
    "LipSwish",
    "Norm",
    "PowerIteration",
    "Sine",
    "SingularValue",
    "Softplus",
    "Tanh",
    "acting_together",
    "wrap",
]
