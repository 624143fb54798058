"""The block in the hosts' words: Pyro's ``TransformModule`` and nflows' ``Transform``."""

from .certificate import Certificate, Proof, certificate
from .nflows_transform import IResNetTransform
from .pyro_stack import Stack
from .pyro_transform import InverseIResNet, IResNet, iresnet
from .standard_error import LogDetEstimate, logdet_with_error

__all__ = [
    "Certificate",
    "IResNet",
    "IResNetTransform",
    "InverseIResNet",
    "LogDetEstimate",
    "Proof",
    "Stack",
    "certificate",
    "iresnet",
    "logdet_with_error",
]
