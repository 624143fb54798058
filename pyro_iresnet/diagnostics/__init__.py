"""Diagnostics of flows and guides: certificates, standard errors, importance sampling.

:func:`psis` and :func:`guide_to_inference_data` need the extra ``diagnostics`` (ArviZ).
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from .certificate import Certificate, Proof, certificate
from .logdet_error import LogDetEstimate, logdet_with_error
from .penalty import spectral_penalty

if TYPE_CHECKING:
    from .importance import PSIS, KHatWarning, psis
    from .inference_data import guide_to_inference_data

__all__ = [
    "PSIS",
    "Certificate",
    "KHatWarning",
    "LogDetEstimate",
    "Proof",
    "certificate",
    "guide_to_inference_data",
    "logdet_with_error",
    "psis",
    "spectral_penalty",
]

# Names that need ArviZ, and the module of each.
WITH_ARVIZ = {
    "PSIS": "importance",
    "KHatWarning": "importance",
    "psis": "importance",
    "guide_to_inference_data": "inference_data",
}


def __getattr__(name: str) -> Any:
    """Import a name that needs ArviZ, or raise with the remedy."""
    if name not in WITH_ARVIZ:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if find_spec("arviz") is None:
        raise ModuleNotFoundError(
            f"pyro_iresnet.diagnostics.{name} needs ArviZ, which is not installed. Install the "
            "extra: pip install 'pyro-iresnet[diagnostics]', in a copy of the repository "
            "pip install '.[diagnostics]'.",
            name="arviz",
        )
    value = getattr(import_module(f".{WITH_ARVIZ[name]}", __name__), name)
    globals()[name] = value
    return value
