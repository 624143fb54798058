"""Is a guide the posterior? Pareto-smoothed importance sampling, and what ArviZ wants to know."""

try:
    import arviz as _  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "pyro_iresnet.diagnostics needs ArviZ, which is not installed. Install the extra: "
        "pip install 'pyro-iresnet[diagnostics]', in a copy of the repository "
        "pip install '.[diagnostics]'.",
        name=error.name,
    ) from error

from .inference_data import guide_to_inference_data
from .psis import PSIS, KHatWarning, psis

__all__ = ["PSIS", "KHatWarning", "guide_to_inference_data", "psis"]
