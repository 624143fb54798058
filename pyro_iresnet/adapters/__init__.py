"""The block in the hosts' words: Pyro's ``TransformModule`` and nflows' ``Transform``."""

from .certificate import Certificate, Proof, certificate
from .nflows_transform import IResNetTransform
from .pyro_conditional import ConditionalIResNet, conditional_iresnet
from .pyro_stack import ConditionalStack, Stack
from .pyro_transform import InverseIResNet, IResNet, iresnet
from .standard_error import LogDetEstimate, logdet_with_error

__all__ = [
    "Certificate",
    "ConditionalIResNet",
    "ConditionalStack",
    "IResNet",
    "IResNetTransform",
    "InverseIResNet",
    "LogDetEstimate",
    "Proof",
    "Stack",
    "certificate",
    "conditional_iresnet",
    "iresnet",
    "logdet_with_error",
]
