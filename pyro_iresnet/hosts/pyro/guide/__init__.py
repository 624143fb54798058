"""An automatic guide of residual blocks, its start, and its gradients."""

from .auto import AutoIResNet

__all__ = ["AutoIResNet"]
