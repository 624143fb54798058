"""The block in the hosts' words: Pyro's ``TransformModule`` and nflows' ``Transform``."""

from .nflows_transform import IResNetTransform
from .pyro_stack import Stack
from .pyro_transform import InverseIResNet, IResNet, iresnet
from .standard_error import LogDetEstimate, logdet_with_error

__all__ = [
    "IResNet",
    "IResNetTransform",
    "InverseIResNet",
    "LogDetEstimate",
    "Stack",
    "iresnet",
    "logdet_with_error",
]
