"""Invertible residual flows for Pyro and nflows.

A block ``y = x + g(x)`` with ``Lip(g) < 1`` (Behrmann et al., 2019) as a Pyro ``TransformModule``
(:func:`iresnet`, :class:`IResNet`) and as an nflows ``Transform`` (:class:`IResNetTransform`).

The names here are those of every day. The rest is in the namespaces ``norms``, ``activations``,
``contractions``, ``logdet``, ``solvers``, ``coordinates``, ``operators``, ``blocks``, ``options``,
``hosts``, ``diagnostics``, ``images``, ``errors`` and ``testing``; ``tables``, ``sbi`` and
``training`` need the packages of an extra.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .blocks import CayleyBlock, ResidualBlock
from .cached import cached
from .contractions import ConvContraction, DenseContraction, wrap
from .diagnostics import certificate, logdet_with_error
from .errors import ContractionError, InversionError, IResNetError
from .hosts.pyro import (
    AutoIResNet,
    ConditionalIResNet,
    InverseIResNet,
    IResNet,
    actnorm,
    conditional_iresnet,
    conditional_iresnet_stack,
    iresnet,
    iresnet_stack,
)
from .logdet import ByMode, Exact, PowerSeries, Roulette
from .solvers import Anderson, FixedPoint, Newton

if TYPE_CHECKING:
    from .hosts.nflows import IResNetTransform, conditional_iresnet_flow, iresnet_flow

__version__ = "0.2.0"

__all__ = [
    "Anderson",
    "AutoIResNet",
    "ByMode",
    "CayleyBlock",
    "ConditionalIResNet",
    "ContractionError",
    "ConvContraction",
    "DenseContraction",
    "Exact",
    "FixedPoint",
    "IResNet",
    "IResNetError",
    "IResNetTransform",
    "InverseIResNet",
    "InversionError",
    "Newton",
    "PowerSeries",
    "ResidualBlock",
    "Roulette",
    "actnorm",
    "cached",
    "certificate",
    "conditional_iresnet",
    "conditional_iresnet_flow",
    "conditional_iresnet_stack",
    "iresnet",
    "iresnet_flow",
    "iresnet_stack",
    "logdet_with_error",
    "wrap",
]

# Imported on demand: nflows imports matplotlib, which takes longer than all of this package.
OF_NFLOWS = ("IResNetTransform", "conditional_iresnet_flow", "iresnet_flow")
NAMESPACES = ("images", "sbi", "tables", "testing", "training")


def __getattr__(name: str) -> Any:
    """Import a name of the nflows host, or a namespace that not everybody needs."""
    if name in OF_NFLOWS:
        return getattr(import_module(".hosts.nflows", __name__), name)
    if name in NAMESPACES:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the names, with those that are imported on demand."""
    return sorted({*globals(), *__all__})
