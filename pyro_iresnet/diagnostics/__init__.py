"""Is a guide the posterior? Pareto-smoothed importance sampling, and what ArviZ wants to know."""

from importlib.util import find_spec

if find_spec("arviz") is None:
    raise ModuleNotFoundError(
        "pyro_iresnet.diagnostics needs ArviZ, which is not installed. Install the extra: "
        "pip install 'pyro-iresnet[diagnostics]', in a copy of the repository "
        "pip install '.[diagnostics]'.",
        name="arviz",
    )

from .inference_data import guide_to_inference_data
from .psis import PSIS, KHatWarning, psis

__all__ = ["PSIS", "KHatWarning", "guide_to_inference_data", "psis"]
