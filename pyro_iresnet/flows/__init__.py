"""Ready-made stacks."""

from .actnorm import ActNorm, actnorm
from .affine import TriangularAffine
from .densities import conditional_iresnet_flow, iresnet_flow
from .patient_actnorm import PatientActNorm
from .vectors import conditional_iresnet_stack, implicit_stack, iresnet_stack

__all__ = [
    "ActNorm",
    "PatientActNorm",
    "TriangularAffine",
    "actnorm",
    "conditional_iresnet_flow",
    "conditional_iresnet_stack",
    "implicit_stack",
    "iresnet_flow",
    "iresnet_stack",
]
