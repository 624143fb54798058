"""Invertible residual flows for Pyro and nflows.

A block ``y = x + g(x)`` with ``Lip(g) < 1`` (Behrmann et al., 2019) as a Pyro ``TransformModule``
(:func:`iresnet`, :class:`IResNet`) and as an nflows ``Transform`` (:class:`IResNetTransform`).
"""

from .adapters import (
    InverseIResNet,
    IResNet,
    IResNetTransform,
    LogDetEstimate,
    iresnet,
    logdet_with_error,
)
from .block import Evaluation, ResidualBlock
from .caching import cached
from .contractive import (
    ELU,
    Activation,
    Contraction,
    DenseContraction,
    Frobenius,
    Gram,
    LipSwish,
    Norm,
    PowerIteration,
    Sine,
    SingularValue,
    Softplus,
    Tanh,
    wrap,
)
from .errors import (
    ArgumentError,
    ArgumentTypeError,
    ContractionError,
    HigherOrderError,
    InversionError,
    IResNetError,
    LinearSolveError,
    TracingError,
    VarianceWarning,
)
from .flows import ActNorm, actnorm, iresnet_stack
from .inverse import FixedPoint, Solver, auto_solver, solve
from .linearization import Linearization, linearize_by_autograd
from .logdet import (
    Adaptive,
    ByMode,
    ConvergedSeries,
    Exact,
    Geometric,
    LogDet,
    MeanJacobian,
    Poisson,
    PowerSeries,
    Reference,
    Roulette,
    Truncation,
    Zero,
    auto_logdet,
)
from .solution import Result, Solution, Stats

__version__ = "0.1.0"

__all__ = [
    "ELU",
    "ActNorm",
    "Activation",
    "Adaptive",
    "ArgumentError",
    "ArgumentTypeError",
    "ByMode",
    "Contraction",
    "ContractionError",
    "ConvergedSeries",
    "DenseContraction",
    "Evaluation",
    "Exact",
    "FixedPoint",
    "Frobenius",
    "Geometric",
    "Gram",
    "HigherOrderError",
    "IResNet",
    "IResNetError",
    "IResNetTransform",
    "InverseIResNet",
    "InversionError",
    "LinearSolveError",
    "Linearization",
    "LipSwish",
    "LogDet",
    "LogDetEstimate",
    "MeanJacobian",
    "Norm",
    "Poisson",
    "PowerIteration",
    "PowerSeries",
    "Reference",
    "ResidualBlock",
    "Result",
    "Roulette",
    "Sine",
    "SingularValue",
    "Softplus",
    "Solution",
    "Solver",
    "Stats",
    "Tanh",
    "TracingError",
    "Truncation",
    "VarianceWarning",
    "Zero",
    "actnorm",
    "auto_logdet",
    "auto_solver",
    "cached",
    "iresnet",
    "iresnet_stack",
    "linearize_by_autograd",
    "logdet_with_error",
    "solve",
    "wrap",
]
