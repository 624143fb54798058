"""Contractive networks ``g`` with a proven Lipschitz bound, and the norms that prove it."""

from .activations import ELU, Activation, LipSwish, Sine, Softplus, Tanh
from .almost_orthogonal import AlmostOrthogonal
from .base import Contraction
from .closed_form import Frobenius, Schur, SingularValue
from .constrained import ConstrainedContraction, acting_together
from .gram import Gram
from .mlp import DenseContraction
from .norms import ActingWeight, Hard, Norm
from .power_iteration import PowerIteration
from .wrapped import wrap

__all__ = [
    "ELU",
    "ActingWeight",
    "Activation",
    "AlmostOrthogonal",
    "ConstrainedContraction",
    "Contraction",
    "DenseContraction",
    "Frobenius",
    "Gram",
    "Hard",
    "LipSwish",
    "Norm",
    "PowerIteration",
    "Schur",
    "Sine",
    "SingularValue",
    "Softplus",
    "Tanh",
    "acting_together",
    "wrap",
]
