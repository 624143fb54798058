"""Ready-made stacks."""

from .actnorm import ActNorm, actnorm
from .vectors import implicit_stack, iresnet_stack

__all__ = ["ActNorm", "actnorm", "implicit_stack", "iresnet_stack"]
