"""Blocks, stacks and density estimators for nflows."""

from .actnorm import PatientActNorm
from .builders import conditional_iresnet_flow, iresnet_flow
from .composite import IResNetComposite
from .flow import IResNetFlow
from .transform import IResNetTransform

__all__ = [
    "IResNetComposite",
    "IResNetFlow",
    "IResNetTransform",
    "PatientActNorm",
    "conditional_iresnet_flow",
    "iresnet_flow",
]
