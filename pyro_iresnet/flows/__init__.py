"""Ready-made stacks."""

from .actnorm import ActNorm, actnorm
from .affine import TriangularAffine
from .vectors import conditional_iresnet_stack, implicit_stack, iresnet_stack

__all__ = [
    "ActNorm",
    "TriangularAffine",
    "actnorm",
    "conditional_iresnet_stack",
    "implicit_stack",
    "iresnet_stack",
]
