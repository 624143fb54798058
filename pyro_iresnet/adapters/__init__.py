"""The block in the hosts' words: Pyro's ``TransformModule`` and nflows' ``Transform``."""

from .nflows_transform import IResNetTransform
from .pyro_stack import Stack
from .pyro_transform import InverseIResNet, IResNet, iresnet

__all__ = ["IResNet", "IResNetTransform", "InverseIResNet", "Stack", "iresnet"]
