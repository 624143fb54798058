"""Is a guide the posterior? Pareto-smoothed importance sampling, and what ArviZ wants to know."""

from .inference_data import guide_to_inference_data
from .psis import PSIS, KHatWarning, psis

__all__ = ["PSIS", "KHatWarning", "guide_to_inference_data", "psis"]
