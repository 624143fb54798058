"""Training of flows and guides by Lightning: needs the extra ``train``."""

from .average import TenthAverage
from .flow_module import FlowModule
from .guide_module import GuideModule
from .non_finite import NonFiniteLossError

__all__ = ["FlowModule", "GuideModule", "NonFiniteLossError", "TenthAverage"]
