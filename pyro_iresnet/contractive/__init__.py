"""Contractive networks ``g`` with a proven Lipschitz bound, and the norms that prove it."""

from .activations import ELU, Activation, Elementwise, LeakyReLU, Sine, Softplus, Tanh
from .almost_orthogonal import AlmostOrthogonal
from .base import Contraction
from .cholesky import Cholesky
from .closed_form import Frobenius, Schur, SingularValue
from .composed import SequentialContraction, SumContraction
from .conditioning import Conditioner
from .constrained import ConstrainedContraction, acting_together
from .conv import ConvContraction
from .densenet import DenseNetContraction
from .gram import Gram
from .mlp import DenseContraction
from .norms import ActingWeight, Hard, Norm
from .power_iteration import PowerIteration
from .sorting import GroupSort, MaxMin
from .swish import CLipSwish, LipSwish
from .symbol import spectral_norm
from .wrapped import Wrapped, wrap

__all__ = [
    "ELU",
    "ActingWeight",
    "Activation",
    "AlmostOrthogonal",
    "CLipSwish",
    "Cholesky",
    "Conditioner",
    "ConstrainedContraction",
    "Contraction",
    "ConvContraction",
    "DenseContraction",
    "DenseNetContraction",
    "Elementwise",
    "Frobenius",
    "Gram",
    "GroupSort",
    "Hard",
    "LeakyReLU",
    "LipSwish",
    "MaxMin",
    "Norm",
    "PowerIteration",
    "Schur",
    "SequentialContraction",
    "Sine",
    "SingularValue",
    "Softplus",
    "SumContraction",
    "Tanh",
    "Wrapped",
    "acting_together",
    "spectral_norm",
    "wrap",
]
