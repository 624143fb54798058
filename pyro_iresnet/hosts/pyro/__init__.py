"""Blocks, stacks and guides for Pyro."""

from .actnorm import ActNorm, actnorm
from .builders import (
    conditional_iresnet,
    conditional_iresnet_stack,
    iresnet,
    iresnet_stack,
)
from .conditional import ConditionalIResNet, ConditionedIResNet
from .conditional_stack import ConditionalStack
from .guide import AutoIResNet
from .linear_autoregressive import LinearAutoregressive
from .stack import Stack
from .transform import InverseIResNet, IResNet

__all__ = [
    "ActNorm",
    "AutoIResNet",
    "ConditionalIResNet",
    "ConditionalStack",
    "ConditionedIResNet",
    "IResNet",
    "InverseIResNet",
    "LinearAutoregressive",
    "Stack",
    "actnorm",
    "conditional_iresnet",
    "conditional_iresnet_stack",
    "iresnet",
    "iresnet_stack",
]
