"""Ready-made stacks."""

from .actnorm import ActNorm, actnorm
from .vectors import iresnet_stack

__all__ = ["ActNorm", "actnorm", "iresnet_stack"]
