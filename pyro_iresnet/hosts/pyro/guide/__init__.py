"""An automatic guide of residual blocks, its start, and its gradients."""

from .auto import AutoIResNet
from .path_gradients import PathDistribution

__all__ = ["AutoIResNet", "PathDistribution"]
