"""Automatic guides for Pyro."""

from .auto_iresnet import AutoIResNet
from .start import LaplaceError

__all__ = ["AutoIResNet", "LaplaceError"]
