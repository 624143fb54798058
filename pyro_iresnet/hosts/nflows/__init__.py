"""Blocks, stacks and density estimators for nflows."""

from .actnorm import PatientActNorm
from .builders import conditional_iresnet_flow, iresnet_flow
from .composite import IResNetComposite
from .transform import IResNetTransform

__all__ = [
    "IResNetComposite",
    "IResNetTransform",
    "PatientActNorm",
    "conditional_iresnet_flow",
    "iresnet_flow",
]
